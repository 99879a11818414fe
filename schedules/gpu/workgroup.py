"""Workgroups of threads that share memory. Nothing here takes a subgroup width for granted.

One axis of workgroups and one of threads: the back end spreads more workgroups than an axis has over a second one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.ops.dtypes import numpy_dtype

from ..sizes import Extent, machine
from ..tir import Buffer, storage_dtype
from ..vectors import held
from . import subgroups

Expr = Any
# Scopes that are shared memory to all of TVM but ThreadSync; StorageRewrite puts into one array what has the same one.
UNWATCHED = "shared.unwatched"
Join = Callable[[Sequence[Expr], Sequence[Expr]], Sequence[Expr]]


@dataclass(frozen=True)
class Fold:
    """How two values become one, in any order; `together` is the name that subgroups know it by, for float32."""

    join: Callable[[Expr, Expr], Expr]
    together: str = ""


SUM = Fold(lambda a, b: a + b, "sum")


@contextmanager
def workgroups(count: Extent, threads: int) -> Iterator[tuple[Expr, Expr]]:
    """A kernel of `count` workgroups of `threads`; gives the index of each."""
    with T.launch_thread("blockIdx.x", count) as group, T.launch_thread("threadIdx.x", threads) as thread:
        yield group, thread


def private(size: int, dtype: str = "float32") -> Buffer:
    """An array of the thread; registers, where all indices are constants."""
    return Buffer(T.alloc_buffer((size,), storage_dtype(dtype), scope="local"), dtype, size)


def shared(size: int, dtype: str = "float32", *, watched: bool = True) -> Buffer:
    """An array of the workgroup. TVM adds barriers of its own where it does not see that threads use elements of their
    own; around one that is not `watched`, which only SPIR-V has, there are no others than the schedule's."""
    scope = "shared" if watched else f"{UNWATCHED}_{storage_dtype(dtype)}"
    return Buffer(T.alloc_buffer((size,), storage_dtype(dtype), scope=scope), dtype, size)


def barrier() -> None:
    """All threads of the workgroup arrive before one goes on; what they wrote to shared memory is seen."""
    T.evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))


def combined(
    threads: int, thread: Expr, values: Sequence[Expr], dtypes: Sequence[str], combine: Join, together: str = ""
) -> list[Expr]:
    """What the `values` of all threads combine to, in every thread. `threads` is a square number, or of whole warps.

    Two steps, each over the root of the number of threads: a tree would take a barrier for every halving. The order is
    fixed, whatever the device. Where threads can read each other's registers, the first step is over a warp; where
    subgroups have an instruction for what `together` names, over a subgroup, in the device's order.
    """
    if machine().subgroups and together and set(dtypes) == {"float32"}:
        return _by_subgroups(threads, values, together, combine)
    warp = machine().warp
    if warp and threads % warp == 0:
        return _by_warps(warp, threads, thread, values, dtypes, combine)
    fan = math.isqrt(threads)
    assert fan * fan == threads
    every = [shared(threads, dtype) for dtype in dtypes]
    some = [shared(fan, dtype) for dtype in dtypes]
    for array, value in zip(every, values, strict=True):
        array.store(thread, value)
    barrier()
    with T.If(thread < fan), T.Then():
        for array, value in zip(some, _folded(every, fan, lambda i: i * fan + thread, combine), strict=True):
            array.store(thread, value)
    barrier()
    return _folded(some, fan, lambda i: i, combine)


def combined_bytes(threads: int, dtype: str) -> int:
    """What one value in `combined` takes of shared memory at most, in arrays of multiples of 16 bytes."""
    width = int(numpy_dtype(storage_dtype(dtype)).itemsize)
    return sum(-(-size * width // 16) * 16 for size in (threads, math.isqrt(threads)))


def _by_warps(
    warp: int, threads: int, thread: Expr, values: Sequence[Expr], dtypes: Sequence[str], combine: Join
) -> list[Expr]:
    own = _over_warp(warp, values, dtypes, combine)
    if threads == warp:
        return own
    number = tirx.floordiv(thread, warp)
    some = [shared(threads // warp, dtype) for dtype in dtypes]
    with T.If(tirx.floormod(thread, warp) == 0), T.Then():
        for array, value in zip(some, own, strict=True):
            array.store(number, value)
    barrier()
    return _folded(some, threads // warp, lambda i: i, combine)


def _by_subgroups(threads: int, values: Sequence[Expr], together: str, combine: Join) -> list[Expr]:
    """As many partial results as there are subgroups, of one thread each or of all, meet in shared memory."""
    own = [held(subgroups.together(together, value, "float32")) for value in values]
    some = [shared(threads) for _ in values]
    number, first = subgroups.number(), subgroups.is_first()
    with T.If(first), T.Then():
        for array, value in zip(some, own, strict=True):
            array.store(number, value)
    barrier()
    return _folded(some, T.min(subgroups.count(), threads), lambda i: i, combine)


def _over_warp(warp: int, values: Sequence[Expr], dtypes: Sequence[str], combine: Join) -> list[Expr]:
    """What the `values` of a warp's threads combine to, in all of them: by halves, in registers."""
    states = [private(1, dtype) for dtype in dtypes]
    for state, value in zip(states, values, strict=True):
        state.store(0, value)
    distance = warp // 2
    while distance:
        others = [held(exchanged(T.tvm_warp_shuffle_down, state, distance, warp)) for state in states]
        results = [held(x) for x in combine([state[0] for state in states], others)]
        for state, value in zip(states, results, strict=True):
            state.store(0, value)
        distance //= 2
    # Only the first thread has met all others.
    return [held(exchanged(T.tvm_warp_shuffle, state, 0, warp)) for state in states]


def exchanged(shuffle: Callable[..., Expr], state: Buffer, lane: int, warp: int) -> Expr:
    """Another thread's state. Types of fewer than 32 bits go as int32."""
    stored = storage_dtype(state.dtype)
    small = stored in ("int8", "uint8", "int16", "uint16")
    value = state.handle[0]
    value = shuffle(tirx.const(0xFFFFFFFF, "uint32"), T.Cast("int32", value) if small else value, lane, warp, warp)
    value = T.Cast(stored, value) if small else value
    return tirx.NE(value, tirx.const(0, "int8")) if state.dtype == "bool" else value


def _folded(arrays: Sequence[Buffer], count: Extent, place: Callable[[Expr], Expr], combine: Join) -> list[Expr]:
    """`count` elements of each array combined in order."""
    states = [private(1, array.dtype) for array in arrays]
    for state, array in zip(states, arrays, strict=True):
        state.store(0, array[place(0)])
    with T.serial(1, count) as i:
        elements = [held(array[place(i)]) for array in arrays]
        results = [held(x) for x in combine([state[0] for state in states], elements)]
        for state, value in zip(states, results, strict=True):
            state.store(0, value)
    return [held(state[0]) for state in states]
