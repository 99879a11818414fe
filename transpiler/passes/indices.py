"""Indices that are known, as int32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from transpiler.ir import Array, Graph, Node, Program, Role, Value
from transpiler.ops.base import Op
from transpiler.ops.compare import Cast
from transpiler.ops.index import Gather, Index, IndexPut, Take
from transpiler.ops.scatter import Scatter, ScatterAdd, ScatterMax, ScatterMin, ScatterMul
from transpiler.passes.fold import MAX_CONSTANT_BYTES
from transpiler.passes.rewrite import Rewriter, rewrite

# Which inputs are indices.
_INDICES: dict[type[Op], slice] = {
    Index: slice(1, None),
    IndexPut: slice(2, None),
    **dict.fromkeys((Take, Gather, Scatter, ScatterAdd, ScatterMul, ScatterMax, ScatterMin), slice(1, 2)),
}


def known_indices(program: Program) -> Program:
    """Constants of int64 that are indices become int32: devices without int64 can run a model that has no other.

    before: constant %i: int64[4]; %y = take(%x, %i)
    after:  constant %i: int64[4]; %n = cast(%i) {dtype = int32}; %y = take(%x, %n)

    Folding constants afterwards leaves the int32 alone.
    """
    for graph in program.functions.values():
        narrow = {
            item.value.name
            for item in graph.inputs
            if item.role is Role.CONSTANT and _fits(program.constants[item.key])
        }
        program = program.with_function(_narrowed(graph, narrow))
    return program


def _fits(array: Array) -> bool:
    if array.dtype != np.int64 or not 0 < array.size <= MAX_CONSTANT_BYTES // 4:
        return False
    limits = np.iinfo(np.int32)
    return bool(limits.min <= array.min() and array.max() <= limits.max)


def _narrowed(graph: Graph, narrow: set[str]) -> Graph:
    def visit(rewriter: Rewriter, node: Node) -> Sequence[Value] | None:
        which = node.inputs[_INDICES.get(type(node.op), slice(0))]
        indices = {value.name: value for value in which if value.name in narrow}
        if not indices:
            return None
        cast = {name: rewriter.emit(Cast("int32"), value) for name, value in indices.items()}
        inputs = list(node.inputs)
        inputs[_INDICES[type(node.op)]] = [cast.get(value.name, value) for value in which]
        return [rewriter.emit(node.op, *inputs, like=node.output)]

    return rewrite(graph, visit) if narrow else graph
