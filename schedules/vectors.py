"""Explicit vectors: loads, stores, tails and horizontal reductions for schedules that keep their data in
registers.

`Vectors(dtype)` fixes the number of lanes of a dtype. float32 has vector versions of every function; other
dtypes run with one lane, so that the same schedule is a plain scalar loop for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.target import Target

from . import vector_math
from .scalar import Tir
from .sizes import Extent, ceil_div, is_fixed
from .tir import LANES, Buffer, local

Expr = Any


def held(x: Expr) -> Expr:
    """`x` computed here, once.

    `T.bind` does not promise that: TVM's simplifier inlines bound values that are pure, which multiplies the
    code and carries vector operations into other loops. A buffer of its own is a barrier to TVM and a
    register to LLVM.
    """
    if isinstance(x, int):
        return tirx.const(x, "int32")
    described = str(x.dtype if hasattr(x, "dtype") else x.ty.dtype)
    dtype, _, lanes = described.partition("x")
    buffer = local(int(lanes or 1), dtype)
    if lanes:
        buffer.store_vector(0, x, int(lanes))
        return buffer.vector(0, int(lanes))
    buffer.store(0, x)
    return buffer[0]


class VectorTir(Tir):
    """`Tir` on vectors of `lanes` elements: constants and conversions have that many lanes too."""

    def bind(self, x: Expr) -> Expr:
        return held(x)

    def const(self, value: float | int | bool, dtype: str) -> Expr:
        scalar = super().const(value, dtype)
        return T.broadcast(scalar, self.lanes) if self.lanes > 1 else scalar

    def _zero(self, dtype: str) -> Expr:
        return self.const(0, dtype)

    def reinterpret(self, x: Expr, dtype: str) -> Expr:
        return super().reinterpret(x, self._wide(dtype))

    def _convert(self, x: Expr, dtype: str) -> Expr:
        return T.Cast(self._wide(dtype), x)

    def _wide(self, dtype: str) -> str:
        return f"{dtype}x{self.lanes}" if self.lanes > 1 else dtype


class Vectors:
    """Vector operations on one dtype; `s` computes on whole vectors."""

    def __init__(self, dtype: str, lanes: int | None = None) -> None:
        self.dtype = dtype
        self.lanes = lanes if lanes is not None else LANES if dtype == "float32" else 1
        self.s = VectorTir(lanes=self.lanes)

    def const(self, value: float | int) -> Expr:
        return self.s.const(value, self.dtype)

    def splat(self, scalar: Expr) -> Expr:
        return T.broadcast(scalar, self.lanes) if self.lanes > 1 else scalar

    def blocks(self, extent: Extent) -> Extent:
        """Vectors that hold `extent` elements, the last one perhaps in part."""
        return ceil_div(extent, self.lanes)

    def load(self, buffer: Buffer, offset: Expr, count: Extent | None = None, fill: float | int = 0) -> Expr:
        """`lanes` elements; only the first `count` are read, the other lanes are `fill`."""
        if self.lanes == 1:
            return buffer[offset]
        if count is not None and not is_fixed(count):
            staged = local(self.lanes, self.dtype)
            staged.store_vector(0, self.const(fill), self.lanes)
            with T.serial(0, count) as lane:
                staged.store(lane, buffer[offset + lane])
            return staged.vector(0, self.lanes)
        if count is None or count >= self.lanes:
            return buffer.vector(offset, self.lanes)
        filler = Tir.const(self.s, fill, self.dtype)
        elements = [buffer[offset + lane] if lane < count else filler for lane in range(self.lanes)]
        return tirx.Shuffle(elements, [tirx.const(lane, "int32") for lane in range(self.lanes)])

    def store(self, buffer: Buffer, offset: Expr, value: Expr, count: Extent | None = None) -> None:
        """Write the first `count` lanes (default: all)."""
        if self.lanes == 1:
            buffer.store(offset, value)
        elif count is not None and not is_fixed(count):
            staged = local(self.lanes, self.dtype)
            staged.store_vector(0, value, self.lanes)
            with T.serial(0, count) as lane:
                buffer.store(offset + lane, staged[lane])
        elif count is None or count >= self.lanes:
            buffer.store_vector(offset, value, self.lanes)
        else:
            value = held(value)
            for lane in range(count):
                buffer.store(offset + lane, self.lane(value, lane))

    def transpose(
        self,
        source: Callable[[int, Expr], tuple[Buffer, Expr]],
        target: Callable[[Expr], tuple[Buffer, Expr]],
        *,
        rows: int,
        columns: int,
        finish: Callable[[Expr], Expr] = lambda vector: vector,
    ) -> None:
        """Columns of a matrix of up to `lanes` rows become vectors.

        `source(lane, column)` and `target(column)` give a buffer and an offset; lanes beyond `rows` are 0;
        `finish` is applied to each vector. Blocks of 16 x 16 are transposed in registers by four rounds of
        shuffles; the columns that remain are gathered element by element.
        """
        square = self.lanes if self.lanes > 1 and rows == self.lanes else columns + 1
        if columns >= square:
            with T.serial(0, columns // square) as block:
                vectors = []
                for lane in range(self.lanes):
                    buffer, offset = source(lane, block * square)
                    vectors.append(held(self.load(buffer, offset)))
                for column, vector in enumerate(self._transposed(vectors)):
                    buffer, offset = target(block * square + column)
                    self.store(buffer, offset, finish(vector))
        rest = columns % square
        if rest:
            with T.serial(columns - rest, columns) as column:
                elements = []
                for lane in range(rows):
                    buffer, offset = source(lane, column)
                    elements.append(buffer[offset])
                elements += [tirx.const(0.0, self.dtype)] * (self.lanes - rows)
                vector = tirx.Shuffle(elements, _numbers(0, self.lanes)) if self.lanes > 1 else elements[0]
                buffer, offset = target(column)
                self.store(buffer, offset, finish(vector))

    def _transposed(self, vectors: list[Expr]) -> list[Expr]:
        """Rows to columns: in round r, vectors that are 2^r apart swap the halves of their blocks of 2^(r+1)
        lanes.
        """
        distance = 1
        while distance < self.lanes:
            low = [lane if not lane & distance else lane - distance + self.lanes for lane in range(self.lanes)]
            high = [lane + distance if not lane & distance else lane + self.lanes for lane in range(self.lanes)]
            swapped = list(vectors)
            for number in range(self.lanes):
                if not number & distance:
                    pair = [vectors[number], vectors[number + distance]]
                    swapped[number] = held(tirx.Shuffle(pair, [tirx.const(lane, "int32") for lane in low]))
                    swapped[number + distance] = held(tirx.Shuffle(pair, [tirx.const(lane, "int32") for lane in high]))
            vectors = swapped
            distance *= 2
        return vectors

    def lane(self, vector: Expr, lane: int) -> Expr:
        return tirx.Shuffle([vector], [tirx.const(lane, "int32")]) if self.lanes > 1 else vector

    def keep(self, vector: Expr, count: Extent) -> Expr:
        """The first `count` lanes, 0 in the others."""
        if self.lanes == 1:
            return vector
        mask = tirx.LT(
            T.ramp(0, 1, self.lanes), T.broadcast(tirx.const(count, "int32") if is_fixed(count) else count, self.lanes)
        )
        return tirx.Select(mask, vector, self.const(0))

    def exp_nonpositive(self, x: Expr) -> Expr:
        """exp of values <= 0; results below 2^-125 may come out as 0."""
        return vector_math.exp_nonpositive(self.s, held(x)) if self.dtype == "float32" else self.s.call("exp", x)

    def log(self, x: Expr) -> Expr:
        """Natural logarithm: libm's, lane by lane."""
        return T.log(x)

    @property
    def one(self) -> Expr:
        return tirx.const(1.0, self.dtype)

    def fold(self, vector: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
        """All lanes combined into one scalar, by halves."""
        width = self.lanes
        while width > 2:
            width //= 2
            vector = held(vector)
            halves = [
                tirx.call_intrin(f"{self.dtype}x{width}", f"tirx.vector{half}", vector) for half in ("low", "high")
            ]
            vector = combine(*halves)
        if width == 1:
            return vector
        vector = held(vector)
        return held(combine(*(tirx.Shuffle([vector], [tirx.const(lane, "int32")]) for lane in (0, 1))))


def _numbers(start: int, stop: int) -> list[Expr]:
    return [tirx.const(number, "int32") for number in range(start, stop)]


def accumulators(target: Target, vectors: Vectors) -> int:
    """How many vectors a register tile may hold: three quarters of the registers; operands take the rest."""
    if vectors.lanes == 1:
        return target.isa.vector_registers // 2
    per_vector = max(1, vectors.lanes * 32 // target.isa.vector_bits)
    return max(1, target.isa.vector_registers * 3 // 4 // per_vector)


class Registers:
    """`count` vectors that LLVM keeps in registers, as long as every use names them by constants."""

    def __init__(self, vectors: Vectors, count: int) -> None:
        self._vectors = vectors
        # Several small buffers instead of one: each must stay under 1 KiB.
        self._buffers = [local(vectors.lanes, vectors.dtype) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._buffers)

    def __getitem__(self, position: int) -> Expr:
        return self._vectors.load(self._buffers[position], 0)

    def __setitem__(self, position: int, value: Expr) -> None:
        self._vectors.store(self._buffers[position], 0, value)

    def scalar(self, position: int, lane: Expr) -> Expr:
        """One lane, chosen at run time: reads memory, so only for what is used after the inner loops."""
        return self._buffers[position][lane]

    def fill(self, value: float | int) -> None:
        for position in range(len(self)):
            self[position] = self._vectors.const(value)

    def combined(self, combine: Callable[[Expr, Expr], Expr]) -> Expr:
        """All registers combined into one, pairwise."""
        values = [self[position] for position in range(len(self))]
        while len(values) > 1:
            pairs = [values[position : position + 2] for position in range(0, len(values), 2)]
            values = [functools.reduce(combine, pair) for pair in pairs]
        return values[0]


UNROLL = 4  # accumulators of a sweep


def unrolled(vectors: Vectors, extent: Extent) -> int:
    """How many accumulators a sweep over `extent` can use."""
    return min(UNROLL, max(1, extent // vectors.lanes)) if is_fixed(extent) else UNROLL


def sweep(
    vectors: Vectors, extent: Extent, body: Callable[[Expr, int, Extent | None], None], *, unroll: int = UNROLL
) -> None:
    """Run `body(offset, register, count)` for every vector of 0..extent.

    The main loop is unrolled `unroll` times, with `register` = 0..unroll-1 naming an accumulator of its own
    for each, so that the latency of one accumulation hides behind the others. `count` is None for full
    vectors and the number of valid lanes of the last one.
    """
    lanes = vectors.lanes
    full = extent // lanes
    steps = full // unroll
    if not is_fixed(extent):
        with T.serial(0, steps) as step:
            for register in range(unroll):
                body(step * (unroll * lanes) + register * lanes, register, None)
        with T.serial(steps * unroll, full) as position:
            body(position * lanes, 0, None)
        if lanes > 1:
            with T.If(extent % lanes > 0), T.Then():
                body(full * lanes, 0, extent % lanes)
        return
    if steps > 1:
        with T.serial(0, steps) as step:
            for register in range(unroll):
                body(step * (unroll * lanes) + register * lanes, register, None)
    else:
        steps = 0
    for position in range(steps * unroll, full):
        body(position * lanes, position % unroll, None)
    if extent % lanes:
        body(full * lanes, full % unroll, extent % lanes)
