"""Convolutions as implicit products of matrices, in 1 to 3 dimensions on maps as they come (channels first).

Rows are the output channels of a group, columns the output positions of all images, so that neighbouring threads have
neighbouring positions; the summed loops are taps outside, input channels inside. No im2col buffer exists: where a tap
of a position lies, and whether it is in the padding, is worked out once for all channels. Taps in the padding read an
element that is there and count as 0. Packed filters are read four output channels at once, and maps that a 1x1 kernel
takes as they are four positions at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ops.conv import Conv
from transpiler.ops.packed import BLOCK
from transpiler.ops.planes import ConvPlanes
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..fuse import lowered
from ..gpu.epilogue import Epilogue
from ..gpu.product import QUAD, Line, Operand, Product, Quads
from ..gpu.tiles import product_tile
from ..halves import only_operands, operand
from ..sizes import Extent, count, extent, extents, is_empty, is_fixed
from ..tir import Buffer, KernelBuilder, flat_offset, unflatten
from ..vectors import held

Expr = Any
FLOATS = ("float32", "float64")


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if (
        node is None
        or not isinstance(node.op, Conv | ConvPlanes)
        or not only_operands(group)
        or not elementwise_epilogue(group)
    ):
        return None
    if node.output.dtype not in FLOATS:
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    shape, weight = node.output.type.shape, node.inputs[1].type.static_shape()
    with builder:
        buffers = [operand(group, builder, value) for value in node.inputs]
        if not is_empty(shape):
            product = implicit_product(node.op, buffers, node.inputs[0].type.shape, weight, shape, node.output.dtype)
            product.emit(product_tile(target, product), Epilogue(group, builder))
    taps = weight[1:-1] if isinstance(node.op, ConvPlanes) else weight[1:]
    return lowered(group, builder, flops=2 * count(shape) * count(taps))


def implicit_product(
    op: Conv | ConvPlanes,
    buffers: list[Buffer],
    x: tuple[Dim, ...],
    weight: tuple[int, ...],
    shape: tuple[Dim, ...],
    dtype: str,
) -> Product:
    """`x`, `weight` and `shape` are the shapes of the map, of the filter as it lies in memory and of the output."""
    source, weights, *bias = buffers
    if isinstance(op, ConvPlanes):
        conv, out_channels, (group_channels, *kernel) = op.plain(), op.channels, weight[1:-1]
        left_quads = Quads(_filter_quads(weights, weight))
        left = _packed_filters(weights, weight)
    else:
        conv, (out_channels, group_channels, *kernel) = op, weight
        left_quads = None
        left = _filters(weights, weight, op.groups)
    per_group = out_channels // conv.groups
    sizes, positions = extents(x[2:]), shape[2:]

    def right(group: Expr, column: Expr) -> Line:
        image, *position = unflatten(column, (shape[0], *positions))
        corner = [held(p * stride - pad) for p, stride, pad in zip(position, conv.stride, conv.padding, strict=True)]
        start = held((image * extent(x[1]) + group * group_channels) * count(sizes))
        return lambda taps: _tap(conv, source, start, corner, sizes, taps)

    def right_quads(group: Expr, column: Expr) -> Line:
        pitch = count(sizes)
        image, position = tirx.floordiv(column, pitch), tirx.floormod(column, pitch)
        plane = image * extent(x[1]) + group * group_channels
        start = held(plane * (pitch // QUAD) + tirx.floordiv(position, QUAD))
        return lambda _: lambda channel: source.vector((start + channel * (pitch // QUAD)) * QUAD, QUAD)

    def place(group: Expr, column: Expr) -> Callable[[Expr], Sequence[Expr]]:
        image, *position = [held(i) for i in unflatten(column, (shape[0], *positions))]
        first = group * per_group
        return lambda row: [image, first + row, *position]

    columns = extent(shape[0] * count(positions))
    return Product(
        conv.groups, per_group, columns, (*kernel, group_channels), left, right, place, dtype,
        row_bias=(lambda group, row: bias[0][group * per_group + row]) if bias else None,
        left_quads=left_quads, right_quads=Quads(right_quads) if _reads_quads(conv, kernel, sizes, dtype) else None,
    )  # fmt: skip


def _reads_quads(conv: Conv, kernel: Sequence[int], sizes: Sequence[Extent], dtype: str) -> bool:
    """Whether the right matrix is the map as it lies, in whole quads."""
    if dtype != "float32" or set(kernel) != {1} or set(conv.stride) != {1} or set(conv.padding) != {0}:
        return False
    return is_fixed(*sizes) and count(sizes) % QUAD == 0


def _filters(weights: Buffer, shape: tuple[int, ...], groups: int) -> Operand:
    """Of weight[O, C/groups, *K]."""
    out_channels, _, *kernel = shape
    inner = count(shape[1:])

    def line(group: Expr, row: Expr) -> Line:
        start = held((group * (out_channels // groups) + row) * inner)

        def channels(taps: Sequence[Expr]) -> Callable[[Expr], Expr]:
            first = held(start + flat_offset(taps, kernel))
            return lambda channel: weights[first + channel * count(kernel)]

        return channels

    return line


def _packed_filters(weights: Buffer, shape: tuple[int, ...]) -> Operand:
    """Of weight[ceil(O/16), C, *K, 16]."""
    return _packed(shape, BLOCK, lambda place: weights[place])


def _filter_quads(weights: Buffer, shape: tuple[int, ...]) -> Operand:
    return _packed(shape, BLOCK // QUAD, lambda place: weights.vector(place * QUAD, QUAD))


def _packed(shape: tuple[int, ...], lanes: int, load: Callable[[Expr], Expr]) -> Operand:
    """Filters by lanes of 16 output channels; `load` is given a lane's number."""
    _, channels, *kernel, _ = shape
    width = BLOCK // lanes
    pitch = count(kernel) * lanes

    def line(_group: Expr, row: Expr) -> Line:
        start = held(tirx.floordiv(row, BLOCK) * channels * pitch + tirx.floordiv(tirx.floormod(row, BLOCK), width))

        def at(taps: Sequence[Expr]) -> Callable[[Expr], Expr]:
            first = held(start + flat_offset(taps, kernel) * lanes)
            return lambda channel: load(first + channel * pitch)

        return at

    return line


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
