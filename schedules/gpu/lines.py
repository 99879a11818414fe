"""Rows that are reduced and written again, by softmax and the norms, and reductions of many elements to one.

One workgroup takes a row: each thread walks over every `threads`-th element, so that neighbours read neighbours, and
the partial results meet in shared memory, in an order that depends on nothing but the number of threads. A
row of one thread needs neither shared memory nor barriers. Where threads can read each other's registers, a row that is
not long has a warp to itself, whose threads need neither: several rows are a workgroup. So it is with subgroups that
have instructions for it, whose size only the running kernel knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..sizes import Extent, ceil_div, is_fixed, machine
from ..tir import local, when
from ..vectors import held
from . import subgroups
from .threads import THREADS, each_thread
from .workgroup import Fold, combined, workgroups

Expr = Any
# From how many elements on a row is worth a workgroup, where there are enough rows to keep the device busy without, and
# where there are not.
LONG, SHORT = 1024, 64
MANY_ROWS = 32
ROW_THREADS = 64
# Elements of a row up to which a warp has it to itself, rows of a workgroup then, and threads of a longer row.
WARP_ROW, WARP_ROWS, LONG_ROW_THREADS = 2048, 4, 256
FEW = 8  # elements that one thread reads as fast as a warp
# Rows of a workgroup whose subgroups have one each: enough for small subgroups, and fewer where that would make too few
# workgroups.
SUBGROUP_ROWS, SOME_ROWS, MANY_GROUPS = 8, 2, 64


@dataclass(frozen=True)
class Walk:
    """The threads of one row: this one is number `thread` of `threads`, a workgroup or the thread alone."""

    thread: Expr
    threads: Any

    @contextmanager
    def over(self, length: Extent) -> Iterator[Expr]:
        """A loop over this thread's elements of a row."""
        if self.threads == 1:
            with T.serial(0, length) as element:
                yield element
            return
        with T.serial(0, (length - self.thread + (self.threads - 1)) // self.threads) as step:
            yield held(step * self.threads + self.thread)

    def reduce(self, length: Extent, dtype: str, first: Expr, element: Callable[[Expr], Expr], fold: Fold) -> Expr:
        """All of `element(0..length)` in one, in every thread; `first` is neutral."""
        (result,) = self.reduce_all(length, dtype, [first], lambda position: [element(position)], fold)
        return result

    def reduce_all(
        self,
        length: Extent,
        dtype: str,
        first: Sequence[Expr],
        elements: Callable[[Expr], Sequence[Expr]],
        fold: Fold,
    ) -> list[Expr]:
        """As `reduce`, several reductions in one loop: of each of the `elements` at a place."""
        states = [local(1, dtype) for _ in first]
        for state, value in zip(states, first, strict=True):
            state.store(0, value)
        with self.over(length) as position:
            for state, value in zip(states, elements(position), strict=True):
                state.store(0, fold.join(state[0], value))
        return self._met([state[0] for state in states], dtype, fold)

    def _met(self, values: Sequence[Expr], dtype: str, fold: Fold) -> list[Expr]:
        """What the values of all threads give, in every thread."""
        if self.threads == 1:
            return [held(value) for value in values]
        return combined(
            self.threads, self.thread, values, [dtype] * len(values),
            lambda left, right: [fold.join(a, b) for a, b in zip(left, right, strict=True)], fold.together,
        )  # fmt: skip


@dataclass(frozen=True)
class SubgroupWalk(Walk):
    """The threads of a subgroup; one that has no row is given the place behind the last element."""

    @contextmanager
    def over(self, length: Extent) -> Iterator[Expr]:
        turns = tirx.truncdiv(length - self.thread + (self.threads - 1), self.threads)
        with T.serial(0, T.min(turns, length)) as step:
            yield held(step * self.threads + self.thread)

    def _met(self, values: Sequence[Expr], dtype: str, fold: Fold) -> list[Expr]:
        return [held(subgroups.together(fold.together, value, dtype)) for value in values]


@contextmanager
def rows_of(rows: Extent, length: Extent, dtype: str = "", *, strided: bool = False) -> Iterator[tuple[Expr, Walk]]:
    """A kernel that takes row after row; gives the row and how to walk over it. `strided`: neighbours in memory are of
    neighbouring rows. `dtype` is what is reduced, if anything is."""
    if machine().subgroups and dtype == "float32":
        with _rows_of_subgroups(rows, length, strided=strided) as (row, walk):
            yield row, walk
        return
    if machine().warp:
        with _rows_of_warps(machine().warp, rows, length, strided=strided) as (row, walk):
            yield row, walk
        return
    if _alone(rows, length):
        with each_thread(rows, min(THREADS, rows) if is_fixed(rows) else THREADS) as row:
            yield row, Walk(0, 1)
        return
    with ExitStack() as stack:
        row, thread = stack.enter_context(workgroups(rows, ROW_THREADS))
        yield row, Walk(thread, ROW_THREADS)


@contextmanager
def _rows_of_warps(warp: int, rows: Extent, length: Extent, *, strided: bool) -> Iterator[tuple[Expr, Walk]]:
    few = is_fixed(length) and length <= FEW
    with ExitStack() as stack:
        if few or (strided and (not is_fixed(rows) or rows >= MANY_ROWS * warp)):
            yield stack.enter_context(each_thread(rows)), Walk(0, 1)
        elif is_fixed(length) and length > WARP_ROW:
            row, thread = stack.enter_context(workgroups(rows, LONG_ROW_THREADS))
            yield row, Walk(thread, LONG_ROW_THREADS)
        else:
            group, thread = stack.enter_context(workgroups(ceil_div(rows, WARP_ROWS), warp * WARP_ROWS))
            row = held(group * WARP_ROWS + tirx.floordiv(thread, warp))
            stack.enter_context(when(None if is_fixed(rows) and rows % WARP_ROWS == 0 else row < rows))
            yield row, Walk(held(tirx.floormod(thread, warp)), warp)


@contextmanager
def _rows_of_subgroups(rows: Extent, length: Extent, *, strided: bool) -> Iterator[tuple[Expr, Walk]]:
    """A workgroup for a row where there are few or they are long; else one for several, which its subgroups take in
    turns, however many these are, and of how many threads. All of them have as many turns, as the threads of one meet
    for certain only where the whole workgroup does."""
    few = is_fixed(rows) and rows < MANY_ROWS and not (is_fixed(length) and length <= ROW_THREADS)
    apart = strided and (not is_fixed(rows) or rows >= MANY_ROWS * ROW_THREADS)
    several = SOME_ROWS if is_fixed(rows) and rows < MANY_GROUPS * SUBGROUP_ROWS else SUBGROUP_ROWS
    with ExitStack() as stack:
        if is_fixed(length) and (length <= FEW or apart):
            yield stack.enter_context(each_thread(rows)), Walk(0, 1)
        elif few or (is_fixed(length) and length > WARP_ROW):
            row, thread = stack.enter_context(workgroups(rows, ROW_THREADS))
            yield row, Walk(thread, ROW_THREADS)
        else:
            group, _ = stack.enter_context(workgroups(ceil_div(rows, several), ROW_THREADS))
            number, count = subgroups.number(), subgroups.count()
            lane, lanes = subgroups.lane(), subgroups.lanes()
            # The bound, which always holds, is for drivers that limit loops.
            turns = T.min(tirx.truncdiv(count + (several - 1), count), several)
            turn = stack.enter_context(T.serial(0, turns))
            place = held(turn * count + number)
            row = held(group * several + place)
            has_row = tirx.all(place < several, row < rows)
            yield row, SubgroupWalk(held(tirx.Select(has_row, lane, length)), lanes)


def _alone(rows: Extent, length: Extent) -> bool:
    """Whether a thread takes a row by itself."""
    if not is_fixed(length):
        return False
    if not is_fixed(rows):
        return bool(length < SHORT)
    return bool(length < (LONG if rows >= MANY_ROWS else SHORT))
