"""Any group of element-wise ops, index mappings, reductions, products and convolutions: a thread for each element.

The thread computes its output element from memory, with the reduction's loops inside and its accumulators in registers.
Neighbouring threads have neighbouring elements of the last dim, so that what they store, and what element-wise ops
load, is contiguous. Nothing is shared between threads: products and convolutions read every operand as often as it is
used, and are limited by the caches.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.base import Elementwise, Injective, Reduce, Reduction
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..cpu.plain import plain_reduction
from ..fuse import Inline, lowered, needs_status, probe
from ..gpu.threads import each_thread
from ..scalar import Tir
from ..sizes import count, extents, is_empty
from ..tir import KernelBuilder, local, unflatten

Expr = Any


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if len(group.outputs) != 1:
        return None
    return _pointwise(group, name) if group.anchor_node is None else _reduction(group, name)


def _pointwise(group: Group, name: str) -> Lowered | None:
    if not all(isinstance(node.op, Elementwise | Injective) for node in group.nodes):
        return None
    output = group.outputs[0]
    shape = output.type.shape
    builder = KernelBuilder(
        name,
        [value.type for value in group.inputs],
        [output.type],
        checks_index=needs_status(group),
        noalias=not group.overlaid,
    )
    with builder:
        cost = probe(group, builder, output).cost
        if not is_empty(shape):
            with each_thread(count(extents(shape))) as position:
                inline = Inline(group, builder, Tir(status=builder.status))
                builder.outputs[0].store(position, inline.value(output, unflatten(position, shape)))
    return lowered(group, builder, flops=count(shape) * cost)


def _reduction(group: Group, name: str) -> Lowered | None:
    node = group.anchor_node
    assert node is not None
    if len(node.outputs) != 1 or not elementwise_epilogue(group):
        return None
    if not all(isinstance(item.op, Elementwise | Injective) for item in group.prologue):
        return None
    plain = None if isinstance(node.op, Reduce) else plain_reduction(node.op)
    if plain is None and not isinstance(node.op, Reduce):
        return None
    result, output = node.output, group.outputs[0]
    shape = result.type.shape
    types = [value.type for value in node.inputs]
    builder = KernelBuilder(
        name,
        [value.type for value in group.inputs],
        [output.type],
        checks_index=needs_status(group),
    )
    reduced: list[Any] = []

    def reduction_at(s: Tir, index: list[Expr]) -> Reduction:
        inline = Inline(group, builder, s)
        loads = [inline.load(value) for value in node.inputs]
        if plain is not None:
            return plain(s, loads, types, index)
        assert isinstance(node.op, Reduce)
        return node.op.reduction(s, loads, types, index)

    with builder:
        if not is_empty(shape):
            with each_thread(count(extents(shape))) as position:
                s = Tir(status=builder.status)
                index = unflatten(position, shape)
                reduction = reduction_at(s, index)
                reduced += reduction.extents
                value = s.bind(_reduce(s, reduction))
                if output.name != result.name:
                    anchored = {result.name: lambda _index: value}
                    value = Inline(group, builder, s, anchored).value(output, index)
                builder.outputs[0].store(position, value)
    return lowered(group, builder, flops=2 * count(shape) * count(reduced))


def _reduce(s: Tir, reduction: Reduction) -> Expr:
    states = [local(1, s.dtype(value)) for value in reduction.init]
    for state, value in zip(states, reduction.init, strict=True):
        state.store(0, value)
    with ExitStack() as loops:
        inner = [loops.enter_context(T.serial(0, extent)) for extent in extents(reduction.extents)]
        element = tuple(s.bind(value) for value in reduction.body(inner))
        combined = reduction.combine(tuple(state[0] for state in states), element)
        combined = tuple(s.bind(value) for value in combined) if len(states) > 1 else combined
        for state, value in zip(states, combined, strict=True):
            state.store(0, value)
    return reduction.finish(tuple(state[0] for state in states))
