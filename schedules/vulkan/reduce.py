"""Reductions of many elements to few results: a workgroup for each result.

Each thread reduces every `threads`-th element of the flattened reduced axes, the partial results meet in shared memory.
Reductions to many results are left to the plain rule, where a thread has one to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ops.base import Elementwise, Injective, Reduction
from transpiler.ops.reduce import Argmax, Argmin, AxisReduce, ReduceMean, ReduceSum
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..fuse import Inline, lowered, needs_status
from ..gpu.epilogue import Epilogue
from ..gpu.lines import ROW_THREADS, Walk
from ..gpu.workgroup import combined, workgroups
from ..scalar import Tir
from ..sizes import count, extent, is_empty
from ..tir import KernelBuilder, local, unflatten
from ..vectors import held

Expr = Any
# From how many elements to a result on a workgroup is worth it, for up to MANY results and for more.
LONG, VERY_LONG, MANY = 512, 1 << 14, 64


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    # Their `combine` takes a partial result as an element, in any order.
    if node is None or not isinstance(node.op, AxisReduce | Argmax | Argmin) or not elementwise_epilogue(group):
        return None
    if not all(isinstance(item.op, Elementwise | Injective) for item in group.prologue):
        return None
    op, x, shape = node.op, node.inputs[0], node.output.type.shape
    axes = (op.axis,) if isinstance(op, Argmax | Argmin) else op.axes
    reduced = tuple(x.shape[axis] for axis in axes)
    length, results = count(reduced), count(shape)
    if is_empty(shape) or not _is_long(length, results):
        return None
    builder = KernelBuilder(
        name,
        [value.type for value in group.inputs],
        [group.outputs[0].type],
        checks_index=needs_status(group),
    )

    def reduction_at(s: Tir, index: Sequence[Expr]) -> Reduction:
        load = Inline(group, builder, s).load(x)
        return op.reduction(s, [load], [x.type], index)

    with builder, workgroups(extent(results), ROW_THREADS) as (result, thread):
        s = Tir(status=builder.status)
        index = [held(i) for i in unflatten(result, shape)]
        reduction = reduction_at(s, index)
        dtypes = [s.dtype(value) for value in reduction.init]
        states = [local(1, dtype) for dtype in dtypes]
        for state, value in zip(states, reduction.init, strict=True):
            state.store(0, value)
        with Walk(thread, ROW_THREADS).over(extent(length)) as position:
            element = [s.bind(value) for value in reduction.body([held(i) for i in unflatten(position, reduced)])]
            joined = reduction.combine(tuple(state[0] for state in states), tuple(element))
            joined = tuple(s.bind(value) for value in joined)
            for state, value in zip(states, joined, strict=True):
                state.store(0, value)
        total = combined(
            ROW_THREADS, thread, [state[0] for state in states], dtypes,
            lambda a, b: reduction.combine(tuple(a), tuple(b)),
            "sum" if isinstance(op, ReduceSum | ReduceMean) else "",
        )  # fmt: skip
        with T.If(thread == 0), T.Then():
            Epilogue(group, builder).store(index, reduction.finish(tuple(total)))
    return lowered(group, builder, flops=2 * results * length)


def _is_long(length: Dim, results: Dim) -> bool:
    few = isinstance(results, int) and results <= MANY
    return few if not isinstance(length, int) else length >= (LONG if few else VERY_LONG)
