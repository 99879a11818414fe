"""Products with few rows: matrix times vector, as in decoding and in the last layer of a batch of one.

A warp takes one, two or four columns of the result, all rows. Its lanes walk along the summed dim, 16 bytes of each
column at a time, so that a column is read in whole lines, once, past the first level of the caches; the rows are read
as often as there are warps, from there. Several loads of a lane are on their way at a time. Where columns are too few
for warps enough, several warps of a block share them: each takes every so many parts of the summed dim.

The lanes' sums meet by shuffles, which leave each lane with one of the warp's results; those of warps that share
columns meet in shared memory. The order is always the same. Limited by memory: the weights are read once.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..gpu.workgroup import barrier, private, shared, workgroups
from ..scalar import Tir
from ..sizes import Extent, ceil_div, is_fixed
from ..tir import Buffer, when
from ..vectors import held
from . import ptx
from .epilogue import RunEpilogue
from .product import DEPTHS, Product
from .tiles import PROCESSORS

Expr = Any
MOST_ROWS = 8
WARP = 32
WARPS = 4  # of a block, where none share columns
# Warps of the device, of which each has `AHEAD` loads of 16 bytes a lane on their way: they hide the latency of memory.
BUSY, AHEAD = 16 * PROCESSORS, 4
MOST_SHARES = 16  # warps that share columns


def takes(product: Product) -> bool:
    """Whether a product has this form."""
    few = is_fixed(product.rows, product.batches) and product.rows <= MOST_ROWS and product.batches == 1
    return few and not product.right.across


@dataclass(frozen=True)
class Form:
    """A warp has `columns` columns; `shares` warps of a block have the same ones, of which each takes every so many
    parts of the summed dim. A lane loads `ahead` chunks of each column before it uses the first."""

    columns: int
    shares: int
    ahead: int

    @property
    def warps(self) -> int:
        return max(WARPS, self.shares)

    @property
    def block_columns(self) -> int:
        return self.warps // self.shares * self.columns


def form(rows: int, columns: Extent, inner: Extent, chunk: int) -> Form:
    """What keeps the device busy, with as many columns a warp as that allows: they share what is read of the rows."""
    most = 4 if rows >= 4 else 2
    known = columns if is_fixed(columns) else 0
    own = next((size for size in (4, 2) if size <= most and known >= size * BUSY), 1)
    shares = 1
    if is_fixed(columns, inner):
        # Every lane has two chunks at least.
        while shares < MOST_SHARES and columns // own * shares < BUSY and inner >= 4 * shares * WARP * chunk:
            shares *= 2
    turns = inner // (WARP * chunk * shares) if is_fixed(inner) else AHEAD
    return Form(own, shares, max(1, min(AHEAD // min(own, 2), turns)))


def emit(product: Product, epilogue: RunEpilogue) -> None:
    """A kernel at the root of the function."""
    own = form(product.rows, product.columns, product.inner, DEPTHS[product.kind])
    with workgroups(ceil_div(product.columns, own.block_columns), own.warps * WARP) as (number, thread):
        _Warp(product, own, number, thread).emit(epilogue)


class _Warp:
    """What one warp does."""

    def __init__(self, product: Product, form: Form, number: Expr, thread: Expr) -> None:
        self.product, self.form, self.thread = product, form, thread
        self.lane, warp = held(tirx.floormod(thread, WARP)), tirx.floordiv(thread, WARP)
        self.share, team = held(tirx.floormod(warp, form.shares)), tirx.floordiv(warp, form.shares)
        self.first = held(number * form.block_columns + team * form.columns)
        self.chunk = DEPTHS[product.kind]
        self.count = product.rows * form.columns
        self.sums = private(self.count)

    def emit(self, epilogue: RunEpilogue) -> None:
        with ptx.unrolled(self.count) as i:
            self.sums.store(i, tirx.const(0.0, "float32"))
        self._add_up()
        size = _power_of_two(self.count)
        total = held(_met(self.sums, self.count, size, self.lane))
        element = held(tirx.floordiv(self.lane, WARP // size))
        own = tirx.EQ(tirx.floormod(self.lane, WARP // size), 0)
        shares = self.form.shares
        if shares > 1:
            parts = shared(self.form.warps * size)
            # TVM shrinks the array to what is accessed: it has to see the indices.
            place = tirx.floordiv(self.thread, WARP // size)
            with when(own):
                parts.store(place, total)
            barrier()
            own = tirx.And(own, tirx.EQ(self.share, 0))
        with when(tirx.And(own, element < self.count)):
            if shares > 1:
                total = held(functools.reduce(operator.add, [parts[place + share * size] for share in range(shares)]))
            self._store(epilogue, element, total)

    # --- sums
    def _add_up(self) -> None:
        """Adds this lane's products to its sums, [row, column of the warp]."""
        product, form = self.product, self.form
        # Columns beyond the last one compute it again and are not stored.
        columns = [
            product.right.chunks(0, held(T.min(self.first + c, product.columns - 1))) for c in range(form.columns)
        ]
        lines = [product.left.chunks(0, tirx.const(row, "int32")) for row in range(product.rows)]
        weights = private(form.ahead * form.columns * self.chunk, product.right.buffer.dtype)
        x = private(self.chunk, product.left.buffer.dtype)
        turn_size = form.shares * WARP * self.chunk  # elements that the warps of a column take in a turn
        start = held((self.share * WARP + self.lane) * self.chunk)

        def step(k: Expr, chunks: int) -> None:
            places = [held(k + ahead * turn_size) for ahead in range(chunks)]
            for ahead, place in enumerate(places):
                for c, column in enumerate(columns):
                    at = (ahead * form.columns + c) * self.chunk
                    _load(weights, at, self.chunk, product.right.buffer, column(place), stream=True)
            for ahead, place in enumerate(places):
                for row, line in enumerate(lines):
                    _load(x, 0, self.chunk, product.left.buffer, line(place))
                    self._multiply(row, x, weights, ahead * form.columns * self.chunk)

        size = form.ahead * turn_size
        whole = product.inner // size
        rest = ceil_div(product.inner - whole * size, turn_size)
        if not is_fixed(whole) or whole:
            with ptx.rolled(whole) as turn:
                step(held(turn * size + start), form.ahead)
        if not is_fixed(rest) or rest:
            with ptx.rolled(rest) as turn:
                k = held(whole * size + turn * turn_size + start)
                with when(k < product.inner):
                    step(k, 1)

    def _multiply(self, row: int, x: Buffer, weights: Buffer, at: int) -> None:
        s, columns = Tir(statements=False), self.form.columns
        with ptx.unrolled(columns) as c, ptx.unrolled(self.chunk) as e:
            term = s.cast(x[e], "float32") * s.cast(weights[at + c * self.chunk + e], "float32")
            self.sums.store(row * columns + c, self.sums[row * columns + c] + term)

    # --- results
    def _store(self, epilogue: RunEpilogue, element: Expr, total: Expr) -> None:
        product, columns = self.product, self.form.columns
        row, c = held(tirx.floordiv(element, columns)), held(tirx.floormod(element, columns))
        column = held(self.first + c)
        with when(column < product.columns):
            epilogue.store_run(
                lambda _: product.place(0, row, column), lambda _: product.biased(total, 0, row, column), 1
            )


