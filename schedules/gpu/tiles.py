"""How large the tiles of products are, by the sizes of the result."""

from __future__ import annotations

from transpiler.target import Target

from ..sizes import Extent, is_fixed
from .product import Tile

# Multiply-adds from which on a kernel is worth the second or so that a tile of WIDE columns takes to compile.
LARGE = 1 << 24
COLUMNS, WIDE = 8, 16


# Of a workgroup's block in shared memory: elements of the summed dim, and threads on each side.
DEPTH, SIDE = 8, 8


def tile_for(target: Target, rows: Extent, columns: Extent, inner: Extent) -> Tile:
    """The tile of a product with a result of `rows` x `columns`."""
    return staged_tile(rows, columns) if target.gpu.staged else direct_tile(rows, columns, inner)


def staged_tile(rows: Extent, columns: Extent) -> Tile:
    """A tile for the form that goes through shared memory: up to 8 x 8 of a thread, 64 threads."""

    def own(size: Extent) -> int:
        return 8 if not is_fixed(size) else max(1, min(8, -(-size // SIDE)))

    return Tile(own(rows), own(columns), SIDE, SIDE, DEPTH)


def direct_tile(rows: Extent, columns: Extent, inner: Extent) -> Tile:
    """A tile for the direct form: as large as registers allow, not larger than the result."""
    wide = 8 if not is_fixed(columns) else min(8, _power_of_two(columns))
    large = is_fixed(rows, columns, inner) and rows * columns * inner >= LARGE
    most = WIDE if large else COLUMNS
    most_columns = most if not is_fixed(columns) else min(most, -(-columns // wide))
    most_rows = 16 if not is_fixed(rows) else min(16, rows)
    if is_fixed(rows) and rows > 16:
        # Blocks of equal size waste less at the end.
        most_rows = -(-rows // -(-rows // 16))
    row_threads = 8 // wide if not is_fixed(rows) or rows > most_rows else 1
    return Tile(max(most_rows, 1), max(most_columns, 1), row_threads, wide)


def _power_of_two(size: int) -> int:
    """The smallest that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()
