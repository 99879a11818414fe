"""Winograd convolutions on plain maps, with what is fused behind them: the kernels of gpu/winograd.py."""

from __future__ import annotations

from transpiler.group import Group, Lowered
from transpiler.ops.planes import WinogradPlanes
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..gpu.winograd import WORKSPACE, Geometry, Winograd, lower
from ..sizes import is_fixed


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

    padding = node.op.padding[0], node.op.padding[1]
    geometry = Geometry(
        0, images, channels, height, width, out_channels, out_height, out_width, padding, node.op.tile
    )  # fmt: skip
    return lower(group, target, name, Winograd, WORKSPACE, geometry)
