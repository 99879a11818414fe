"""Choosing Winograd's algorithm where it is faster than direct convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from transpiler.ir import Graph, Node, Value
from transpiler.ops.activation import HardSigmoid, Sigmoid, Tanh
from transpiler.ops.base import Elementwise, Injective
from transpiler.ops.conv import Conv
from transpiler.ops.elementwise_unary import Atan, Clamp, Cos, Erf, Sin
from transpiler.ops.packed import BLOCK, BlockedConv, ConvBlocked, PackConv, blocks
from transpiler.ops.pool import AvgPool, MaxPool
from transpiler.ops.softmax import Softmax
from transpiler.ops.winograd import POINTS, ConvWinograd, PackWinograd
from transpiler.passes.rewrite import Rewriter, rewrite

# A rough model of a core, in floating-point operations at its peak rate. One byte of a filter, which each call reads
# once, mostly from memory:
BYTE = 4
# Transforming a tile of 16 channels there and back, by outputs per tile and dim:
TRANSFORM = {2: 3_000, 4: 12_000}


def fast_convolutions(graph: Graph) -> Graph:
    """3x3 convolutions of unit stride by Winograd's algorithm, where the model of costs says that it pays.

    before: %v = pack_conv(%w); %y = conv_blocked(%x, %v)
    after:  %v = pack_winograd(%w) {tile = 4}; %y = conv_winograd(%x, %v) {tile = 4}

    The rounding error of a tile follows the largest input that any of its outputs reads. It is small against the
    largest output, unless that is cut off later: where all that comes of a result is `saturated`, the smaller tile is
    the most that is taken.
    """
    producers = graph.producers()
    cut_off = saturated(graph)

    def visit(rewriter: Rewriter, node: Node) -> list[Value] | None:
        if not isinstance(node.op, ConvBlocked):
            return None
        producer = producers.get(node.inputs[1].name)
        tiles = (2,) if node.output.name in cut_off else tuple(POINTS)
        tile = best_tile(node.op, node.output.shape[2:4], tiles)
        if producer is None or not isinstance(producer.op, PackConv) or tile is None:
            return None
        x, weight, *bias = node.inputs
        packed = rewriter.emit(PackWinograd(tile), producer.inputs[0], like=weight)
        attributes = {field.name: getattr(node.op, field.name) for field in fields(node.op)}
        return [rewriter.emit(ConvWinograd(**attributes, tile=tile), x, packed, *bias, like=node.output)]

    return rewrite(graph, visit)


def saturated(graph: Graph) -> frozenset[str]:
    """Values whose every use ends in a bounded function of single positions, such as a sigmoid or relu6.

    Ops that mix all positions, normalise or return a value end the search: the largest value keeps its share there.
    """
    consumers, kept = graph.consumers(), graph.kept_names()
    result: set[str] = set()
    for node in reversed(graph.nodes):
        for value in node.outputs:
            users = consumers[value.name]
            if users and value.name not in kept and all(_cuts_off(user, result) for user in users):
                result.add(value.name)
    return frozenset(result)


def _cuts_off(node: Node, known: set[str]) -> bool:
    match node.op:
        case Sigmoid() | HardSigmoid() | Tanh() | Erf() | Sin() | Cos() | Atan() | Softmax():
            return True
        case Clamp(min=low, max=high) if low is not None and high is not None:
            return True
        case Elementwise() | Injective() | Conv() | BlockedConv() | MaxPool() | AvgPool():
            return all(value.name in known for value in node.outputs)
    return False


def best_tile(op: ConvBlocked, size: Sequence[object], tiles: Sequence[int] = tuple(POINTS)) -> int | None:
    """Outputs per tile and dim for an output map of `size`, one of `tiles`; None if direct convolution is as good."""
    if (op.kernel, op.stride, op.dilation) != ((3, 3), (1, 1), (1, 1)):
        return None
    height, width = size
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    inputs, outputs = blocks(op.in_channels), blocks(op.channels)
    pairs = inputs * outputs * BLOCK * BLOCK

    def cost(tile: int | None) -> float:
        if tile is None:
            return pairs * 9 * (2 * height * width + 4 * BYTE)
        tiles, points = -(-height // tile) * -(-width // tile), (tile + 2) ** 2
        products = pairs * points * (2 * tiles + 4 * BYTE)
        return products + tiles * TRANSFORM[tile] * (inputs + outputs) / 2

    return min((None, *tiles), key=cost)
