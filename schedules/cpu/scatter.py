"""Scatter, its reductions and index_put: copy x, then write the updates one after the other in row-major order.

Serial on purpose: repeated indices have one meaning (the last one wins, sums have one order) whatever the
number of threads. Each index is checked once; an index out of bounds sets the status word. Limited by the
latency of a dependent read and write per update.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ir import TensorType
from transpiler.ops.base import broadcast_shapes
from transpiler.target import Target

from ..fuse import lowered
from ..sizes import count, extent, is_empty
from ..tir import KernelBuilder, Tir, flat_offset
from ..vectors import held
from .rows import lane_loop

Expr = Any

EPILOGUE = False
PROLOGUE = False

# The new element from the old one and the update.
Combine = Callable[[Tir, Expr, Expr], Expr]
COMBINE: dict[str, Combine] = {
    "scatter": lambda s, old, update: update,
    "scatter_add": lambda s, old, update: s.wrapping(operator.add, old, update),
    "scatter_mul": lambda s, old, update: s.wrapping(operator.mul, old, update),
    "scatter_max": lambda s, old, update: s.maximum(old, update),
    "scatter_min": lambda s, old, update: s.minimum(old, update),
}


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if len(group.nodes) != 1 or group.nodes[0].op.name not in (*COMBINE, "index_put"):
        return None
    types = [value.type for value in group.nodes[0].inputs]
    if len(group.inputs) != len(types):  # a tensor given twice: the inputs are looked up by position below
        positions = [group.input_index(value) for value in group.nodes[0].inputs]
    else:
        positions = list(range(len(types)))
    op: Any = group.nodes[0].op
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type], checks_index=True)
    updates: Dim
    with builder:
        if not is_empty(types[0].shape):
            lane_loop(
                extent(count(types[0].shape)),
                lambda at: builder.outputs[0].store(at, builder.inputs[positions[0]][at]),
            )
            if op.name == "index_put":
                updates = _index_put(
                    builder, positions, types, op.axes, COMBINE["scatter_add" if op.accumulate else "scatter"]
                )
            else:
                updates = _scatter(builder, positions, types, op.axis, COMBINE[op.name])
        else:
            updates = 0
    return lowered(group, builder, flops=updates)


def _nest(shape: Sequence[Dim], body: Any) -> None:
    """A loop per dim."""

    def level(index: list[Expr]) -> None:
        if len(index) == len(shape):
            body(index)
        else:
            with T.serial(0, extent(shape[len(index)])) as position:
                level([*index, position])

    if not is_empty(shape):
        level([])


def _scatter(builder: KernelBuilder, positions: list[int], types: list[TensorType], axis: int, combine: Combine) -> Dim:
    x, indices, source = (item.shape for item in types)
    output = builder.outputs[0]
    s = Tir(status=builder.status)

    def update(index: list[Expr]) -> None:
        row = s.index(builder.inputs[positions[1]][flat_offset(index, indices)], x[axis])
        at = held(flat_offset([*index[:axis], row, *index[axis + 1 :]], x))
        value = builder.inputs[positions[2]][flat_offset(index, source)]
        output.store(at, combine(s, output[at], value))

    _nest(indices, update)
    updates: Dim = count(indices)
    return updates


def _index_put(
    builder: KernelBuilder, positions: list[int], types: list[TensorType], axes: tuple[int, ...], combine: Combine
) -> Dim:
    """The box of the index tensors outside, the untouched axes inside, in the order of the indexed shape."""
    x, values, *picks = (item.shape for item in types)
    box = broadcast_shapes(*picks)
    kept = [axis for axis in range(len(x)) if axis not in axes]
    adjacent = list(axes) == list(range(axes[0], axes[0] + len(axes)))
    front = axes[0] if adjacent else 0
    shape = [*(x[axis] for axis in kept[:front]), *box, *(x[axis] for axis in kept[front:])]
    s = Tir(status=builder.status)

    def update(index: list[Expr]) -> None:
        boxed = index[front : front + len(box)]
        free = iter([*index[:front], *index[front + len(box) :]])
        chosen = {}
        for axis, position, pick in zip(axes, positions[2:], picks, strict=True):
            own = [0 if dim == 1 else i for dim, i in zip(pick, boxed[len(box) - len(pick) :], strict=True)]
            chosen[axis] = s.index(builder.inputs[position][flat_offset(own, pick)], x[axis])
        target = [chosen[axis] if axis in chosen else next(free) for axis in range(len(x))]
        own = [0 if dim == 1 else i for dim, i in zip(values, index[len(shape) - len(values) :], strict=True)]
        at = held(flat_offset(target, x))
        value = builder.inputs[positions[1]][flat_offset(own, values)]
        builder.outputs[0].store(at, combine(s, builder.outputs[0][at], value))

    _nest(shape, update)
    updates: Dim = count(shape)
    return updates
