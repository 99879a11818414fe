"""float16 and bfloat16: what computes does so in float32 and rounds once, as PyTorch's CPU kernels do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transpiler.ir import Graph, Node, Value
from transpiler.ops.base import Op
from transpiler.ops.compare import Cast
from transpiler.ops.dtypes import HALF
from transpiler.ops.shape_edges import Pad
from transpiler.passes.rewrite import Rewriter, rewrite


def half_floats(graph: Graph) -> Graph:
    """Compute half floats in float32; they are only stored, moved and converted as they are.

    before: %y = exp(%x); return %y
    after:  %a = cast(%x) {dtype = "float32"}; %b = exp(%a); %y = cast(%b) {dtype = "float16"}; return %y
    """

    def visit(rewriter: Rewriter, node: Node) -> Sequence[Value] | None:
        values = (*node.inputs, *node.outputs)
        if _moves(node.op) or not any(value.dtype in HALF for value in values):
            return None
        inputs = [
            rewriter.emit(Cast("float32"), value, like=None) if value.dtype in HALF else value for value in node.inputs
        ]
        op = node.op
        if getattr(op, "dtype", None) in HALF:
            op = type(op)(**{**op.attributes(), "dtype": "float32"})
        if len(node.outputs) == 1:
            results: tuple[Value, ...] = (rewriter.emit(op, *inputs, like=replace(node.output, name="wide")),)
        else:
            results = rewriter.emit_all(op, *inputs, like=[replace(item, name="wide") for item in node.outputs])
        return [
            rewriter.emit(Cast(old.dtype), new, like=old) if old.dtype != new.dtype else new
            for old, new in zip(node.outputs, results, strict=True)
        ]

    return rewrite(graph, visit)


def _moves(op: Op) -> bool:
    # On the host bfloat16 is held as bits, so that a filler must be a number in float32.
    return op.moves and not (isinstance(op, Pad) and op.value)
