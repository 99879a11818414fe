"""How large the tiles of products are, by the sizes of the result."""

from __future__ import annotations

from dataclasses import replace

from transpiler.target import Target

from ..sizes import Extent, count, is_fixed
from .product import QUAD, Product, Tile

# Multiply-adds from which on a kernel is worth the second or so that a tile of WIDE columns takes to compile.
LARGE = 1 << 24
COLUMNS, WIDE = 8, 16


# Of a workgroup's block in shared memory: elements of the summed dim, and threads on each side.
DEPTH, SIDE = 8, 8


def tile_for(target: Target, rows: Extent, columns: Extent, inner: Extent) -> Tile:
    """The tile of a product with a result of `rows` x `columns`."""
    return staged_tile(rows, columns) if target.gpu.staged else direct_tile(rows, columns, inner)


def product_tile(target: Target, product: Product) -> Tile:
    """The tile of a product, by how its operands can be read."""
    rows, columns = product.rows, product.columns
    if target.gpu.staged:
        return staged_tile(rows, columns)
    if product.left_quads is None or product.left_quads.along or not is_fixed(rows):
        return direct_tile(rows, columns, count(product.inner))
    if product.right_quads is not None and not product.right_quads.along and is_fixed(columns):
        return quad_tile(rows, columns)
    tile = direct_tile(rows, columns, count(product.inner))
    return replace(tile, rows=_rounded(tile.rows))


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


# A quad of loads costs about as much as so many multiply-adds.
QUAD_LOAD = 60
# Quads of columns that a thread may have.
MOST_QUADS = 4


def quad_tile(rows: int, columns: int) -> Tile:
    """A tile for a product whose operands are both read in quads, across rows and columns."""
    most_rows = _rounded(min(16, rows))
    quads = -(-columns // QUAD)
    threads = min(8, _power_of_two(quads))

    def cost(own: int) -> int:
        """Of a row of tiles."""
        loads = (most_rows // QUAD + own) * QUAD_LOAD
        return -(-quads // (own * threads)) * (loads + most_rows * own * QUAD)

    own = min(range(1, MOST_QUADS + 1), key=lambda own: (cost(own), own))
    return Tile(most_rows, own * QUAD, min(8 // threads, _power_of_two(-(-rows // most_rows))), threads, run=QUAD)


def _rounded(size: int) -> int:
    """The next multiple of four."""
    return -(-size // QUAD) * QUAD


def _power_of_two(size: int) -> int:
    """The smallest that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()