def _load(
    target: Buffer, first: int, chunk: int, source: Buffer, place: tuple[Expr, Expr | None], *, stream: bool = False
) -> None:
    """A chunk into registers; zeros where it does not exist, in the padding of a convolution, whose pixels are read
    again for other taps."""
    offset, exists = place
    if exists is not None:
        for element in range(chunk):
            target.store(first + element, tirx.const(0, target.dtype))
    with when(exists):
        if stream and exists is None:
            ptx.stream(target, first, source, offset)
        else:
            ptx.move(target, first, source, offset, ptx.CHUNK)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _met(sums: Buffer, count: int, size: int, lane: Expr) -> Expr:
    """The sum over the lanes of a warp of one of `count` values, that of number lane // (32 / size): each time lanes
    that are so far apart exchange the halves of their values that the other one goes on with."""
    values = [held(sums[i]) if i < count else tirx.const(0.0, "float32") for i in range(size)]
    distance = WARP // 2
    while distance:
        upper = held(tirx.Cast("int32", tirx.NE(tirx.bitwise_and(lane, distance), 0)))
        half = len(values) // 2
        if half:
            low, high = values[:half], values[half:]
            kept = [tirx.Select(upper != 0, b, a) for a, b in zip(low, high, strict=True)]
            given = [tirx.Select(upper != 0, a, b) for a, b in zip(low, high, strict=True)]
        else:
            kept = given = values
        values = [held(own + ptx.shuffle_xor(held(other), distance)) for own, other in zip(kept, given, strict=True)]
        distance //= 2
    return values[0]
