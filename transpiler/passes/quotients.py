"""Divisions whose quotients are rounded to whole numbers later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transpiler.ir import Graph, Node, Value
from transpiler.ops.compare import Cast, Where
from transpiler.ops.creation import Full
from transpiler.ops.dtypes import category
from transpiler.ops.elementwise import Add, Div, Maximum, Minimum, Mul, Sub
from transpiler.ops.elementwise_unary import Abs, Clamp, Neg, Reciprocal
from transpiler.ops.rounding import Ceil, Floor, Round, Trunc
from transpiler.ops.shape import BroadcastTo, Reshape, Transpose
from transpiler.passes.rewrite import Rewriter, rewrite

_JUMPS = (Ceil, Floor, Round, Trunc)
# What hands an error of its input on, before it is rounded away.
_THROUGH = (
    Add, Sub, Mul, Div, Reciprocal, Maximum, Minimum, Clamp, Neg, Abs, Where, Cast, Reshape, BroadcastTo, Transpose,
)  # fmt: skip


def nearest_quotients(graph: Graph) -> Graph:
    """Make divisions exact, for devices that may give a neighbour of the quotient: an int of it would be another one.

    before: %q = div(%x, %s); %z = add(%q, %p); %y = round(%z)
    after:  %q = div(%x, %s) {nearest = True}; %z = add(%q, %p); %y = round(%z)
    """
    wanted = _rounded_later(graph)

    def visit(rewriter: Rewriter, node: Node) -> Sequence[Value] | None:
        if len(node.outputs) != 1 or node.output.name not in wanted:
            return None
        if isinstance(node.op, Div):
            return [rewriter.emit(replace(node.op, nearest=True), *node.inputs, like=node.output)]
        one = rewriter.emit(Full(1.0, (), node.output.dtype))
        return [rewriter.emit(Div(True), one, *node.inputs, like=node.output)]

    return rewrite(graph, visit) if wanted else graph


def _rounded_later(graph: Graph) -> set[str]:
    """Quotients of float32 that whole numbers are made of."""
    producers = graph.producers()
    todo = [value.name for node in graph.nodes if _jumps(node) for value in node.inputs]
    seen, found = set(todo), set[str]()
    while todo:
        name = todo.pop()
        node = producers.get(name)
        if node is None or not isinstance(node.op, _THROUGH) or _jumps(node):
            continue
        if isinstance(node.op, Div | Reciprocal) and node.output.dtype == "float32":
            found.add(name)
        new = [value.name for value in node.inputs if value.name not in seen]
        seen.update(new)
        todo += new
    return found


def _jumps(node: Node) -> bool:
    op = node.op
    return isinstance(op, _JUMPS) or (isinstance(op, Cast) and node.inputs[0].type.is_float and category(op.dtype) == 1)
