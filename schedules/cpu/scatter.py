"""Scatter, its reductions, index_put and slice_write: copy x, then write the updates in row-major order.

Serial on purpose: repeated indices have one meaning (the last one wins, sums have one order) whatever the
number of threads. Each index is checked once; an index out of bounds sets the status word. Limited by the
latency of a dependent read and write per update.

In place (a state that nobody reads any more as it was) nothing is copied: the output holds x. All indices are checked
before the first write, so that a call with a wrong one leaves the state as it was.
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
from ..scalar import Tir
from ..sizes import count, extent, is_empty
from ..tir import KernelBuilder, flat_offset, when
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
    if len(group.nodes) != 1 or group.nodes[0].op.name not in (*COMBINE, "index_put", "slice_write"):
        return None
    node = group.nodes[0]
    op: Any = node.op
    types = [value.type for value in node.inputs]
    # A tensor given twice is one input of the kernel; x is none if the kernel runs in place.
    positions = [-1 if group.in_place else group.input_index(node.inputs[0])]
    positions += [group.input_index(value) for value in node.inputs[1:]]
    inputs = [value.type for value in group.inputs]
    checks = op.name != "slice_write"
    builder = KernelBuilder(name, inputs, [group.outputs[0].type], checks_index=checks)
    updates: Dim = 0
    with builder:
        if not is_empty(types[0].shape):
            if not group.in_place:
                lane_loop(
                    extent(count(types[0].shape)),
                    lambda at: builder.outputs[0].store(at, builder.inputs[positions[0]][at]),
                )
            elif checks:
                _check_all(builder, op, positions, types)
            with when(builder.status[0] == 0 if builder.status is not None and group.in_place else None):
                updates = _write(builder, op, positions, types)
    return lowered(group, builder, flops=updates, in_place=group.in_place)


def _write(builder: KernelBuilder, op: Any, positions: list[int], types: list[TensorType]) -> Dim:
    if op.name == "slice_write":
        return _slice_write(builder, positions, types, op)
    if op.name == "index_put":
        combine = COMBINE["scatter_add" if op.accumulate else "scatter"]
        return _index_put(builder, positions, types, op, combine)
    return _scatter(builder, positions, types, op.axis, COMBINE[op.name])


def _check_all(builder: KernelBuilder, op: Any, positions: list[int], types: list[TensorType]) -> None:
    """Set the status for every index that is out of bounds."""
    axes = op.axes if op.name == "index_put" else (op.axis,)
    first = 2 if op.name == "index_put" else 1
    s = Tir(status=builder.status)
    for operand, axis in enumerate(axes, first):
        if not is_empty(types[operand].shape):
            with T.serial(0, extent(count(types[operand].shape))) as at:
                s.index(
                    builder.inputs[positions[operand]][at], types[0].shape[axis], op.name == "index_put" and op.wraps
                )


def _slice_write(builder: KernelBuilder, positions: list[int], types: list[TensorType], op: Any) -> Dim:
    x, update = (item.shape for item in types)

    def write(index: list[Expr]) -> None:
        target = [start + i * step for i, start, step in zip(index, op.starts, op.steps, strict=True)]
        builder.outputs[0].store(flat_offset(target, x), builder.inputs[positions[1]][flat_offset(index, update)])

    _nest(update, write)
    updates: Dim = count(update)
    return updates


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
        row = s.index(builder.inputs[positions[1]][flat_offset(index, indices)], x[axis], wraps=False)
        at = held(flat_offset([*index[:axis], row, *index[axis + 1 :]], x))
        value = builder.inputs[positions[2]][flat_offset(index, source)]
        output.store(at, combine(s, output[at], value))

    _nest(indices, update)
    updates: Dim = count(indices)
    return updates


def _index_put(builder: KernelBuilder, positions: list[int], types: list[TensorType], op: Any, combine: Combine) -> Dim:
    """The box of the index tensors outside, the untouched axes inside, in the order of the indexed shape."""
    axes = op.axes
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
            chosen[axis] = s.index(builder.inputs[position][flat_offset(own, pick)], x[axis], op.wraps)
        target = [chosen[axis] if axis in chosen else next(free) for axis in range(len(x))]
        own = [0 if dim == 1 else i for dim, i in zip(values, index[len(shape) - len(values) :], strict=True)]
        at = held(flat_offset(target, x))
        value = builder.inputs[positions[1]][flat_offset(own, values)]
        builder.outputs[0].store(at, combine(s, builder.outputs[0][at], value))

    _nest(shape, update)
    updates: Dim = count(shape)
    return updates
