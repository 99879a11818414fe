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


def product_tile(target: Target, product: Product) -> Tile:
    """The tile of a product, by the sizes of its result and by how its operands can be read."""
    rows, columns, inner = product.rows, product.columns, count(product.inner)
    if target.gpu.staged:
        return staged_tile(rows, columns)
    left, right = (quads is not None and not quads.along for quads in (product.left_quads, product.right_quads))
    if right and is_fixed(rows, columns):
        work = product.batches * rows * columns * inner
        return quad_tile(rows, columns, LOAD if left else 4 * LOAD, MOST_QUADS if _is_large(work) else MOST_QUADS // 2)
    tile = direct_tile(rows, columns, inner)
    if not left:
        return tile
    # What few columns leave of the registers goes to rows, whose loads are cheaper.
    tall = is_fixed(rows) and rows % TALL == 0 and TALL * tile.columns <= MOST and _is_large(rows * columns * inner)
    return replace(tile, rows=TALL if tall else _rounded(tile.rows))


def _is_large(work: Extent) -> bool:
    return is_fixed(work) and bool(work >= LARGE)


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


# A quad of loads costs about as much as so many multiply-adds, a row or column of a thread by itself half of that.
LOAD = 60
# Quads of columns that a thread may have.
MOST_QUADS = 4
LANES = 8
# Rows of a thread where it has few columns, and results of a thread.
TALL, MOST = 32, 256


def quad_tile(rows: int, columns: int, row_load: int, most_quads: int) -> Tile:
    """A tile for a product whose right matrix is read in quads across the columns, four rows of the left one for
    `row_load`. The threads of a workgroup lie along the columns, unless that leaves many of them with nothing to do."""
    heights = [_rounded(min(16, rows))]
    if rows % TALL == 0 and most_quads == MOST_QUADS:
        heights.append(TALL)
    quads = -(-columns // QUAD)

    def cost(choice: tuple[int, int, int]) -> float:
        """Of all tiles."""
        own_rows, own, threads = choice
        down = -(-rows // (own_rows * (LANES // threads)))
        across = -(-quads // (own * threads))
        loads = own_rows // QUAD * row_load + own * LOAD
        return down * across * (loads + own_rows * own * QUAD) * (1 + 0.02 * (LANES // threads))

    choices = [
        (own_rows, own, threads)
        for own_rows in heights
        for threads in (8, 4, 2, 1)
        for own in range(1, most_quads + 1)
        if own_rows * own * QUAD <= MOST
    ]
    own_rows, own, threads = min(choices, key=cost)
    return Tile(own_rows, own * QUAD, LANES // threads, threads, run=QUAD)


def _rounded(size: int) -> int:
    """The next multiple of four."""
    return -(-size // QUAD) * QUAD


def _power_of_two(size: int) -> int:
    """The smallest that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()
