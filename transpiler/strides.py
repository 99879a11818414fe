"""Chains of views that lie evenly in memory: what a kernel can read where it is, by a step for each axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from transpiler.dims import Dim, SymExpr
from transpiler.ir import Node, Value
from transpiler.ops.compare import Cast
from transpiler.ops.dtypes import HALF, numpy_dtype
from transpiler.ops.halves import Widen
from transpiler.ops.shape import BroadcastTo, Reshape, Slice, Transpose

VIEWS = (Reshape, Transpose, Slice, BroadcastTo, Widen, Cast)


@dataclass(frozen=True)
class View:
    """Element [i, j, ...] of a value is element offset + i * steps[0] + j * steps[1] + ... of `source`, up to widening.
    The last axis has step 1. `nodes` are what makes the value of the source, in order."""

    source: Value
    nodes: tuple[Node, ...]
    offset: Dim
    steps: tuple[Dim, ...]

    def is_aligned(self, size: int) -> bool:
        """Whether rows along the last axis begin at multiples of `size` bytes, if the source does."""
        elements = max(1, size // numpy_dtype(self.source.dtype).itemsize)
        return all(_is_multiple(step, elements) for step in (self.offset, *self.steps[:-1]))


def view_of(
    value: Value, maker: Callable[[Value], Node | None], takes: Callable[[View], bool] = lambda view: True
) -> View:
    """The longest chain of views that ends in `value`, of nodes that `maker` gives, and that `takes` accepts."""
    chain: list[Node] = []
    best = View(value, (), 0, row_major(value.shape))
    while (node := maker(chain[-1].inputs[0] if chain else value)) is not None and isinstance(node.op, VIEWS):
        chain.append(node)
        view = _composed(chain[::-1])
        if view is not None and takes(view):
            best = view
    return best


def row_major(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """Elements from an index to the next, by axis, of a tensor that is dense."""
    return tuple(prod(shape[axis + 1 :], start=1) for axis in range(len(shape)))


def _composed(nodes: Sequence[Node]) -> View | None:
    """What the nodes do, one after the other, to what the first one reads."""
    source = nodes[0].inputs[0]
    offset: Dim = 0
    steps = row_major(source.shape)
    for node in nodes:
        if not _keeps_values(node, source):
            return None
        match node.op:
            case Transpose(perm=perm):
                steps = tuple(steps[axis] for axis in perm)
            case Slice(starts=starts, steps=strides):
                offset = sum((start * step for start, step in zip(starts, steps, strict=True)), offset)
                steps = tuple(step * stride for step, stride in zip(steps, strides, strict=True))
            case BroadcastTo(shape=shape):
                own = node.inputs[0].shape
                repeated = (0,) * (len(shape) - len(own))
                steps = (*repeated, *(0 if size == 1 else step for size, step in zip(own, steps, strict=True)))
            case Reshape(shape=shape):
                reshaped = _reshaped(node.inputs[0].shape, steps, shape)
                if reshaped is None:
                    return None
                steps = reshaped
    value = nodes[-1].output
    if not steps or (value.shape[-1] != 1 and steps[-1] != 1):
        return None
    return View(source, tuple(nodes), offset, steps)


def _keeps_values(node: Node, source: Value) -> bool:
    """Half floats are widened, and what was widened may be narrowed again; nothing else is converted."""
    if not isinstance(node.op, Widen | Cast):
        return True
    return source.dtype in HALF and node.output.dtype in ("float32", source.dtype)


def _reshaped(before: Sequence[Dim], steps: Sequence[Dim], after: Sequence[Dim]) -> tuple[Dim, ...] | None:
    """The steps in another shape, None if there are none: axes that do not lie evenly would have to be one."""
    runs: list[tuple[Dim, Dim]] = []  # sizes and steps of axes, those that lie evenly joined
    for size, step in zip(before, steps, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == step * size:
            runs[-1] = (runs[-1][0] * size, step)
        else:
            runs.append((size, step))
    result: list[Dim] = [0] * len(after)
    axes = [axis for axis, size in enumerate(after) if size != 1]
    for size, step in runs:
        part: list[int] = []
        while not part or prod((after[axis] for axis in part), start=1) != size:
            if not axes:
                return None
            part.append(axes.pop(0))
        for axis in reversed(part):
            result[axis], step = step, step * after[axis]
    return None if axes else tuple(result)


def _is_multiple(step: Dim, elements: int) -> bool:
    coefficients = [coefficient for _, coefficient in step.terms] if isinstance(step, SymExpr) else [step]
    return all(coefficient % elements == 0 for coefficient in coefficients)
