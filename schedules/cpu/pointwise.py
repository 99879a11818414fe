"""Element-wise and index-mapping groups: one pass over the output.

Each output element is one expression of input elements, so the kernel is limited by the bytes it moves (one read of
each input, one write). The outer dims are one parallel loop, the last dim is the vector loop. Groups that are purely
element-wise merge adjacent dims first, so that the vector loop is as long as broadcasting allows.
"""

from __future__ import annotations

from typing import Any

from transpiler.group import Group, Lowered
from transpiler.ops.base import Elementwise, Injective
from transpiler.target import Target

from ..fuse import Inline, lowered, merge_dims, needs_status, output_loops, probe
from ..scalar import Tir
from ..sizes import count, extent, is_large
from ..tir import KernelBuilder, unflatten


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if group.anchor is not None or len(group.outputs) != 1:
        return None
    if not all(isinstance(node.op, Elementwise | Injective) for node in group.nodes):
        return None
    output = group.outputs[0]
    shape = output.type.shape
    size = count(shape)
    checks = needs_status(group)
    builder = KernelBuilder(
        name,
        [value.type for value in group.inputs],
        [output.type],
        checks_index=checks,
        noalias=not all(isinstance(node.op, Elementwise) for node in group.nodes),
    )
    with builder:
        needs = probe(group, builder, output)
        runs = [[axis] for axis in range(len(shape))]
        if all(isinstance(node.op, Elementwise) for node in group.nodes):
            runs = merge_dims([value.type.shape for value in group.inputs], shape)
        extents = [[shape[axis] for axis in run] for run in runs]

        def body(merged: list[Any]) -> None:
            index = [
                position
                for fused, run in zip(merged, extents, strict=True)
                for position in (unflatten(fused, run) if len(run) > 1 else [fused])
            ]
            s = Tir(status=builder.status)
            offset: Any = 0
            for position, run in zip(merged, extents, strict=True):
                offset = offset * extent(count(run)) + position
            builder.outputs[0].store(offset, Inline(group, builder, s).value(output, index))

        output_loops(
            [count(run) for run in extents],
            body,
            vector=not needs.scalar_only,
            temporaries=needs.binds,
            parallel=is_large(size * (1 + needs.cost)),
        )
    return lowered(group, builder, flops=size * needs.cost)
