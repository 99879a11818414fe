"""Running sums, products, extremes and log-sum-exps: what is scanned, and rows by one thread each.

A target's rule says how the threads of a row scan it together: what they do not share is here. `Steps` gives the states
that are scanned, and how that of a part of a row is combined with the one of what comes behind it, in any grouping.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group
from transpiler.ops.dtypes import numpy_dtype

from ..scalar import Tir
from ..sizes import Extent, count, extent, is_fixed, smaller
from ..tir import Buffer, KernelBuilder, when
from ..vectors import held
from .workgroup import private

Expr = Any
State = Sequence[Expr]
ALONE = 32  # elements of a row up to which a thread takes it by itself
NAMES = ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")


@dataclass(frozen=True)
class Lines:
    """The rows of a scan: `rows` of `along` elements, which are `inner` apart."""

    along: Extent
    inner: Extent
    rows: Extent

    @property
    def short(self) -> bool:
        """Whether threads have nothing to share."""
        return is_fixed(self.along) and bool(self.along <= ALONE)

    def columns(self, many: int) -> bool:
        """Whether neighbours in memory are of `many` neighbouring rows."""
        strided = not is_fixed(self.inner) or self.inner > 1
        return strided and (not is_fixed(self.rows) or bool(self.rows >= many))


def lines_of(group: Group) -> Lines | None:
    """The rows of a scan, if the group is one."""
    if len(group.nodes) != 1 or group.nodes[0].op.name not in NAMES:
        return None
    op: Any = group.nodes[0].op
    shape = group.nodes[0].inputs[0].type.shape
    outer, along, inner = (
        extent(count(dims)) for dims in (shape[: op.axis], shape[op.axis : op.axis + 1], shape[op.axis + 1 :])
    )
    return Lines(along, inner, outer * inner)


class Steps:
    """What is scanned, computed in `work`: a state is the extreme and its position, or the one number of the others."""

    def __init__(self, builder: KernelBuilder, name: str, lines: Lines, work: str) -> None:
        (self.x,), self.outputs = builder.inputs, builder.outputs
        self.name, self.along, self.inner = name, lines.along, lines.inner
        self.s, self.work = Tir(), work
        self.dtypes = [work, "int32"] if name in ("cummax", "cummin") else [work]

    def neutral(self) -> list[Expr]:
        """What any state behind it stays itself with."""
        s, work = self.s, self.work
        match self.name:
            case "cumsum" | "cumprod":
                return [s.const(0 if self.name == "cumsum" else 1, work)]
            case "logcumsumexp":
                return [s.const(float("-inf"), work)]
        largest = self.name == "cummax"
        if work.startswith("float"):
            return [s.const(float("-inf" if largest else "inf"), work), tirx.const(0, "int32")]
        bits = numpy_dtype(work).itemsize * 8
        low, high = (0, 2**bits - 1) if work == "uint8" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        # The code generator writes the lowest int64 as the negation of a number that is none.
        lowest = tirx.const(low + 1, work) - tirx.const(1, work) if low else tirx.const(0, work)
        return [lowest if largest else tirx.const(high, work), tirx.const(0, "int32")]

    def combined(self, a: State, b: State) -> list[Expr]:
        """Of a state and the one of what comes behind it."""
        s = self.s
        match self.name:
            case "cumsum":
                return [held(s.wrapping(operator.add, a[0], b[0]))]
            case "cumprod":
                return [held(s.wrapping(operator.mul, a[0], b[0]))]
            case "logcumsumexp":
                low, high = s.bind(s.minimum(a[0], b[0])), s.bind(s.maximum(a[0], b[0]))
                # Two equal infinities have no difference.
                same = tirx.And(s.eq(low, high), s.call("isinf", low))
                summed = s.call("log1p", s.call("exp", low - high)) + high
                return [held(s.select(same, b[0], summed))]
        old, new = s.bind(a[0]), s.bind(b[0])
        better = s.cast(new >= old if self.name == "cummax" else new <= old, "int32")
        if self.work.startswith("float"):
            better = T.bitwise_or(held(better), s.cast(s.is_nan(new), "int32"))
        better = held(better)
        return [held(tirx.Select(better != 0, y, x)) for x, y in ((old, new), (a[1], b[1]))]

    def offset(self, base: Expr, step: Expr) -> Expr:
        return base + step * self.inner

    def base(self, row: Expr) -> Expr:
        """The first element of a row."""
        if is_fixed(self.inner) and self.inner == 1:
            return held(row * self.along)
        number = tirx.floordiv(row, self.inner) * (self.along * self.inner)
        return held(number + tirx.floormod(row, self.inner))

    def element(self, base: Expr, step: Expr) -> list[Expr]:
        value = held(self.s.cast(self.x[self.offset(base, step)], self.work))
        return [value, step][: len(self.dtypes)]

    def store(self, base: Expr, step: Expr, state: State) -> None:
        place = held(self.offset(base, step))
        self.outputs[0].store(place, self.s.cast(state[0], self.x.dtype))
        if len(state) > 1:
            self.outputs[1].store(place, T.Cast("int64", state[1]))

    def states(self, size: int = 1) -> list[Buffer]:
        return [private(size, dtype) for dtype in self.dtypes]

    def chain(self, row: Expr) -> None:
        """A row by one thread."""
        base, state = self.base(row), self.states()
        put(state, self.neutral())
        with T.serial(0, self.along) as step:
            put(state, self.combined(of(state), self.element(base, step)))
            self.store(base, step, of(state))

    def load_own(self, base: Expr, first: Expr, own: Sequence[Buffer], items: int) -> None:
        """This thread's elements of a tile, from `first` on, scanned."""
        for item in range(items):
            # Behind the end the last element comes again: nothing that is stored has it before itself.
            element = self.element(base, held(smaller(first + item, self.along - 1)))
            put(own, self.combined(of(own, item - 1), element) if item else element, item)

    def store_own(self, base: Expr, first: Expr, prefix: Sequence[Buffer], own: Sequence[Buffer], items: int) -> None:
        """The results of a thread's elements; `prefix` is the state of what stands before them."""
        for item in range(items):
            with when(first + item < self.along):
                self.store(base, held(first + item), self.combined(of(prefix), of(own, item)))


def of(state: Sequence[Buffer], place: Expr = 0) -> list[Expr]:
    return [held(part[place]) for part in state]


def put(state: Sequence[Buffer], values: State, place: Expr = 0) -> None:
    for part, value in zip(state, values, strict=True):
        part.store(place, value)
