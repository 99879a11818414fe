"""Choosing Strassen's algorithm for linear layers of many rows."""

from __future__ import annotations

from math import prod

from transpiler.ir import Graph, Node, Program, Value
from transpiler.ops.packed import LinearPacked, PackMatmul
from transpiler.ops.strassen import LinearStrassen, PackStrassen, RowScales
from transpiler.passes.rewrite import Rewriter, rewrite

# A rough model of a core, in multiply-adds at its peak rate. One byte of weights, which each call reads once, mostly
# from memory; an element of the left factors, and of a product that is added to the result:
BYTE = 1.0
LEFT, RESULT = 1.5, 1.5
# Of the direct product's time that must be gained.
GAIN = 0.04


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
    chosen = {
        node.output.name
        for node in graph.nodes
        if isinstance(node.op, PackMatmul)
        and node.output.name not in kept
        and all(_pays(user, node.output) for user in consumers[node.output.name])
    }

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


def gains(rows: int, columns: int, depth: int) -> bool:
    """Whether [rows, depth] times [depth, columns] is worth seven products of half the size."""
    weights = columns * depth
    direct = rows * weights + 4 * BYTE * weights
    upper = -(-rows // 2)
    products = 7 * upper * weights / 4 + 4 * BYTE * 1.75 * weights
    sums = LEFT * 7 * upper * depth / 2 + RESULT * 12 * upper * columns / 2
    return products + sums < (1 - GAIN) * direct
