"""Choosing Winograd's algorithm where it is faster than direct convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

from transpiler.ir import Graph, Node, Value
from transpiler.ops.activation import HardSigmoid, Sigmoid, Tanh
from transpiler.ops.base import Elementwise, Injective
from transpiler.ops.blocked_conv import BlockedConv, ConvBlocked
from transpiler.ops.channels_last import ConvLast
from transpiler.ops.conv import Conv
from transpiler.ops.elementwise_unary import Atan, Clamp, Cos, Erf, Sin
from transpiler.ops.packed import BLOCK, PackConv, blocks
from transpiler.ops.pool import AvgPool, MaxPool
from transpiler.ops.softmax import Softmax
from transpiler.ops.winograd import POINTS, ConvWinograd, PackWinograd, span
from transpiler.passes.rewrite import Rewriter, rewrite

# A rough model of a core, in floating-point operations at its peak rate. One byte of a filter, which each call reads
# once, mostly from memory:
BYTE = 4
# Transforming a tile of 16 channels there and back, by outputs per tile and dim:
TRANSFORM = {2: 3_000, 4: 12_000}


def fast_convolutions(graph: Graph) -> Graph:
    """3x3 convolutions of stride 1 or 2 by Winograd's algorithm, where the model of costs says that it pays.

    before: %v = pack_conv(%w); %y = conv_blocked(%x, %v)
    after:  %v = pack_winograd(%w) {tile = 4}; %y = conv_winograd(%x, %v) {tile = 4}

    The rounding error of a tile follows the largest input that any of its outputs reads. It is small against the
    largest output, unless that is cut off later: where all that comes of a result is `saturated`, the smaller tile is
    the most that is taken.
    """
    tiles = _tiles(graph)
    producers, consumers, kept = graph.producers(), graph.consumers(), graph.kept_names()

    def visit(rewriter: Rewriter, node: Node) -> list[Value] | None:
        name = node.outputs[0].name
        if isinstance(node.op, PackConv) and name not in kept:
            # Where every reader gets a filter of its own, the first of those takes the name.
            return [] if all(user.outputs[0].name in tiles for user in consumers[name]) else None
        if not isinstance(node.op, ConvBlocked) or name not in tiles:
            return None
        x, weight, *bias = node.inputs
        pack = PackWinograd(tiles[name], node.op.stride[0])
        packed = rewriter.emit(pack, producers[weight.name].inputs[0], like=weight)
        attributes = {field.name: getattr(node.op, field.name) for field in fields(BlockedConv)}
        return [rewriter.emit(ConvWinograd(**attributes, tile=tiles[name]), x, packed, *bias, like=node.output)]

    return rewrite(graph, visit)


def _tiles(graph: Graph) -> dict[str, int]:
    """The tile of every convolution that Winograd's algorithm speeds up, by the name of its result."""
    producers, allowed = graph.producers(), allowed_tiles(graph)
    tiles: dict[str, int] = {}
    for node in graph.nodes:
        if not isinstance(node.op, ConvBlocked):
            continue
        producer = producers.get(node.inputs[1].name)
        name = node.output.name
        tile = best_tile(node.op, node.output.shape[2:4], allowed(node))
        if tile is not None and producer is not None and isinstance(producer.op, PackConv):
            tiles[name] = tile
    return tiles


def allowed_tiles(graph: Graph) -> Callable[[Node], Sequence[int]]:
    """The tiles that are accurate enough for a convolution of the graph: where all that comes of its result is
    `saturated`, the smaller one at most."""
    cut_off = saturated(graph)
    return lambda node: (2,) if node.output.name in cut_off else tuple(POINTS)


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
        case Elementwise() | Injective() | Conv() | ConvLast() | BlockedConv() | MaxPool() | AvgPool():
            return all(value.name in known for value in node.outputs)
    return False


def best_tile(op: ConvBlocked, size: Sequence[object], tiles: Sequence[int] = tuple(POINTS)) -> int | None:
    """Outputs per tile and dim for an output map of `size`, one of `tiles`; None if direct convolution is as good."""
    if (op.kernel, op.dilation, op.groups) != ((3, 3), (1, 1), 1) or op.stride not in ((1, 1), (2, 2)):
        return None
    height, width = size
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    inputs, outputs = blocks(op.in_channels), blocks(op.channels)
    pairs = inputs * outputs * BLOCK * BLOCK

    def cost(tile: int | None) -> float:
        if tile is None:
            return pairs * 9 * (2 * height * width + 4 * BYTE)
        tiles, filters = -(-height // tile) * -(-width // tile), (tile + 2) ** 2
        points = span(tile, op.stride[0]) ** 2
        products = pairs * (2 * points * tiles + 4 * BYTE * filters)
        return products + tiles * TRANSFORM[tile] * points / filters * (inputs + outputs) / 2

    return min((None, *tiles), key=cost)
