"""Running sums, products, extremes and log-sum-exps: rows in parallel, and along a row by warps.

A thread has some neighbouring elements of a tile and scans them in registers; the lanes of a warp scan their totals by
exchanges of 1, 2, 4, 8 and 16 lanes, the warps of a block theirs in shared memory, and the tile's total is carried to
the next one. The order is fixed: the same bits at every call. A row that is not long has a warp to itself and no
barrier; short rows, and columns where there are many, have one thread. Limited by memory, log-sum-exps by their
functions.

Sums and products of float32 are made in float64, as PyTorch's are on CPUs: parts of a row that overflow would spoil
what comes behind them though the whole does not. Products of float64, which have nothing wider, are made element after
element.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.dtypes import numpy_dtype
from transpiler.ops.wide import wide_dtype
from transpiler.target import Target

from ..fuse import lowered
from ..gpu.lines import MANY_ROWS, Walk, rows_of
from ..gpu.threads import each_thread
from ..gpu.workgroup import barrier, exchanged, private, shared
from ..scalar import Tir
from ..sizes import Extent, ceil_div, count, extent, is_empty, is_fixed, smaller
from ..tir import Buffer, KernelBuilder, when
from ..vectors import held

Expr = Any
State = Sequence[Expr]
ALONE = 32  # elements of a row up to which a thread takes it by itself
# Elements of a thread in a tile: of a warp's row, and of a block's.
ITEMS, LONG_ITEMS = 4, 8
NAMES = ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if len(group.nodes) != 1 or group.nodes[0].op.name not in NAMES:
        return None
    node = group.nodes[0]
    op: Any = node.op
    x = node.inputs[0].type
    outer, along, inner = (
        extent(count(dims)) for dims in (x.shape[: op.axis], x.shape[op.axis : op.axis + 1], x.shape[op.axis + 1 :])
    )
    rows = outer * inner
    short = is_fixed(along) and along <= ALONE
    strided = not is_fixed(inner) or inner > 1
    columns = strided and (not is_fixed(rows) or rows >= MANY_ROWS * target.gpu.subgroup)
    builder = KernelBuilder(name, [x], [value.type for value in node.outputs])
    with builder:
        if not is_empty(x.shape):
            steps = _Steps(builder, op.name, along, inner)
            if short or columns or (op.name, x.dtype) == ("cumprod", "float64"):
                with each_thread(rows) as row:
                    steps.chain(held(row))
            else:
                with rows_of(rows, along) as (row, walk):
                    steps.scan(row, walk, target.gpu.subgroup)
    return lowered(group, builder, flops=count(x.shape))


class _Steps:
    """What is scanned: a state is the extreme and its position, or the one number of the others."""

    def __init__(self, builder: KernelBuilder, name: str, along: Extent, inner: Extent) -> None:
        (self.x,), self.outputs = builder.inputs, builder.outputs
        self.name, self.along, self.inner = name, along, inner
        self.s = Tir()
        work = wide_dtype(self.x.dtype)
        if name in ("cumsum", "cumprod") and work == "float32":
            work = "float64"
        self.work = work
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
        _put(state, self.neutral())
        with T.serial(0, self.along) as step:
            _put(state, self.combined(_of(state), self.element(base, step)))
            self.store(base, step, _of(state))

    def scan(self, row: Expr, walk: Walk, warp: int) -> None:
        """A row by the threads of `walk`: a warp, or a block of them."""
        base, items = self.base(row), ITEMS if walk.threads == warp else LONG_ITEMS
        lane = held(tirx.floormod(walk.thread, warp))
        carry, state, prefix, own = self.states(), self.states(), self.states(), self.states(items)
        many = walk.threads // warp
        sums = [shared(many, dtype) for dtype in self.dtypes] if many > 1 else []
        _put(carry, self.neutral())
        with T.serial(0, ceil_div(self.along, walk.threads * items)) as tile:
            first = held((tile * walk.threads + walk.thread) * items)
            for item in range(items):
                # Behind the end the last element comes again: nothing that is stored has it before itself.
                element = self.element(base, held(smaller(first + item, self.along - 1)))
                _put(own, self.combined(_of(own, item - 1), element) if item else element, item)
            _put(state, _of(own, items - 1))
            distance = 1
            while distance < warp:
                others = [held(exchanged(T.tvm_warp_shuffle_up, part, distance, warp)) for part in state]
                joined = self.combined(others, _of(state))
                with when(lane >= distance):
                    _put(state, joined)
                distance *= 2
            before = [held(exchanged(T.tvm_warp_shuffle_up, part, 1, warp)) for part in state]
            if many > 1:
                number = held(tirx.floordiv(walk.thread, warp))
                with when(lane == warp - 1):
                    _put(sums, _of(state), number)
                barrier()
                with T.serial(0, many) as other:
                    with when(other == number):
                        _put(prefix, _of(carry))
                    _put(carry, self.combined(_of(carry), [held(part[other]) for part in sums]))
                barrier()
            else:
                _put(prefix, _of(carry))
                total = [held(exchanged(T.tvm_warp_shuffle, part, warp - 1, warp)) for part in state]
                _put(carry, self.combined(_of(carry), total))
            with when(lane > 0):
                _put(prefix, self.combined(_of(prefix), before))
            for item in range(items):
                with when(first + item < self.along):
                    self.store(base, held(first + item), self.combined(_of(prefix), _of(own, item)))


def _of(state: Sequence[Buffer], place: Expr = 0) -> list[Expr]:
    return [held(part[place]) for part in state]


def _put(state: Sequence[Buffer], values: State, place: Expr = 0) -> None:
    for part, value in zip(state, values, strict=True):
        part.store(place, value)
