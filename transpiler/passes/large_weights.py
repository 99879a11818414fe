"""Weights that are larger than what a kernel may see through one binding, in pieces of whole rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from transpiler.ir import Graph, Node, Value
from transpiler.ops.compare import Lt, Where
from transpiler.ops.creation import Full
from transpiler.ops.elementwise import Add, Sub
from transpiler.ops.elementwise_unary import Clamp
from transpiler.ops.index import Take
from transpiler.ops.linalg import Linear
from transpiler.ops.shape import Concat, Reshape, Slice
from transpiler.passes.rewrite import Rewriter, rewrite
from transpiler.passes.weights import weight_values

# What every Vulkan device takes (maxStorageBufferRange, table "Required Limits" of the specification).
LIMIT = 1 << 27


def in_pieces(graph: Graph, limit: int = LIMIT) -> Graph:
    """Matrices of `linear` and tables of `take` of more than `limit` bytes, cut between rows.

    before: %y = linear(%x, %w, %b)
    after:  %a = linear(%x, %w[:n], %b[:n]); %c = linear(%x, %w[n:], %b[n:]); %y = concat(%a, %c)

    before: %y = take(%t, %i)
    after:  %a = take(%t[:n], min(%i, n - 1)); %c = take(%t[n:], max(%i, n) - n); %y = where(%i < n, %a, %c)
    The first and the last piece find the indices that are out of bounds.
    """
    weights = weight_values(graph)

    def visit(rewriter: Rewriter, node: Node) -> Sequence[Value] | None:
        position = {Linear: 1, Take: 0}.get(type(node.op))
        if position is None or (isinstance(node.op, Take) and node.op.axis != 0):
            return None
        weight = node.inputs[position]
        if weight.name not in weights or not weight.type.is_static:
            return None
        size = weight.type.bytes
        if not isinstance(size, int) or size <= limit:
            return None
        count = weight.type.static_shape()[0]
        rows = limit // (size // count)
        if rows == 0:
            return None  # a row alone is too large: the runtime says so
        cuts = [*range(0, count, rows), count]
        return _linear(rewriter, node, cuts) if position else _take(rewriter, node, cuts)

    return rewrite(graph, visit)


def _pieces(rewriter: Rewriter, weight: Value, cuts: Sequence[int]) -> Iterator[Value]:
    rest = weight.type.static_shape()[1:]
    for start, stop in pairwise(cuts):
        op = Slice((start, *(0 for _ in rest)), (stop, *rest), (1,) * (1 + len(rest)))
        yield rewriter.emit(op, weight, like=weight)


def _linear(rewriter: Rewriter, node: Node, cuts: Sequence[int]) -> list[Value]:
    x, *weights = node.inputs
    pieces = zip(*(_pieces(rewriter, value, cuts) for value in weights), strict=True)
    results = [rewriter.emit(Linear(), x, *piece, like=None) for piece in pieces]
    return [rewriter.emit(Concat(node.output.type.rank - 1), *results, like=node.output)]


def _take(rewriter: Rewriter, node: Node, cuts: Sequence[int]) -> list[Value]:
    table, index = node.inputs
    assert isinstance(node.op, Take)

    def number(value: int) -> Value:
        return rewriter.emit(Full(value, (), index.dtype), like=None)

    def below(value: Value, stop: int) -> Value:
        return rewriter.emit(Lt(), value, number(stop), like=None)

    if node.op.wraps:
        from_end = rewriter.emit(Add(), index, number(cuts[-1]), like=None)
        index = rewriter.emit(Where(), below(index, 0), from_end, index, like=None)
    taken = []
    for piece, (start, stop) in zip(_pieces(rewriter, table, cuts), pairwise(cuts), strict=True):
        low, high = start or None, None if stop == cuts[-1] else stop - 1
        inside = rewriter.emit(Clamp(low, high), index, like=None)
        if start:
            inside = rewriter.emit(Sub(), inside, number(start), like=None)
        taken.append(rewriter.emit(Take(0, wraps=False), piece, inside, like=None))
    result = taken.pop()
    shape = (*index.shape, *(1 for _ in table.shape[1:]))
    for stop, values in reversed(list(zip(cuts[1:], taken, strict=False))):
        here = rewriter.emit(Reshape(shape), below(index, stop), like=None)
        result = rewriter.emit(Where(), here, values, result, like=node.output if stop == cuts[1] else None)
    return [result]
