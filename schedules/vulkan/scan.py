"""Running sums, products, extremes and log-sum-exps of long rows on graphics cards: a workgroup for each row.

A thread has some neighbouring elements of a tile and scans them in registers. The totals of all threads are scanned in
shared memory, each joined with the one 1, 2, 4, ... threads before it (Hillis and Steele, "Data parallel algorithms",
1986; the tiles as in Harris, Sengupta and Owens, "Parallel prefix sum (scan) with CUDA", GPU Gems 3, chapter 39), from
one half of the memory to the other, so that a step takes one barrier. The tile's total is carried to the next one. All
threads come to every barrier, nothing is known of subgroups, and the order is fixed: the same bits at every call and on
every device. Limited by memory, log-sum-exps by their functions.

Short rows, many rows that are not long, and columns where there are many, are left to the rule that gives a thread to
each, and so is everything on processors, where barriers are dear.

Parts of a row may overflow, or become 0, where the whole does not, and must not spoil what comes behind them. Devices
need not have anything wider than float32, so that states keep more than one number:

- a sum, and that of the elements less a factor that no sum can overflow with, which counts where the first one is not
  finite: one of them was large then, and what the other loses of small elements is below its roundings.
- a product as a mantissa and the power of a large number, so that none is too large or too small.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.wide import wide_dtype
from transpiler.target import Target

from ..fuse import lowered
from ..gpu.lines import MANY_ROWS, ROW_THREADS
from ..gpu.scan import Lines, State, Steps, lines_of, of, put
from ..gpu.workgroup import barrier, shared, workgroups
from ..sizes import ceil_div, count, is_empty, is_fixed
from ..tir import KernelBuilder, when
from ..vectors import held

Expr = Any
# From how many rows on that many elements are left to one thread.
MANY, SHORT = 4096, 128
# Threads of a row, and elements of each in a tile: of rows of up to TWO_TILES elements, and of longer ones.
ITEMS, LONG_ITEMS, LONG_THREADS = 4, 8, 256
TWO_TILES = 2 * ROW_THREADS * ITEMS
# Sums of less than 2^31 elements, each less this factor, are finite.
SMALLER = 2.0**-32
# Mantissas of products are below the first number and not below its inverse, their powers are those of its square.
# Elements are, having been divided twice.
BASES = {"float32": 2.0**32, "float64": 2.0**256}
# Beyond so many powers a product is infinite or 0, in float64 as well.
MOST_POWERS = 1 << 24


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    lines = lines_of(group) if target.gpu.staged else None
    if lines is None or lines.short or lines.columns(MANY_ROWS * ROW_THREADS) or _many(lines):
        return None
    node = group.nodes[0]
    x = node.inputs[0].type
    if is_empty(x.shape):
        return None
    kinds: dict[str, type[_Steps]] = {"cumsum": _Sums, "cumprod": _Products}
    work = wide_dtype(x.dtype)
    kind = kinds.get(node.op.name, _Steps) if work.startswith("float") else _Steps
    few = is_fixed(lines.along) and lines.along <= TWO_TILES
    threads = ROW_THREADS if few else LONG_THREADS
    # Functions are long code, and what limits log-sum-exps.
    items = ITEMS if few or node.op.name == "logcumsumexp" else LONG_ITEMS
    builder = KernelBuilder(name, [x], [value.type for value in node.outputs])
    with builder, workgroups(lines.rows, threads) as (row, thread):
        kind(builder, node.op.name, lines, work).scan(held(row), thread, threads, items)
    return lowered(group, builder, flops=count(x.shape))


def _many(lines: Lines) -> bool:
    return is_fixed(lines.rows, lines.along) and lines.rows >= MANY and lines.along < SHORT


class _Steps(Steps):
    def scan(self, row: Expr, thread: Expr, threads: int, items: int) -> None:
        """A row by the threads of a workgroup, a power of two."""
        base = self.base(row)
        carry, state, prefix, own = self.states(), self.states(), self.states(), self.states(items)
        totals = [shared(2 * threads, dtype, watched=False) for dtype in self.dtypes]
        put(carry, self.neutral())
        with T.serial(0, ceil_div(self.along, threads * items)) as tile:
            first = held((tile * threads + thread) * items)
            self.load_own(base, first, own, items)
            put(state, of(own, items - 1))
            put(totals, of(state), thread)
            barrier()
            steps = threads.bit_length() - 1
            with T.serial(0, steps) as step:
                distance = held(T.shift_left(tirx.const(1, "int32"), step))
                source = held(T.bitwise_and(step, tirx.const(1, "int32")) * threads)
                joined = self.combined(of(totals, held(source + T.max(thread - distance, 0))), of(state))
                with when(thread >= distance):
                    put(state, joined)
                put(totals, of(state), held(threads - source + thread))
                barrier()
            last = steps % 2 * threads
            put(prefix, of(carry))
            with when(thread > 0):
                put(prefix, self.combined(of(carry), of(totals, held(last + T.max(thread - 1, 0)))))
            put(carry, self.combined(of(carry), of(totals, last + threads - 1)))
            self.store_own(base, first, prefix, own, items)
            barrier()


class _Sums(_Steps):
    """Of floats: the sum, and the one of smaller elements."""

    def __init__(self, builder: KernelBuilder, name: str, lines: Lines, work: str) -> None:
        super().__init__(builder, name, lines, work)
        self.dtypes = [work, work]

    def neutral(self) -> list[Expr]:
        return [self.s.const(0, self.work)] * 2

    def combined(self, a: State, b: State) -> list[Expr]:
        return [held(left + right) for left, right in zip(a, b, strict=True)]

    def element(self, base: Expr, step: Expr) -> list[Expr]:
        (x,) = super().element(base, step)[:1]
        return [x, held(x * self.s.const(SMALLER, self.work))]

    def store(self, base: Expr, step: Expr, state: State) -> None:
        s, work = self.s, self.work
        largest = s.const(float(np.finfo(work).max), work)
        total, smaller = state
        whole = smaller * s.const(1 / SMALLER, work)
        total = held(s.select(T.abs(total) <= largest, total, whole))
        # Drivers take 0 + x for x, which may be the other zero.
        zero = s.const(0, work)
        super().store(base, step, [held(s.select(s.eq(total, zero), zero, total))])


class _Products(_Steps):
    """Of floats: a mantissa and an int that is a power of a base."""

    def __init__(self, builder: KernelBuilder, name: str, lines: Lines, work: str) -> None:
        super().__init__(builder, name, lines, work)
        self.dtypes = [work, "int32"]
        self.bound = BASES[work]

    def neutral(self) -> list[Expr]:
        return [self.s.const(1, self.work), tirx.const(0, "int32")]

    def combined(self, a: State, b: State) -> list[Expr]:
        mantissa, power = self.scaled(held(a[0] * b[0]), held(a[1] + b[1]))
        return [mantissa, held(T.max(T.min(power, MOST_POWERS), -MOST_POWERS))]

    def element(self, base: Expr, step: Expr) -> list[Expr]:
        (x,) = super().element(base, step)[:1]
        return self.scaled(*self.scaled(x, tirx.const(0, "int32")))

    def scaled(self, x: Expr, power: Expr) -> list[Expr]:
        """The same, nearer to 1; zeros, and what is no number, stay as they are."""
        s, work = self.s, self.work
        size, zero, base = held(T.abs(x)), s.const(0, work), self.bound**2
        large = held(s.cast(size >= s.const(self.bound, work), "int32"))
        small = held(s.cast(s.logical_and(size < s.const(1 / self.bound, work), size > zero), "int32"))
        factor = tirx.Select(large != 0, s.const(1 / base, work), s.const(1, work))
        factor = tirx.Select(small != 0, s.const(base, work), factor)
        return [held(x * held(factor)), held(power + large - small)]

    def store(self, base: Expr, step: Expr, state: State) -> None:
        s, work = self.s, self.work
        value, power = state
        for count_ in (1, 2, 3):  # by then nothing is between 0 and infinity
            factor = tirx.Select(power >= count_, s.const(self.bound**2, work), s.const(1, work))
            factor = tirx.Select(power <= -count_, s.const(self.bound**-2, work), factor)
            value = held(value * held(factor))
        super().store(base, step, [value])
