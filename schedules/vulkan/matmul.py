"""Linear layers and batched products of matrices, row-major as they come, with what is fused behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ops.linalg import Linear, Matmul
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..fuse import lowered
from ..gpu.epilogue import Epilogue
from ..gpu.product import QUAD, Line, Product, Quads
from ..gpu.tiles import product_tile
from ..halves import only_operands, operand
from ..sizes import count, extent, is_empty, is_fixed
from ..tir import Buffer, KernelBuilder, flat_offset, unflatten
from ..vectors import held

Expr = Any
FLOATS = ("float32", "float64")
FEW_ROWS = 4


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, Linear | Matmul):
        return None
    if not only_operands(group) or not elementwise_epilogue(group):
        return None
    if node.output.dtype not in FLOATS:
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    shape = node.output.type.shape
    with builder:
        buffers = [operand(group, builder, value) for value in node.inputs]
        shapes = [value.type.shape for value in node.inputs]
        if not is_empty(shape):
            if isinstance(node.op, Linear):
                product = _linear(buffers, shapes, shape, node.output.dtype)
            else:
                product = _matmul(node.op.transpose_b, buffers, shapes, shape, node.output.dtype)
            product.emit(product_tile(target, product), Epilogue(group, builder))
    return lowered(group, builder, flops=2 * count(shape) * shapes[0][-1])


def _matrix(buffer: Buffer, base: Expr, line: Expr, pitch: Expr, step: Expr) -> Line:
    """Elements `step` apart from `line * pitch` on."""
    start = held(base + line * pitch)
    return lambda _: lambda k: buffer[start + k * step]


def _quads(buffer: Buffer, line: Expr, pitch: int) -> Line:
    """Elements of a row, four at once."""
    start = held(line * (pitch // QUAD))
    return lambda _: lambda k: buffer.vector((start + k) * QUAD, QUAD)


def _linear(buffers: list[Buffer], shapes: list[tuple[Dim, ...]], shape: tuple[Dim, ...], dtype: str) -> Product:
    x, weight, *bias = buffers
    leading, inner, columns = shape[:-1], extent(shapes[0][-1]), extent(shape[-1])
    rows = extent(count(leading))
    # Four elements of the summed dim at once, where tiles are so small that four times the multiply-adds in the loop
    # are no burden to compilers.
    along = dtype == "float32" and is_fixed(rows, inner) and rows <= FEW_ROWS and inner % QUAD == 0

    def quads(buffer: Buffer) -> Quads | None:
        return Quads(lambda _, line: _quads(buffer, line, inner), along=True) if along else None

    return Product(
        1, rows, columns, (inner,),
        left=lambda _, row: _matrix(x, 0, row, inner, 1),
        right=lambda _, column: _matrix(weight, 0, column, inner, 1),
        place=lambda _, column: lambda row: [*unflatten(row, leading), column],
        dtype=dtype,
        column_bias=(lambda _, column: bias[0][column]) if bias else None,
        left_quads=quads(x),
        right_quads=quads(weight),
    )  # fmt: skip


def _matmul(
    transpose_b: bool, buffers: list[Buffer], shapes: list[tuple[Dim, ...]], shape: tuple[Dim, ...], dtype: str
) -> Product:
    a, b = buffers
    batch, inner = shape[:-2], extent(shapes[0][-1])
    columns = extent(shape[-1])
    # One right matrix for all: the batch is only more rows.
    shared_right = all(isinstance(dim, int) and dim == 1 for dim in shapes[1][:-2]) and shapes[0][:-2] == batch
    rows = extent(count(shape[:-1]) if shared_right else shape[-2])

    across = dtype == "float32" and not transpose_b and is_fixed(columns) and columns % QUAD == 0

    def base(number: Expr, which: int) -> Expr:
        own = shapes[which][:-2]
        if shared_right or not own:
            return 0
        index = unflatten(number, batch)[len(batch) - len(own) :]
        place = flat_offset([0 if dim == 1 else i for dim, i in zip(own, index, strict=True)], own)
        return place * extent(count(shapes[which][-2:]))

    def right(number: Expr, column: Expr) -> Line:
        pitch, step = (inner, 1) if transpose_b else (1, columns)
        return _matrix(b, base(number, 1), column, pitch, step)

    def right_quads(number: Expr, column: Expr) -> Line:
        start = held(tirx.floordiv(base(number, 1) + column, QUAD))
        return lambda _: lambda k: b.vector((start + k * (columns // QUAD)) * QUAD, QUAD)

    def place(number: Expr, column: Expr) -> Callable[[Expr], Sequence[Expr]]:
        if shared_right:
            return lambda row: [*unflatten(row, shape[:-1]), column]
        index = [held(position) for position in unflatten(number, batch)]
        return lambda row: [*index, row, column]

    return Product(
        1 if shared_right else extent(count(batch)), rows, columns, (inner,),
        left=lambda number, row: _matrix(a, base(number, 0), row, inner, 1),
        right=right,
        place=place,
        dtype=dtype,
        right_quads=Quads(right_quads) if across else None,
    )  # fmt: skip
