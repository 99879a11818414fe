"""Products with few rows: matrix times vector, as in decoding and in the last layer of a batch of one.

A warp takes one or two columns of the result, all rows. Its lanes walk along the summed dim, 16 bytes of each column at
a time, so that a column is read in whole lines, once; the rows are read as often as there are columns, from the caches.
The lanes' sums meet by shuffles, in an order that is always the same. Limited by memory: the weights are read once.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..gpu.workgroup import private, workgroups
from ..scalar import Tir
from ..sizes import ceil_div, is_fixed
from ..tir import Buffer, when
from ..vectors import held
from . import ptx
from .epilogue import RunEpilogue
from .product import DEPTHS, Product
from .tiles import PROCESSORS

Expr = Any
MOST_ROWS = 8
WARPS = 4  # of a block
TWO_COLUMNS = (
    2 * WARPS * PROCESSORS
)  # from that many columns on a warp takes two, which share what it reads of the rows


def takes(product: Product) -> bool:
    """Whether a product has this form."""
    few = is_fixed(product.rows, product.batches) and product.rows <= MOST_ROWS and product.batches == 1
    return few and not product.right.across


def emit(product: Product, epilogue: RunEpilogue) -> None:
    """A kernel at the root of the function."""
    own = 2 if is_fixed(product.columns) and product.columns >= TWO_COLUMNS else 1
    with workgroups(ceil_div(product.columns, WARPS * own), WARPS * 32) as (number, thread):
        lane = held(tirx.floormod(thread, 32))
        first = held((number * WARPS + tirx.floordiv(thread, 32)) * own)
        sums = _sums(product, own, first, lane)
        for i in range(product.rows * own):
            sums.store(i, warp_sum(sums[i]))
        _store(product, epilogue, own, first, lane, sums)


def _sums(product: Product, own: int, first: Expr, lane: Expr) -> Any:
    """What this lane adds to the elements [row, column] of its warp."""
    rows, chunk = product.rows, DEPTHS[product.kind]
    sums = private(rows * own)
    for i in range(rows * own):
        sums.store(i, tirx.const(0.0, "float32"))
    # Columns beyond the last one compute it again and are not stored.
    columns = [product.right.chunks(0, held(T.min(first + c, product.columns - 1))) for c in range(own)]
    lines = [product.left.chunks(0, tirx.const(row, "int32")) for row in range(rows)]
    weights, x = (private(size * chunk, product.left.buffer.dtype) for size in (own, 1))
    s = Tir(statements=False)
    with T.serial(0, ceil_div(product.inner, 32 * chunk)) as turn:
        k = held((turn * 32 + lane) * chunk)
        with when(k < product.inner):
            for c, column in enumerate(columns):
                _load(weights, c * chunk, chunk, product.right.buffer, column(k))
            for row, line in enumerate(lines):
                _load(x, 0, chunk, product.left.buffer, line(k))
                with ptx.unrolled(own) as c, ptx.unrolled(chunk) as e:
                    term = s.cast(x[e], "float32") * s.cast(weights[c * chunk + e], "float32")
                    sums.store(row * own + c, sums[row * own + c] + term)
    return sums


def _load(target: Buffer, first: int, chunk: int, source: Buffer, place: tuple[Expr, Expr | None]) -> None:
    """A chunk into registers; zeros where it does not exist, in the padding of a convolution."""
    offset, exists = place
    if exists is not None:
        for element in range(chunk):
            target.store(first + element, tirx.const(0, target.dtype))
    with when(exists):
        ptx.move(target, first, source, offset, ptx.CHUNK)


def warp_sum(value: Expr) -> Expr:
    """The sum over the lanes of a warp, in all of them: by halves, so that all get the same."""
    total = private(1)
    total.store(0, value)
    for distance in (16, 8, 4, 2, 1):
        total.store(0, total[0] + ptx.shuffle_xor(total[0], distance))
    return total[0]


def _store(product: Product, epilogue: RunEpilogue, own: int, first: Expr, lane: Expr, sums: Any) -> None:
    """Lane i stores element i of its warp's."""
    mine = private(1)
    for i in range(product.rows * own):
        with when(lane == i):
            mine.store(0, sums[i])
    row, c = held(tirx.floordiv(lane, own)), held(tirx.floormod(lane, own))
    column = held(first + c)
    with when(tirx.And(row < product.rows, column < product.columns)):
        epilogue.store_run(
            lambda _: product.place(0, row, column), lambda _: product.biased(mine[0], 0, row, column), 1
        )
