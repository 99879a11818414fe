"""Ops that a target has no schedule of its own for, as compositions of ones it has."""

from __future__ import annotations

from collections.abc import Sequence

from transpiler.ir import Graph, Node, Value
from transpiler.ops.conv import Conv, ConvTranspose
from transpiler.ops.shape import Reshape
from transpiler.passes.rewrite import Rewriter, rewrite


def conv1d(graph: Graph) -> Graph:
    """A 1-d convolution is a 2-d one over maps of height 1.

    before: %y = conv(%x, %w) {stride = (2,)}
    after:  %a = reshape(%x); %v = reshape(%w); %c = conv(%a, %v) {stride = (1, 2)}; %y = reshape(%c)
    """

    def visit(rewriter: Rewriter, node: Node) -> Sequence[Value] | None:
        if not isinstance(node.op, Conv | ConvTranspose) or len(node.op.stride) != 1:
            return None
        x, weight, *bias = node.inputs
        op = node.op
        wide: Conv | ConvTranspose
        if isinstance(op, Conv):
            wide = Conv((1, *op.stride), (0, *op.padding), (1, *op.dilation), op.groups)
        else:
            wide = ConvTranspose(
                (1, *op.stride), (0, *op.padding), (0, *op.output_padding), (1, *op.dilation), op.groups
            )

        def flat(value: Value) -> Value:
            a, b, length = value.shape
            return rewriter.emit(Reshape((a, b, 1, length)), value, like=None)

        result = rewriter.emit(wide, flat(x), flat(weight), *bias, like=None)
        return [rewriter.emit(Reshape(node.output.shape), result, like=node.output)]

    return rewrite(graph, visit)
