"""Linear layers and batched products of matrices on tensor cores, with what is fused behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ir import Node
from transpiler.ops.linalg import Linear, Matmul
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..fuse import lowered
from ..sizes import count, extent, is_empty
from ..tir import KernelBuilder, unflatten
from .epilogue import RunEpilogue
from .mma import MmaProduct
from .operands import Matrices, bias_of, broadcast, only_widens, product_kind, widened
from .tiles import mma_tile

Expr = Any


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, Linear | Matmul):
        return None
    kind = product_kind(group, node)
    if kind is None or not only_widens(group) or not elementwise_epilogue(group):
        return None
    shape = node.output.type.shape
    if is_empty(shape) or is_empty(node.inputs[0].type.shape):
        return None
    left, right, shared = _matrices(kind, node)
    elements = left.workspace + right.workspace
    builder = KernelBuilder(
        name, [value.type for value in group.inputs], [group.outputs[0].type],
        workspace=elements, workspace_dtype=_stored(kind),
    )  # fmt: skip
    with builder:
        buffers = [builder.inputs[group.input_index(widened(group, value))] for value in node.inputs[:2]]
        operands = [part.operand(buffer, builder) for part, buffer in zip((left, right), buffers, strict=True)]
        batches = 1 if shared else extent(count(shape[:-2]))
        rows, columns = extent(left.lines), extent(shape[-1])
        bias = bias_of(group, builder, node)
        product = MmaProduct(
            kind, batches, rows, columns, extent(left.inner), operands[0], operands[1],
            place=_place(shape, shared), run=columns,
            column_bias=None if bias is None else lambda _, column: bias(column),
        )  # fmt: skip
        product.emit(mma_tile(batches, rows, columns), RunEpilogue(group, builder))
    size = 4 if kind == "tf32" else 2
    return lowered(group, builder, flops=2 * count(shape) * left.inner, workspace=elements * size)


def _stored(kind: str) -> str:
    return "float32" if kind == "tf32" else kind


def _matrices(kind: str, node: Node) -> tuple[Matrices, Matrices, bool]:
    """Both operands, and whether all rows of the result meet the same right matrix."""
    (*leading, inner), b = (value.type.shape for value in node.inputs[:2])
    if isinstance(node.op, Linear):
        return _single(kind, count(leading), inner), _single(kind, b[0], inner), True
    assert isinstance(node.op, Matmul)
    batch, columns = node.output.type.shape[:-2], node.output.type.shape[-1]
    transposed = node.op.transpose_b
    if all(dim == 1 for dim in b[:-2]) and tuple(leading[:-1]) == batch:
        return _single(kind, count(leading), inner), _single(kind, columns, inner, across=not transposed), True
    left = Matrices(kind, count(leading[:-1]), leading[-1], inner, broadcast(leading[:-1], batch))
    right = Matrices(kind, count(b[:-2]), columns, inner, broadcast(b[:-2], batch), across=not transposed)
    return left, right, False


def _single(kind: str, lines: Dim, inner: Dim, *, across: bool = False) -> Matrices:
    return Matrices(kind, 1, lines, inner, lambda _: 0, across)


def _place(shape: tuple[Dim, ...], shared: bool) -> Callable[[Expr, Expr, Expr], Sequence[Expr]]:
    if shared:
        return lambda _, row, column: [*unflatten(row, shape[:-1]), column]
    return lambda batch, row, column: [*unflatten(batch, shape[:-2]), row, column]
