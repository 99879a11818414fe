"""Operands that lie evenly in memory, read where they are, and a result that is written transposed."""

from __future__ import annotations

from transpiler.dims import Dim
from transpiler.group import Group
from transpiler.ir import Node
from transpiler.ops.compare import Cast
from transpiler.ops.dtypes import HALF
from transpiler.ops.halves import Widen
from transpiler.ops.shape import Transpose
from transpiler.strides import View, row_major, view_of


def views_of(group: Group, *, widens: bool) -> tuple[View, ...] | None:
    """Where the anchor's inputs lie in those of the group; None if the nodes before the anchor do something else. From
    the fourth on they are dense. Only if `widens` may they be half floats that the anchor takes as float32."""
    anchor = group.anchor_node
    assert anchor is not None
    makers = {node.outputs[0].name: node for node in group.prologue}
    views = tuple(view_of(value, lambda item: makers.get(item.name)) for value in anchor.inputs)
    inside = {node.output.name for view in views for node in view.nodes}
    known = {value.name for value in group.inputs}
    if inside != makers.keys() or any(view.source.name not in known for view in views):
        return None
    if any(not isinstance(node.op, Widen | Cast) for view in views[3:] for node in view.nodes):
        return None
    same = all(view.source.dtype == value.dtype for view, value in zip(views, anchor.inputs, strict=True))
    return views if widens or same else None


def moved_result(group: Group) -> Node | None:
    """The one transpose behind the anchor, if there is one."""
    return next((node for node in group.epilogue if isinstance(node.op, Transpose)), None)


def only_moves_result(group: Group) -> bool:
    """Whether all that comes behind the anchor is that its result is transposed, and stored as half floats."""
    moved = [node for node in group.epilogue if isinstance(node.op, Transpose)]
    narrowed = [node for node in group.epilogue if isinstance(node.op, Cast)]
    dtype = group.outputs[0].dtype
    half = all(dtype in HALF and node.output.dtype == dtype for node in narrowed)
    return half and len(moved) <= 1 and len(moved) + len(narrowed) == len(group.epilogue)


def result_steps(group: Group) -> tuple[Dim, ...]:
    """The steps in the group's output of the axes of the anchor's result."""
    steps = row_major(group.outputs[0].shape)
    node = moved_result(group)
    if node is None:
        return steps
    assert isinstance(node.op, Transpose)
    return tuple(steps[node.op.perm.index(axis)] for axis in range(len(steps)))
