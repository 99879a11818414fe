"""Joining more tensors than a kernel may have buffers: a launch for each run of them, which writes their part of the
result, a thread for each element there. Nothing is copied twice; limited by the bytes that it moves.

Those of fewer tensors are plain kernels, which other ops can be fused with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ir import Node, Value
from transpiler.ops.shape import Concat
from transpiler.target import Target

from ..fuse import Inline, lowered, needs_status
from ..gpu.threads import each_thread
from ..scalar import Tir
from ..sizes import count, extent, extents, is_empty
from ..tir import KernelBuilder, flat_offset, unflatten

Expr = Any


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.nodes[-1]
    most = target.gpu.buffers - len(group.outputs)
    if group.anchor is not None or not isinstance(node.op, Concat) or len(group.inputs) <= most or needs_status(group):
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    start: Dim = 0
    with builder:
        for run in _runs(group, node, most):
            _copy(group, builder, node.op, run, start)
            start = start + sum(value.shape[node.op.axis] for value in run)
    return lowered(group, builder, flops=0)


def _runs(group: Group, node: Node, most: int) -> list[list[Value]]:
    """Neighbouring operands that are computed from no more than `most` buffers together, if one alone is not."""
    runs: list[list[Value]] = []
    read: set[str] = set()
    for value in node.inputs:
        own = _sources(group, value)
        if not runs or len(read | own) > most:
            runs.append([])
            read = set()
        runs[-1].append(value)
        read |= own
    return runs


def _sources(group: Group, value: Value) -> set[str]:
    """The inputs of the group that a value is computed from."""
    made = {output.name: node for node in group.nodes for output in node.outputs}
    if value.name not in made:
        return {value.name}
    return set().union(*(_sources(group, item) for item in made[value.name].inputs))


def _copy(group: Group, builder: KernelBuilder, op: Concat, run: Sequence[Value], start: Dim) -> None:
    """The elements of `run`, which begin at `start` along the axis of the result."""
    axis, types = op.axis, [value.type for value in run]
    shape = list(types[0].shape)
    shape[axis] = sum(type_.shape[axis] for type_ in types)
    if is_empty(shape):
        return
    with each_thread(count(extents(shape))) as position:
        s = Tir()
        inline = Inline(group, builder, s)
        index = unflatten(position, shape)
        element = op.element(s, [inline.load(value) for value in run], types, index)
        index[axis] = index[axis] + extent(start)
        builder.outputs[0].store(flat_offset(index, group.outputs[0].type.shape), element)
