"""x @ W.T + bias with a packed weight: the register-tiled product of `product.py`.

W is [N/16, K, 16]: a panel is contiguous, so the inner loop streams it. One row of x (batch 1) is a matrix-vector
product: up to eight panels run at once for latency, and the weight's bytes are the limit. The bias is an epilogue
term. Half floats of W are converted as they are loaded.
"""

from __future__ import annotations

from transpiler.group import Group, Lowered
from transpiler.ir import Node
from transpiler.ops.packed import LinearPacked
from transpiler.target import Target

from ..fuse import lowered
from ..halves import only_operands, operand
from ..sizes import count, extent, is_empty
from ..tir import LANES, Buffer, KernelBuilder, unflatten
from .epilogue import Epilogue, elementwise_epilogue
from .product import Product, emit_product

EPILOGUE = True


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, LinearPacked):
        return None
    if not only_operands(group) or not elementwise_epilogue(group):
        return None
    x, weight, *bias = node.inputs
    *leading, depth = x.type.shape
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    with builder:
        a = operand(group, builder, x)
        b = operand(group, builder, weight)
        offset = builder.inputs[group.input_index(bias[0])] if bias else None
        if not is_empty(leading):
            emit_product(target.isa, product_of(node, a, b, offset, Epilogue(group, builder)))
    return lowered(group, builder, flops=2 * count(leading) * node.op.features * depth)


def product_of(node: Node, a: Buffer, b: Buffer, bias: Buffer | None, epilogue: Epilogue) -> Product:
    """What a `LinearPacked` computes."""
    assert isinstance(node.op, LinearPacked)
    *leading, depth = node.inputs[0].type.shape
    k = extent(depth)
    return Product(
        extent(count(leading)), node.op.features, k,
        load_a=lambda row, step: a[row * k + step],
        load_b=lambda panel, step: b.vector((panel * k + step) * LANES),
        epilogue=epilogue,
        place=lambda row, column: [*unflatten(row, leading), column],
        bias=bias,
        fetch_b=lambda panel, step: b.fetch((panel * k + step) * LANES),
    )  # fmt: skip
