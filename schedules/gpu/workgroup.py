"""Workgroups of threads that share memory. Nothing here takes a subgroup width for granted.

One axis of workgroups and one of threads: the back end spreads more workgroups than an axis has over a second one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..sizes import Extent
from ..tir import Buffer, storage_dtype
from ..vectors import held

Expr = Any


@contextmanager
def workgroups(count: Extent, threads: int) -> Iterator[tuple[Expr, Expr]]:
    """A kernel of `count` workgroups of `threads`; gives the index of each."""
    with T.launch_thread("blockIdx.x", count) as group, T.launch_thread("threadIdx.x", threads) as thread:
        yield group, thread


def private(size: int, dtype: str = "float32") -> Buffer:
    """An array of the thread; registers, where all indices are constants."""
    return Buffer(T.alloc_buffer((size,), storage_dtype(dtype), scope="local"), dtype, size)


def shared(size: int, dtype: str = "float32") -> Buffer:
    """An array of the workgroup."""
    return Buffer(T.alloc_buffer((size,), storage_dtype(dtype), scope="shared"), dtype, size)


def barrier() -> None:
    """All threads of the workgroup arrive before one goes on; what they wrote to shared memory is seen."""
    T.evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))


def tree(
    count: int,
    thread: Expr,
    arrays: Sequence[Buffer],
    combine: Callable[[Sequence[Expr], Sequence[Expr]], Sequence[Expr]],
) -> None:
    """Element 0 of the shared `arrays` becomes the combination of all `count` (a power of two) elements, one a thread.

    Each step combines an element with the one half the number above: the order is fixed, whatever the device.
    """
    distance = count // 2
    while distance:
        barrier()
        with T.If(thread < distance), T.Then():
            left = [held(array[thread]) for array in arrays]
            right = [held(array[thread + distance]) for array in arrays]
            for array, value in zip(arrays, combine(left, right), strict=True):
                array.store(thread, value)
        distance //= 2
    barrier()
