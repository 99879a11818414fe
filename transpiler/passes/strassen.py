"""Choosing Strassen's algorithm for linear layers of many rows and for 1x1 convolutions."""

from __future__ import annotations

from dataclasses import fields
from math import prod

from transpiler.ir import Graph, Node, Program, Value
from transpiler.ops.blocked_conv import BlockedConv, ConvBlocked
from transpiler.ops.packed import LinearPacked, PackConv, PackMatmul
from transpiler.ops.rnn import GruScan, LstmScan, RnnScan
from transpiler.ops.shape import Reshape
from transpiler.ops.strassen import LinearStrassen, PackStrassen, RowScales
from transpiler.ops.strassen_conv import PAIR, ConvStrassen, PackConvStrassen
from transpiler.passes.rewrite import Rewriter, rewrite
from transpiler.passes.winograd import saturated

# What one level of the algorithm saves of a direct product's time: an eighth, less what the sums of x take beside N
# columns and those of the products beside K terms, and what it takes to read larger weights.
SAVED, SUMS, WEIGHTS = 1 / 8, 10, 0.01
# Less is not worth weights of 7/4 the size.
LEAST = 0.05
# Multiply-adds from which on one more parallel region and coarser tasks do not count, and rows from which on the larger
# weights come from memory as fast as they are used.
LEAST_WORK, LEAST_ROWS = 32_000_000, 64


def fast_products(program: Program) -> Program:
    """Linear layers by Strassen's algorithm, where the model of costs says that it pays.

    before: %p = pack_matmul(%w); %y = linear_packed(%x, %p, %b)
    after:  %s = row_scales(%w); %p = pack_strassen(%w, %s); %y = linear_strassen(%x, %p, %b)

    Only weights of which every reader gains: one that is also an embedding, or that another function of the program
    may read in another form, is stored once.
    """
    if len(program.functions) > 1:
        return program
    return program.with_function(_fast_products(program.main))


def _fast_products(graph: Graph) -> Graph:
    producers, consumers, kept = graph.producers(), graph.consumers(), graph.kept_names()
    chosen: set[str] = set()
    for node in graph.nodes:
        if isinstance(node.op, PackMatmul):
            packs = consumers[node.inputs[0].name]
            users = [(user, pack.output) for pack in packs for user in consumers[pack.output.name]]
            if (
                all(isinstance(pack.op, PackMatmul) and pack.output.name not in kept for pack in packs)
                and all(_pays(user, packed) for user, packed in users)
                and not any(_is_hidden(reader) for user, _ in users for reader in consumers[user.output.name])
            ):
                chosen.add(node.output.name)

    def visit(rewriter: Rewriter, node: Node) -> list[Value] | None:
        if isinstance(node.op, PackMatmul) and node.output.name in chosen:
            return []
        if not isinstance(node.op, LinearPacked) or node.inputs[1].name not in chosen:
            return None
        x, packed, *bias = node.inputs
        weight = producers[packed.name].inputs[0]
        scales = rewriter.emit(RowScales(), weight, like=weight)
        factors = rewriter.emit(PackStrassen(), weight, scales, like=packed)
        return [rewriter.emit(LinearStrassen(node.op.features), x, factors, *bias, like=node.output)]

    return rewrite(graph, visit)


def _pays(node: Node, weight: Value) -> bool:
    """Whether a reader of a packed weight is a linear layer that becomes faster."""
    if not isinstance(node.op, LinearPacked) or node.inputs[1] != weight or not node.inputs[0].type.is_static:
        return False
    *leading, depth = node.inputs[0].type.static_shape()
    return depth % 2 == 0 and gains(prod(leading), node.op.features, depth)


def _is_hidden(reader: Node) -> bool:
    """Whether a direct product costs `reader` next to nothing: a scan of one row computes it on the way."""
    return isinstance(reader.op, LstmScan | GruScan | RnnScan) and reader.inputs[0].shape[1] == 1


def gains(rows: int, columns: int, depth: int) -> bool:
    """Whether [rows, depth] times [depth, columns] is worth seven products of half the size."""
    if rows < LEAST_ROWS or rows * columns * depth < LEAST_WORK:
        return False
    return SAVED - SUMS / columns - SUMS / depth - WEIGHTS >= LEAST


# The same for 1x1 convolutions: the sums in L1 beside K terms, the left factors beside N channels, what else is lost;
# and from which saving, work and pixels on it is taken: on smaller maps larger weights take longer to read.
CONV_SUMS, CONV_LEFT, CONV_LOOPS = 10, 8, 0.01
LEAST_OF_CONV, LEAST_CONV_WORK, LEAST_PIXELS = 0.04, 40_000_000, 128


def fast_pointwise(graph: Graph) -> Graph:
    """1x1 convolutions by Strassen's algorithm, where the model of costs says that it pays.

    before: %p = pack_conv(%w); %y = conv_blocked(%x, %p, %b)
    after:  %m = reshape(%w); %s = row_scales(%m); %p = pack_conv_strassen(%m, %s); %y = conv_strassen(%x, %p, %b)

    An output's rounding error follows the brighter one of a pair of pixels. That is small against the largest output,
    unless that is cut off later: what comes to be `saturated` stays as it is.
    """
    producers, consumers, kept = graph.producers(), graph.consumers(), graph.kept_names()
    cut_off = saturated(graph)

    def chosen(packed: Value) -> bool:
        pack = producers.get(packed.name)
        if pack is None or not isinstance(pack.op, PackConv) or packed.name in kept:
            return False
        return all(user.output.name not in cut_off and _pays_pointwise(user, packed) for user in consumers[packed.name])

    def visit(rewriter: Rewriter, node: Node) -> list[Value] | None:
        if isinstance(node.op, PackConv) and chosen(node.output):
            return []
        if not isinstance(node.op, ConvBlocked) or not chosen(node.inputs[1]):
            return None
        x, packed, *bias = node.inputs
        weight = producers[packed.name].inputs[0]
        matrix = rewriter.emit(Reshape(weight.shape[:2]), weight, like=weight)
        scales = rewriter.emit(RowScales(), matrix, like=weight)
        factors = rewriter.emit(PackConvStrassen(), matrix, scales, like=packed)
        attributes = {field.name: getattr(node.op, field.name) for field in fields(BlockedConv)}
        return [rewriter.emit(ConvStrassen(**attributes), x, factors, *bias, like=node.output)]

    return rewrite(graph, visit)


def _pays_pointwise(node: Node, weight: Value) -> bool:
    """Whether a reader of a packed filter is a 1x1 convolution that becomes faster."""
    op = node.op
    if not isinstance(op, ConvBlocked) or node.inputs[1] != weight or op.kernel != (1, 1) or any(op.padding):
        return False
    height, width = node.output.shape[2:4]
    if op.groups > 1 or not isinstance(height, int) or not isinstance(width, int):
        return False
    return gains_pointwise(height * width, op.channels, op.in_channels)


def gains_pointwise(pixels: int, channels: int, depth: int) -> bool:
    """Whether a 1x1 convolution of `pixels` outputs is worth seven products of half the size."""
    if channels % PAIR or depth % PAIR or pixels < LEAST_PIXELS or pixels * channels * depth < LEAST_CONV_WORK:
        return False
    return SAVED - CONV_SUMS / depth - CONV_LEFT / channels - CONV_LOOPS >= LEAST_OF_CONV
