"""Convolutions as implicit products of matrices, in 1 to 3 dimensions on maps as they come (channels first).

Rows are the output channels of a group, columns the output positions of all images, so that neighbouring threads have
neighbouring positions; the summed loops are taps outside, input channels inside. No im2col buffer exists: where a tap
of a position lies, and whether it is in the padding, is worked out once for all channels. Taps in the padding read an
element that is there and count as 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ops.conv import Conv
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..fuse import lowered
from ..gpu.epilogue import Epilogue
from ..gpu.product import Line, Product
from ..gpu.tiles import tile_for
from ..halves import only_operands, operand
from ..sizes import count, extent, extents, is_empty
from ..tir import Buffer, KernelBuilder, flat_offset, unflatten
from ..vectors import held

Expr = Any
FLOATS = ("float32", "float64")


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, Conv) or not only_operands(group) or not elementwise_epilogue(group):
        return None
    if node.output.dtype not in FLOATS:
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    shape, weight = node.output.type.shape, node.inputs[1].type.static_shape()
    with builder:
        buffers = [operand(group, builder, value) for value in node.inputs]
        if not is_empty(shape):
            product = implicit_product(node.op, buffers, node.inputs[0].type.shape, weight, shape, node.output.dtype)
            product.emit(
                tile_for(target, product.rows, product.columns, count(product.inner)), Epilogue(group, builder)
            )
    return lowered(group, builder, flops=2 * count(shape) * count(weight[1:]))


def implicit_product(
    op: Conv, buffers: list[Buffer], x: tuple[Dim, ...], weight: tuple[int, ...], shape: tuple[Dim, ...], dtype: str
) -> Product:
    """`x`, `weight` and `shape` are the shapes of the map, of weight[O, C/groups, *K] and of the output."""
    source, weights, *bias = buffers
    out_channels, group_channels, *kernel = weight
    per_group = out_channels // op.groups
    sizes, positions = extents(x[2:]), shape[2:]
    inner = count(weight[1:])

    def left(group: Expr, row: Expr) -> Line:
        start = held((group * per_group + row) * inner)

        def channels(taps: Sequence[Expr]) -> Callable[[Expr], Expr]:
            first = held(start + flat_offset(taps, kernel))
            return lambda channel: weights[first + channel * count(kernel)]

        return channels

    def right(group: Expr, column: Expr) -> Line:
        image, *position = unflatten(column, (shape[0], *positions))
        corner = [held(p * stride - pad) for p, stride, pad in zip(position, op.stride, op.padding, strict=True)]
        start = held((image * extent(x[1]) + group * group_channels) * count(sizes))
        return lambda taps: _tap(op, source, start, corner, sizes, taps)

    def place(group: Expr, column: Expr) -> Callable[[Expr], Sequence[Expr]]:
        image, *position = [held(i) for i in unflatten(column, (shape[0], *positions))]
        first = group * per_group
        return lambda row: [image, first + row, *position]

    columns = extent(shape[0] * count(positions))
    return Product(
        op.groups, per_group, columns, (*kernel, group_channels), left, right, place, dtype,
        row_bias=(lambda group, row: bias[0][group * per_group + row]) if bias else None,
    )  # fmt: skip


def _tap(
    op: Conv, source: Buffer, start: Expr, corner: Sequence[Expr], sizes: Sequence[Expr], taps: Sequence[Expr]
) -> Callable[[Expr], Expr]:
    """The elements of the map, by input channel, at the taps of the window at `corner`."""
    offset: Expr = 0
    inside: list[Expr] = []
    for tap, dilation, padding, first, size in zip(taps, op.dilation, op.padding, corner, sizes, strict=True):
        at = first + tap * dilation
        if padding:
            at = held(at)
            inside += [at >= 0, at < size]
        offset = offset * size + at
    pitch = count(sizes)
    if not inside:
        place = held(start + offset)
        return lambda channel: source[place + channel * pitch]
    fits = held(tirx.Cast("int32", functools.reduce(tirx.And, inside)))
    place = held(tirx.Select(fits != 0, start + offset, start))
    zero = tirx.const(0, source.dtype)
    return lambda channel: tirx.Select(fits != 0, source[place + channel * pitch], zero)
