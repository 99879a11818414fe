"""Blocked maps to plain ones: 16 pixels of a block are transposed in registers by four rounds of shuffles.

The last pixels of a map are the last of a block of 16 that overlaps the one before. Limited by the bytes moved.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ir import fixed_size
from transpiler.ops.packed import UnpackChannels
from transpiler.target import Target

from ..fuse import lowered
from ..sizes import count, extent, is_fixed, is_large, is_several
from ..tir import LANES, Buffer, KernelBuilder, loop
from ..vectors import Vectors

Expr = Any


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.nodes[0]
    if len(group.nodes) != 1 or not isinstance(node.op, UnpackChannels) or node.output.dtype != "float32":
        return None
    images, blocks, height, width, _ = node.inputs[0].shape
    if not is_fixed(height, width) or fixed_size(height) * fixed_size(width) < LANES:
        return None
    pixels, channels = fixed_size(height) * fixed_size(width), node.op.channels
    builder = KernelBuilder(name, [node.inputs[0].type], [node.output.type])
    with builder:
        full, rest = divmod(channels, LANES)
        tasks = extent(images) * fixed_size(blocks)
        large = is_large(count(node.output.shape)) and is_several(tasks)
        with loop(tasks, parallel=large) as task:
            block = tirx.floormod(task, fixed_size(blocks))
            start = (tirx.floordiv(task, fixed_size(blocks)) * channels + block * LANES) * pixels
            if not rest:
                _unpack(builder.inputs[0], builder.outputs[0], task * (pixels * LANES), start, pixels, LANES)
            else:
                with T.If(block < full):
                    with T.Then():
                        _unpack(builder.inputs[0], builder.outputs[0], task * (pixels * LANES), start, pixels, LANES)
                    with T.Else():
                        _unpack(builder.inputs[0], builder.outputs[0], task * (pixels * LANES), start, pixels, rest)
    return lowered(group, builder, flops=0)


def _unpack(source: Buffer, target: Buffer, first: Expr, start: Expr, pixels: int, channels: int) -> None:
    """[pixels][16] at `first` to [channels][pixels] at `start`."""
    v = Vectors("float32")

    def square(pixel: Expr) -> None:
        v.transpose(
            lambda lane, channel: (source, first + (pixel + lane) * LANES + channel),
            lambda channel: (target, start + channel * pixels + pixel),
            rows=LANES,
            columns=channels,
        )

    with T.serial(0, pixels // LANES) as step:
        square(step * LANES)
    if pixels % LANES:
        square(pixels - LANES)
