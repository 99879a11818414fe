"""Batched products of two activations: `matmul`.

One product per batch entry with the register tile of `product.py`. B's panels are read where they lie when it is
[K, N] with N a multiple of 16; otherwise (transposed, or ragged columns) each entry's B is packed into the workspace
first, K x N moves against M x K x N multiply-adds. The parallel loop is over the batch when there is one, else inside
the product. Other dtypes than float32 go through the generic reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ops.linalg import Matmul
from transpiler.target import Target

from ..fuse import lowered
from ..halves import only_operands, operand
from ..sizes import ceil_div, count, extent, extents, is_empty, is_fixed, is_large
from ..tir import LANES, KernelBuilder, flat_offset, loop, unflatten
from .epilogue import Epilogue, elementwise_epilogue
from .gemm import pack_columns
from .product import Product, emit_product, product_tile

EPILOGUE = True

Expr = Any


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, Matmul) or not only_operands(group) or not elementwise_epilogue(group):
        return None
    left, right = node.inputs
    if left.dtype != "float32":
        return None
    *batch, rows, columns = node.output.type.shape
    depth = left.type.shape[-1]
    m, n, k = extents((rows, columns, depth))
    transposed = node.op.transpose_b
    direct = not transposed and isinstance(columns, int) and columns % LANES == 0
    entries = count(batch)
    b_batch = right.type.shape[:-2]
    # Groups of panels are whole where their number is a symbol.
    width = LANES if isinstance(columns, int) else LANES * product_tile(target.isa, m, n).panels
    packed_size = 0 if direct else ceil_div(columns, width) * width * depth
    distinct = count(b_batch)
    # Entries that share one B (broadcast) share its packed form only if B has no batch at all.
    copies = 1 if distinct == 1 else entries
    builder = KernelBuilder(
        name,
        [value.type for value in group.inputs],
        [group.outputs[0].type],
        workspace=packed_size * copies,
    )
    with builder:
        a = operand(group, builder, left)
        b = operand(group, builder, right)
        epilogue = Epilogue(group, builder)
        packed = builder.scratch(packed_size * copies) if packed_size * copies else None

        def pack(b_base: Expr, base: Expr) -> None:
            assert packed is not None
            read = (lambda row, column: b[b_base + column * k + row]) if transposed else (
                lambda row, column: b[b_base + row * n + column]
            )  # fmt: skip
            pack_columns(read, packed, base, k, n, extent(packed_size) // (k * LANES) if not is_fixed(n) else None)

        def entry(index: Sequence[Expr], a_base: Expr, b_base: Expr, base: Expr, parallel: bool) -> None:
            product = Product(
                m, n, k,
                load_a=lambda row, step: a[a_base + row * k + step],
                load_b=(lambda panel, step: b.vector(b_base + step * n + panel * LANES)) if packed is None else (
                    lambda panel, step: packed.vector(base + (panel * k + step) * LANES)
                ),
                epilogue=epilogue,
                place=lambda row, column: [*index, row, column],
                adjacent=packed is None,
            )  # fmt: skip
            emit_product(target.isa, product, parallel=parallel)

        if packed is not None and copies == 1 and not is_empty(batch):
            pack(0, 0)
        if is_empty((*batch, rows)):
            pass
        elif entries == 1:
            entry([0] * len(batch), 0, 0, 0, True)
        else:
            with loop(extent(entries), parallel=is_large(entries * rows * columns * depth)) as fused:
                index = unflatten(fused, batch)
                a_base = _batch_offset(index, left.type.shape[:-2]) * (m * k)
                b_base = _batch_offset(index, b_batch) * (n * k)
                base = fused * extent(packed_size) if copies != 1 else 0
                if packed is not None and copies != 1:
                    pack(b_base, base)
                entry(index, a_base, b_base, base, False)
    return lowered(group, builder, flops=2 * entries * rows * columns * depth, workspace=packed_size * copies * 4)


def _batch_offset(index: Sequence[Expr], batch: Sequence[Dim]) -> Expr:
    """Row-major offset of the (right-aligned, broadcast) batch dims."""
    own = index[len(index) - len(batch) :]
    return flat_offset([0 if size == 1 else i for i, size in zip(own, batch, strict=True)], batch)
