"""Winograd convolutions on plain maps, with what is fused behind them: the kernels of gpu/winograd.py."""

from __future__ import annotations

from transpiler.group import Group, Lowered
from transpiler.ops.planes import WinogradPlanes
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..fuse import lowered
from ..gpu.epilogue import Epilogue
from ..gpu.winograd import Geometry, Winograd
from ..sizes import is_fixed
from ..tir import KernelBuilder

# Bytes of a workspace; maps of more images are computed in parts.
WORKSPACE = 96 << 20


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, WinogradPlanes) or group.prologue or not elementwise_epilogue(group):
        return None
    if not is_fixed(*node.inputs[0].shape):
        return None
    images, channels, height, width = node.inputs[0].type.static_shape()
    _, out_channels, out_height, out_width = node.output.type.static_shape()
    if min(images, channels, out_channels, out_height, out_width) == 0:
        return None

    op = node.op

    def part(first: int, count: int) -> Geometry:
        return Geometry(
            first, count, channels, height, width, out_channels, out_height, out_width,
            (op.padding[0], op.padding[1]), op.tile,
        )  # fmt: skip

    alone = part(0, 1)
    most = max(1, min(images, WORKSPACE // (4 * (alone.map_size + alone.product_size))))
    parts = [part(first, min(most, images - first)) for first in range(0, images, most)]
    size = parts[0].map_size + parts[0].product_size + 32
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type], workspace=size)
    with builder:
        source, weight, *bias = (builder.inputs[group.input_index(value)] for value in node.inputs)
        maps, products = builder.scratch(parts[0].map_size), builder.scratch(parts[0].product_size)
        for item in parts:
            kernels = Winograd(item, source, weight, bias[0] if bias else None, maps, products)
            kernels.emit(target, Epilogue(group, builder))
    flops = 2 * sum(item.points * item.columns for item in parts) * channels * out_channels
    return lowered(group, builder, flops=flops, workspace=size * 4)
