"""Ops that a target has no schedule of its own for, as compositions of ones it has."""

from __future__ import annotations

from collections.abc import Sequence

from transpiler.ir import Graph, Node, Value, fixed_size
from transpiler.ops.conv import Conv, ConvTranspose
from transpiler.ops.shape import Reshape, Slice, Transpose
from transpiler.ops.shape_edges import Pad, Unfold
from transpiler.passes.rewrite import Rewriter, rewrite
from transpiler.passes.weights import weight_values


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
            wide = Conv((1, *op.stride), (0, *op.padding), (1, *op.dilation), op.groups, op.precision)
        else:
            spread = (0, *op.padding), (0, *op.output_padding), (1, *op.dilation)
            wide = ConvTranspose((1, *op.stride), *spread, op.groups, op.precision)

        def flat(value: Value) -> Value:
            a, b, length = value.shape
            return rewriter.emit(Reshape((a, b, 1, length)), value, like=None)

        result = rewriter.emit(wide, flat(x), flat(weight), *bias, like=None)
        return [rewriter.emit(Reshape(node.output.shape), result, like=node.output)]

    return rewrite(graph, visit)


def conv3d(graph: Graph) -> Graph:
    """A 3-d convolution is a 2-d one on every plane of its result, over the channels of all planes that it reads.

    before: %y = conv(%x, %w) {stride = (1, 1, 1)}
    after:  %u = unfold(transpose(%x)); %a = reshape(transpose(%u)); %v = reshape(transpose(%w));
            %c = conv(%a, %v) {stride = (1, 1)}; %y = transpose(reshape(%c))

    Planes are copied as often as filters are deep, little beside the products. Only where a 2-d convolution has a
    schedule of its own: float32, constant weights, maps of fixed size.
    """
    weights = weight_values(graph)

    def visit(rewriter: Rewriter, node: Node) -> Sequence[Value] | None:
        if not isinstance(node.op, Conv) or len(node.op.stride) != 3 or node.op.groups != 1:
            return None
        x, weight, *bias = node.inputs
        fixed = all(isinstance(dim, int) for dim in x.shape[1:])
        if x.dtype != "float32" or not fixed or any(value.name not in weights for value in (weight, *bias)):
            return None
        flat = Conv(node.op.stride[1:], node.op.padding[1:], node.op.dilation[1:])
        maps, filters = _planes(rewriter, node.op, x, weight)
        result = rewriter.emit(flat, maps, filters, *bias, like=None)
        images, channels, depth, height, width = node.output.shape
        planes = rewriter.emit(Reshape((images, depth, channels, height, width)), result, like=None)
        return [rewriter.emit(Transpose((0, 2, 1, 3, 4)), planes, like=node.output)]

    return rewrite(graph, visit)


def _planes(rewriter: Rewriter, op: Conv, x: Value, weight: Value) -> tuple[Value, Value]:
    """[N, C, D, H, W] -> [N * D', KD * C, H, W], and [O, C, KD, KH, KW] -> [O, KD * C, KH, KW]."""
    out_channels, channels, taps, *kernel = weight.type.static_shape()
    height, width = x.shape[3:]
    if op.padding[0]:
        sides = (0, 0, op.padding[0], 0, 0)
        x = rewriter.emit(Pad(sides, sides), x, like=None)
    planes = rewriter.emit(Transpose((0, 2, 1, 3, 4)), x, like=None)
    windows = rewriter.emit(Unfold(1, op.dilation[0] * (taps - 1) + 1, op.stride[0]), planes, like=None)
    if op.dilation[0] > 1:
        steps = (*(1,) * 5, op.dilation[0])
        windows = rewriter.emit(Slice((0,) * 6, windows.shape, steps), windows, like=None)
    ordered = rewriter.emit(Transpose((0, 1, 5, 2, 3, 4)), windows, like=None)
    images = ordered.shape[0] * fixed_size(ordered.shape[1])
    maps = rewriter.emit(Reshape((images, taps * channels, height, width)), ordered, like=None)
    turned = rewriter.emit(Transpose((0, 2, 1, 3, 4)), weight, like=weight)
    filters = rewriter.emit(Reshape((out_channels, taps * channels, *kernel)), turned, like=weight)
    return maps, filters
