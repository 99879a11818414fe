"""Convolutions on maps as they come: filters packed for loads of several output channels, and Winograd's algorithm."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from transpiler.ir import Graph, Node, Value, fixed_size
from transpiler.ops.conv import Conv
from transpiler.ops.packed import PackConvStem
from transpiler.ops.planes import ConvPlanes, WinogradPlanes
from transpiler.ops.shape import Slice
from transpiler.ops.shape_edges import Pad
from transpiler.ops.winograd import PackWinograd
from transpiler.passes.rewrite import Rewriter, rewrite
from transpiler.passes.weights import weight_values
from transpiler.passes.winograd import allowed_tiles

# A model of a device whose loads cost more than its multiply-adds, in multiply-adds, as lavapipe's do: of four elements
# that lie side by side, of one that lies anywhere.
QUAD, LOAD = 40.0, 20.0
# Output channels of a thread, and quads of columns at most.
ROWS, QUADS = 16, 4
# Output channels from which on copying what a strided filter reads is the smaller work.
MANY_CHANNELS = 32
# Bytes that the transformed maps of an image may take, and images times that.
IMAGE, MAPS = 96 << 20, 384 << 20


def packed_filters(graph: Graph) -> Graph:
    """Filters of two-dimensional convolutions in one group, 16 output channels side by side.

    before: %y = conv(%x, %w)
    after:  %v = pack_conv_stem(%w); %y = conv_planes(%x, %v)

    Of a map that a 1x1 filter does not read whole, what it reads is copied first: it then lies side by side.
    """
    weights = weight_values(graph)

    def visit(rewriter: Rewriter, node: Node) -> list[Value] | None:
        op = node.op
        if not isinstance(op, Conv) or not _is_simple(op, node, weights):
            return None
        x, weight, *bias = node.inputs
        stride = op.stride
        if _is_strided_copy(op, node):
            stride = (1, 1)
            x = rewriter.emit(_every(op.stride, node), x, like=x)
        packed = rewriter.emit(PackConvStem(), weight, like=weight)
        planes = ConvPlanes(_channels(weight), stride, op.padding, op.dilation)
        return [rewriter.emit(planes, x, packed, *bias, like=node.output)]

    return rewrite(graph, visit)


def folded_padding(graph: Graph) -> Graph:
    """Zeros around a map that a convolution can add by itself.

    before: %p = pad(%x) {low = (0, 0, 1, 1), high = (0, 0, 1, 1)}; %y = conv(%p, %w) {padding = (0, 0)}
    after:  %y = conv(%x, %w) {padding = (1, 1)}
    """
    producers = graph.producers()

    def visit(rewriter: Rewriter, node: Node) -> list[Value] | None:
        producer = producers.get(node.inputs[0].name) if isinstance(node.op, Conv) else None
        if producer is None or not isinstance(node.op, Conv) or not isinstance(producer.op, Pad):
            return None
        pad = producer.op
        if pad.mode != "constant" or pad.value != 0 or pad.low != pad.high or pad.low[:2] != (0, 0):
            return None
        padding = tuple(own + fixed_size(more) for own, more in zip(node.op.padding, pad.low[2:], strict=True))
        return [
            rewriter.emit(replace(node.op, padding=padding), producer.inputs[0], *node.inputs[1:], like=node.output)
        ]

    return rewrite(graph, visit)


def fast_convolutions(graph: Graph) -> Graph:
    """3x3 convolutions of unit stride by Winograd's algorithm, where the model of costs says that it pays.

    before: %y = conv(%x, %w)
    after:  %v = pack_winograd(%w) {tile = 4}; %y = winograd_planes(%x, %v) {tile = 4}

    As on the CPU, results that are `saturated` take the smaller tile at most.
    """
    weights, allowed = weight_values(graph), allowed_tiles(graph)

    def visit(rewriter: Rewriter, node: Node) -> list[Value] | None:
        op = node.op
        if not isinstance(op, Conv) or not _is_simple(op, node, weights):
            return None
        tile = best_tile(op, node, allowed(node))
        if tile is None:
            return None
        x, weight, *bias = node.inputs
        packed = rewriter.emit(PackWinograd(tile), weight, like=weight)
        planes = WinogradPlanes(_channels(weight), op.padding, tile)
        return [rewriter.emit(planes, x, packed, *bias, like=node.output)]

    return rewrite(graph, visit)


def _channels(weight: Value) -> int:
    return weight.type.static_shape()[0]


def _is_simple(op: Conv, node: Node, weights: Collection[str]) -> bool:
    """Two dimensions, one group, float32 and a filter that no call changes."""
    weight = node.inputs[1]
    if op.groups != 1 or len(op.stride) != 2 or node.output.dtype != "float32":
        return False
    return weight.name in weights and weight.type.is_static


def _is_strided_copy(op: Conv, node: Node) -> bool:
    """Whether reading a strided map through a copy pays: in quads, for many channels."""
    out_channels, _, *kernel = node.inputs[1].type.static_shape()
    if set(kernel) != {1} or set(op.stride) == {1} or set(op.padding) != {0} or not node.output.type.is_static:
        return False
    return out_channels >= MANY_CHANNELS and math.prod(node.output.type.static_shape()[2:]) % 4 == 0


def _every(stride: tuple[int, ...], node: Node) -> Slice:
    """The elements of a map that a 1x1 filter reads."""
    x, result = node.inputs[0].type.static_shape(), node.output.type.static_shape()
    last = [(size - 1) * step + 1 for size, step in zip(result[2:], stride, strict=True)]
    return Slice((0,) * len(x), (*x[:2], *last), (1, 1, *stride))


def best_tile(op: Conv, node: Node, tiles: Sequence[int]) -> int | None:
    """Outputs per tile and dim, one of `tiles`; None if direct convolution is as good, or a size varies."""
    x, weight = node.inputs[0], node.inputs[1]
    out_channels, channels, *kernel = weight.type.static_shape()
    if kernel != [3, 3] or op.stride != (1, 1) or op.dilation != (1, 1) or not x.type.is_static:
        return None
    images, _, height, width = node.output.type.static_shape()
    if min(images, out_channels, channels, height, width) == 0:
        return None

    def cost(tile: int | None) -> float:
        """Of all images: products, and what the transforms load and store."""
        if tile is None:
            columns = images * height * width
            return 9.0 * channels * out_channels * columns * _product(out_channels, columns, LOAD * 4)
        across = images * -(-height // tile) * -(-width // tile)
        points = (tile + 2) ** 2
        products = points * channels * out_channels * across * _product(out_channels, across, QUAD)
        return products + across * LOAD * (2 * points * channels + (points + tile**2) * out_channels)

    def fits(tile: int) -> bool:
        points = (tile + 2) ** 2
        size = 4 * points * (-(-height // tile) * -(-width // tile) + 3) * (channels + out_channels)
        return size <= IMAGE and size * images <= MAPS

    return min((None, *filter(fits, tiles)), key=cost)


def _product(rows: int, columns: int, quad: float) -> float:
    """What a multiply-add of a product costs with its loads; `quad`: of four elements of the right matrix."""
    own_rows, quads = min(rows, ROWS), max(1, min(QUADS, columns // 32))
    return 1.0 + (-(-own_rows // 4) * QUAD + quads * quad) / (own_rows * quads * 4)
