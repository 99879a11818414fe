"""Linear layers and batched products of matrices, on tensor cores or in float32, with what is fused behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ir import Node
from transpiler.ops.dtypes import numpy_dtype
from transpiler.ops.linalg import Linear, Matmul
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..fuse import lowered
from ..sizes import count, extent, is_empty
from ..tir import KernelBuilder, unflatten
from .cores import emit
from .epilogue import RunEpilogue
from .operands import Matrices, bias_of, broadcast, only_widens, product_kind, stored_dtype, widened
from .product import Product

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
    left, right, shared = _matrices(kind, group, node)
    elements = left.workspace + right.workspace
    builder = KernelBuilder(
        name, [value.type for value in group.inputs], [group.outputs[0].type],
        workspace=elements, workspace_dtype=stored_dtype(kind),
    )  # fmt: skip
    with builder:
        buffers = [builder.inputs[group.input_index(widened(group, value))] for value in node.inputs[:2]]
        operands = [part.operand(buffer, builder) for part, buffer in zip((left, right), buffers, strict=True)]
        batches = 1 if shared else extent(count(shape[:-2]))
        rows, columns = extent(left.lines), extent(shape[-1])
        bias = bias_of(group, builder, node)
        product = Product(
            kind, batches, rows, columns, extent(left.inner), operands[0], operands[1],
            place=_place(shape, shared), run=columns,
            column_bias=None if bias is None else lambda _, column: bias(column),
        )  # fmt: skip
        emit(product, RunEpilogue(group, builder), target)
    workspace = elements * int(numpy_dtype(stored_dtype(kind)).itemsize) + builder.appended_bytes
    return lowered(group, builder, flops=2 * count(shape) * left.inner, workspace=workspace)


def _matrices(kind: str, group: Group, node: Node) -> tuple[Matrices, Matrices, bool]:
    """Both operands, and whether all rows of the result meet the same right matrix."""
    (*leading, inner), b = (value.type.shape for value in node.inputs[:2])
    left, right = (widened(group, value).dtype for value in node.inputs[:2])

    def single(dtype: str, lines: Dim, *, across: bool = False) -> Matrices:
        return Matrices(kind, dtype, 1, lines, inner, lambda _: 0, across)

    if isinstance(node.op, Linear):
        return single(left, count(leading)), single(right, b[0]), True
    assert isinstance(node.op, Matmul)
    batch, columns = node.output.type.shape[:-2], node.output.type.shape[-1]
    across = not node.op.transpose_b
    if all(dim == 1 for dim in b[:-2]) and tuple(leading[:-1]) == batch:
        return single(left, count(leading)), single(right, columns, across=across), True
    a_batch, b_batch = tuple(leading[:-1]), b[:-2]
    return (
        Matrices(kind, left, count(a_batch), leading[-1], inner, broadcast(a_batch, batch)),
        Matrices(kind, right, count(b_batch), columns, inner, broadcast(b_batch, batch), across),
        False,
    )


def _place(shape: tuple[Dim, ...], shared: bool) -> Callable[[Expr, Expr, Expr], Sequence[Expr]]:
    if shared:
        return lambda _, row, column: [*unflatten(row, shape[:-1]), column]
    return lambda batch, row, column: [*unflatten(batch, shape[:-2]), row, column]
