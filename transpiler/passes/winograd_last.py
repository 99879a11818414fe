"""Winograd's algorithm for convolutions with their channels last, where GPUs with memory of their own gain by it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transpiler.ir import Graph, Node, Value
from transpiler.ops.channels_last import ConvLast, first_axes
from transpiler.ops.shape import Transpose
from transpiler.ops.winograd import PackWinograd
from transpiler.ops.winograd_last import WinogradLast
from transpiler.passes.rewrite import Rewriter, rewrite
from transpiler.passes.weights import weight_values
from transpiler.passes.winograd import allowed_tiles

# A model of such a device, in multiply-adds that it does meanwhile: reading or writing a byte of memory. From NVIDIA's
# data sheets: an A100 does 5 for each byte, an H200 7, and kernels of products come closer to their peak than others.
BYTE = 5.0
# Tiles or pixels that a block of threads computes at least, for one output channel.
BLOCK_ROWS = 32
# By how much Winograd's algorithm has to be the faster one in a model as rough as that.
MARGIN = 1.2


def fast_convolutions(graph: Graph) -> Graph:
    """3x3 convolutions of unit stride by Winograd's algorithm, where the model of costs says that it pays.

    before: %v = transpose(%w) {perm = (0, 2, 3, 1)}; %y = conv_last(%x, %v)
    after:  %u = transpose(%v) {perm = (0, 3, 1, 2)}; %p = pack_winograd(%u) {tile = 4};
            %y = winograd_last(%x, %p) {tile = 4}

    As on the CPU, results that are `saturated` take the smaller tile at most.
    """
    weights, allowed = weight_values(graph), allowed_tiles(graph)

    def visit(rewriter: Rewriter, node: Node) -> list[Value] | None:
        op = node.op
        if not isinstance(op, ConvLast) or not _is_simple(op, node, weights):
            return None
        tile = best_tile(node, allowed(node))
        if tile is None:
            return None
        x, weight, *bias = node.inputs
        plain = rewriter.emit(Transpose(first_axes(4)), weight, like=weight, label="turned")
        packed = rewriter.emit(PackWinograd(tile), plain, like=weight)
        last = WinogradLast(weight.type.static_shape()[0], op.padding, tile)
        return [rewriter.emit(last, x, packed, *bias, like=node.output)]

    return rewrite(graph, visit)


def _is_simple(op: ConvLast, node: Node, weights: Collection[str]) -> bool:
    """A 3x3 filter that no call changes, one group, float32, sizes that are known."""
    x, weight = node.inputs[:2]
    if op.groups != 1 or op.precision or (op.stride, op.dilation) != ((1, 1), (1, 1)):
        return False
    if weight.name not in weights or not x.type.is_static or {x.dtype, weight.dtype} != {"float32"}:
        return False
    return weight.type.static_shape()[1:3] == (3, 3) and 0 not in node.output.type.static_shape()


def best_tile(node: Node, tiles: Sequence[int]) -> int | None:
    """Outputs per tile and dim, one of `tiles`; None if direct convolution is as good."""
    channels = node.inputs[0].type.static_shape()[3]
    images, height, width, out_channels = node.output.type.static_shape()
    pairs, pixels = channels * out_channels, images * height * width

    def cost(tile: int | None) -> float:
        """Products of whole blocks, and what goes through memory: filters, and values at the points there and back."""
        if tile is None:
            return pairs * 9 * (_whole(pixels) + 4 * BYTE)
        points = (tile + 2) ** 2
        across = images * -(-height // tile) * -(-width // tile)
        moved = 2 * points * across * (channels + out_channels) + pixels * (channels + out_channels)
        return MARGIN * (pairs * points * (_whole(across) + 4 * BYTE) + 4 * BYTE * moved)

    return min((None, *tiles), key=cost)


def _whole(rows: int) -> int:
    return -(-rows // BLOCK_ROWS) * BLOCK_ROWS
