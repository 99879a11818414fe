"""Depthwise convolution in two dimensions: a thread computes a patch of a channel's output from one window of its map.

The taps lie in registers, and an element of the window is loaded once for all the taps and outputs that it serves: of a
3x3 kernel with a patch of 4x4, 36 loads for 144 multiply-adds. Limited by loads.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.conv import Conv
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..fuse import lowered
from ..gpu.epilogue import Epilogue
from ..gpu.threads import each_thread
from ..gpu.workgroup import private
from ..halves import only_operands, operand
from ..sizes import ceil_div, count, extents, is_empty
from ..tir import KernelBuilder, unflatten, when
from ..vectors import held

Expr = Any
PATCH = 4
# Larger kernels and strides have windows that registers do not hold.
MAX_WINDOW = 100


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, Conv) or not only_operands(group) or not elementwise_epilogue(group):
        return None
    op, shape, weight = node.op, node.output.type.shape, node.inputs[1].type.static_shape()
    if node.output.dtype not in ("float32", "float64") or len(op.stride) != 2 or weight[1] != 1 or op.groups == 1:
        return None
    spans = [(PATCH - 1) * s + (k - 1) * d + 1 for s, k, d in zip(op.stride, weight[2:], op.dilation, strict=True)]
    if count(spans) > MAX_WINDOW:
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    with builder:
        if not is_empty(shape):
            _emit(group, builder, op, weight, spans)
    return lowered(group, builder, flops=2 * count(shape) * count(weight[2:]))


def _emit(group: Group, builder: KernelBuilder, op: Conv, weight: tuple[int, ...], spans: list[int]) -> None:
    node = group.anchor_node
    assert node is not None
    source, weights, *bias = (operand(group, builder, value) for value in node.inputs)
    _, channels, *sizes = extents(node.inputs[0].type.shape)
    out_images, out_channels, *positions = extents(node.output.type.shape)
    dtype, kernel = node.output.dtype, weight[2:]
    patches = [ceil_div(size, PATCH) for size in positions]
    with each_thread(out_images * out_channels * count(patches)) as thread:
        image, channel, *patch = [held(i) for i in unflatten(thread, (out_images, out_channels, *patches))]
        first = [held(place * PATCH) for place in patch]
        taps = [held(weights[channel * count(kernel) + number]) for number in range(count(kernel))]
        begin = held(bias[0][channel]) if bias else tirx.const(0, dtype)
        sums = private(PATCH * PATCH, dtype)
        for number in range(PATCH * PATCH):
            sums.store(number, begin)
        per_channel = weight[0] // op.groups
        inner = channel if per_channel == 1 else tirx.floordiv(channel, per_channel)
        start = held((image * channels + inner) * count(sizes))
        down, across = ([held(f * s - p + i) for i in range(span)]
                        for f, s, p, span in zip(first, op.stride, op.padding, spans, strict=True))  # fmt: skip
        rows_fit, columns_fit = (
            [held(T.Cast("int32", tirx.And(at >= 0, at < size))) for at in places]
            for places, size in ((down, sizes[0]), (across, sizes[1]))
        )
        for y, row in enumerate(down):
            for x, column in enumerate(across):
                uses = _uses(op, kernel, y, x)
                if not uses:
                    continue
                fits = held(rows_fit[y] * columns_fit[x])
                place = tirx.Select(fits != 0, start + row * sizes[1] + column, start)
                element = held(tirx.Select(fits != 0, source[place], tirx.const(0, dtype)))
                for number, tap in uses:
                    sums.store(number, sums[number] + element * taps[tap])
        _store(group, builder, sums, [image, channel], first, positions)


def _uses(op: Conv, kernel: tuple[int, ...], y: int, x: int) -> list[tuple[int, int]]:
    """(output of the patch, tap) pairs that read the window's element at (y, x)."""
    found = []
    for i in range(PATCH):
        for j in range(PATCH):
            offsets = [at - place * s for at, place, s in zip((y, x), (i, j), op.stride, strict=True)]
            pairs = list(zip(offsets, op.dilation, kernel, strict=True))
            if all(offset >= 0 and offset % d == 0 and offset // d < k for offset, d, k in pairs):
                tap = (offsets[0] // op.dilation[0]) * kernel[1] + offsets[1] // op.dilation[1]
                found.append((i * PATCH + j, tap))
    return found


def _store(
    group: Group, builder: KernelBuilder, sums: Any, leading: list[Expr], first: list[Expr], positions: list[Expr]
) -> None:
    epilogue = Epilogue(group, builder)
    copy = private(PATCH * PATCH, sums.dtype)
    for number in range(PATCH * PATCH):
        copy.store(number, sums[number])
    with T.serial(0, PATCH) as i, T.serial(0, PATCH) as j:
        row, column = held(first[0] + i), held(first[1] + j)
        with when(tirx.And(row < positions[0], column < positions[1])):
            epilogue.store([*leading, row, column], copy[i * PATCH + j])
