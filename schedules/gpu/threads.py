"""Binding loops to the threads of a GPU.

A kernel's function holds one region of bound threads after the other. Each is a launch of its own: what one has written
the next one reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..sizes import Extent, ceil_div, is_fixed
from ..tir import when

Expr = Any
THREADS = 64  # of a workgroup: a multiple of every device's subgroup, small enough to leave registers


@contextmanager
def each_thread(count: Extent, threads: int = THREADS) -> Iterator[Expr]:
    """A region with one thread for each number below `count`; surplus threads of the last workgroup do nothing."""
    groups = ceil_div(count, threads)
    with T.launch_thread("blockIdx.x", groups) as block, T.launch_thread("threadIdx.x", threads) as thread:
        position = block * threads + thread
        whole = is_fixed(count) and count % threads == 0
        with when(None if whole else position < count):
            yield position


def onto_threads(function: Any, threads: int = THREADS) -> Any:
    """A function of plain loops with its outermost ones bound: every `parallel` loop is a region with a thread for each
    of its turns; what stands between them runs in regions of one thread."""
    body = list(function.body.seq) if isinstance(function.body, tirx.SeqStmt) else [function.body]
    head = [item for item in body if isinstance(item, tirx.DeclBuffer)]
    steps = [item for item in body if not isinstance(item, tirx.DeclBuffer | tirx.stmt.Return)]
    end = [item for item in body if isinstance(item, tirx.stmt.Return)]
    regions: list[Any] = []
    waiting: list[Any] = []

    def flush() -> None:
        if waiting:
            regions.append(_single(tirx.stmt_seq(*waiting)))
            waiting.clear()

    # Memory of the function's own lives within one thread.
    alone = any(isinstance(item, tirx.AllocBuffer | tirx.Bind) for item in steps)
    for item in steps:
        if alone or not _is_parallel(item):
            waiting.append(item)
        else:
            flush()
            regions.append(_spread(item, threads))
    flush()
    return function.with_body(tirx.SeqStmt([*head, *regions, *end]))


def _is_parallel(item: Any) -> bool:
    return isinstance(item, tirx.For) and tirx.ForKind(item.kind) is tirx.ForKind.PARALLEL


def _single(body: Any) -> Any:
    return _bound([("threadIdx.x", 1)], lambda _: body)


def _spread(loop: Any, threads: int) -> Any:
    """A thread for every turn of a loop that starts at 0."""
    assert isinstance(loop.min, tirx.IntImm)
    assert loop.min.value == 0
    fixed = isinstance(loop.extent, tirx.IntImm)
    count = int(loop.extent.value) if fixed else loop.extent
    threads = min(threads, count) if fixed else threads

    def body(index: Sequence[Expr]) -> Any:
        position = index[0] * threads + index[1]
        inside = tirx.SeqStmt([tirx.Bind(loop.loop_var, position), loop.body])
        return inside if fixed and count % threads == 0 else tirx.IfThenElse(position < loop.extent, inside, None)

    return _bound([("blockIdx.x", ceil_div(count, threads)), ("threadIdx.x", threads)], body)


def _bound(axes: Sequence[tuple[str, Extent]], body: Any) -> Any:
    variables = [tirx.Var(tag.replace(".", "_"), "int32") for tag, _ in axes]
    statement = body(variables)
    for variable, (tag, size) in reversed(list(zip(variables, axes, strict=True))):
        extent = tirx.const(size, "int32") if isinstance(size, int) else size
        axis = tirx.IterVar(tvm.ir.Range(0, extent), variable, tirx.IterVar.ThreadIndex, tag)
        statement = tirx.AttrStmt(axis, "thread_extent", extent, statement)
    return statement
