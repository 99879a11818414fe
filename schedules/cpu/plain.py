"""Products and convolutions as plain reductions: any dtype, any geometry, no layout. Correct first, slow."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from transpiler.ir import TensorType
from transpiler.ops.base import Load, Op, Reduction
from transpiler.ops.channels_last import ConvLast, first_axes
from transpiler.ops.conv import Conv, ConvTranspose
from transpiler.ops.linalg import Linear, Matmul
from transpiler.ops.packed import BLOCK
from transpiler.ops.planes import ConvPlanes, WinogradPlanes
from transpiler.ops.winograd import filter_from_rows
from transpiler.ops.winograd_last import WinogradLast

from ..scalar import Tir

Expr = Any
Plain = Callable[[Tir, Sequence[Load], Sequence[TensorType], Sequence[Expr]], Reduction]


def plain_reduction(op: Op) -> Plain | None:
    """The reduction that gives one output element of `op`, or None."""
    match op:
        case Linear():
            return _linear
        case Matmul():
            return lambda s, x, types, index: _matmul(op, s, x, types, index)
        case Conv():
            return lambda s, x, types, index: _conv(op, s, x, types, index)
        case ConvLast():
            return lambda s, x, types, index: _conv_last(op, s, x, types, index)
        case ConvPlanes():
            return lambda s, x, types, index: _conv_planes(op, s, x, types, index)
        case WinogradPlanes():
            return lambda s, x, types, index: _winograd_planes(op, s, x, types, index)
        case WinogradLast():
            return lambda s, x, types, index: _winograd_last(op, s, x, types, index)
        case ConvTranspose():
            return lambda s, x, types, index: _conv_transpose(op, s, x, types, index)
    return None


def _sum(
    s: Tir, dtype: str, extents: Sequence[Any], body: Callable[[Sequence[Expr]], Expr], bias: Expr | None
) -> Reduction:
    return Reduction(
        extents=tuple(extents),
        init=(s.const(0, dtype),),
        body=lambda r: (body(r),),
        combine=lambda a, b: (s.wrapping(operator.add, a[0], b[0]),),
        finish=lambda state: state[0] if bias is None else s.wrapping(operator.add, state[0], bias),
    )


def _linear(s: Tir, x: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Reduction:
    *leading, column = index
    bias = x[2](column) if len(x) == 3 else None
    return _sum(
        s,
        types[0].dtype,
        [types[1].shape[1]],
        lambda r: s.wrapping(operator.mul, x[0](*leading, r[0]), x[1](column, r[0])),
        bias,
    )


def _matmul(op: Matmul, s: Tir, x: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Reduction:
    *batch, row, column = index

    def entry(type_: TensorType) -> list[Expr]:
        shape = type_.shape[:-2]
        own = batch[len(batch) - len(shape) :]
        return [0 if size == 1 else i for i, size in zip(own, shape, strict=True)]

    left, right = entry(types[0]), entry(types[1])

    def body(r: Sequence[Expr]) -> Expr:
        place = (column, r[0]) if op.transpose_b else (r[0], column)
        return s.wrapping(operator.mul, x[0](*left, row, r[0]), x[1](*right, *place))

    return _sum(s, types[0].dtype, [types[0].shape[-1]], body, None)


def _conv(op: Conv, s: Tir, x: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Reduction:
    n, channel, *position = index
    out_channels, group_size, *kernel = types[1].static_shape()
    first = s.floordiv(channel, out_channels // op.groups) * group_size if op.groups > 1 else 0

    def body(r: Sequence[Expr]) -> Expr:
        inner, *taps = r
        value = _at_taps(op, s, x[0], types[0], (n, first + inner), position, taps)
        return s.wrapping(operator.mul, value, x[1](channel, inner, *taps))

    bias = x[2](channel) if len(x) == 3 else None
    return _sum(s, types[0].dtype, [group_size, *kernel], body, bias)


def _at_taps(
    op: Conv, s: Tir, x: Load, type_: TensorType, plane: Sequence[Expr], position: Sequence[Expr], taps: Sequence[Expr]
) -> Expr:
    """The element of the map that meets `taps` at an output position; 0 in the padding."""
    inside: Expr = None
    places = []
    for axis, size in enumerate(s.size(size) for size in type_.shape[2:]):
        place = position[axis] * op.stride[axis] + taps[axis] * op.dilation[axis] - op.padding[axis]
        places.append(place)
        if op.padding[axis]:
            fits = s.logical_and(place >= 0, place < size)
            inside = fits if inside is None else s.logical_and(inside, fits)
    value = x(*plane, *places)
    return value if inside is None else s.guarded(inside, value, s.const(0, type_.dtype))


def _conv_last(
    op: ConvLast, s: Tir, x: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
) -> Reduction:
    """The same with loads from PyTorch's places."""
    loads, first = [_turned(load) for load in x[:2]], [_turned_type(type_) for type_ in types[:2]]
    place = [index[axis] for axis in first_axes(len(index))]
    return _conv(op.plain(), s, [*loads, *x[2:]], [*first, *types[2:]], place)


def _turned(load: Load) -> Load:
    """Loads by PyTorch's places from where channels lie last."""
    return lambda *place: load(place[0], *place[2:], place[1])


def _turned_type(type_: TensorType) -> TensorType:
    return type_.with_shape(tuple(type_.shape[axis] for axis in first_axes(type_.rank)))


def _conv_planes(
    op: ConvPlanes, s: Tir, x: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
) -> Reduction:
    n, channel, *position = index
    block, lane = s.floordiv(channel, BLOCK), s.floormod(channel, BLOCK)

    def body(r: Sequence[Expr]) -> Expr:
        inner, *taps = r
        value = _at_taps(op.plain(), s, x[0], types[0], (n, inner), position, taps)
        return s.wrapping(operator.mul, value, x[1](block, inner, *taps, lane))

    bias = x[2](channel) if len(x) == 3 else None
    return _sum(s, types[0].dtype, types[1].static_shape()[1:-1], body, bias)


def _winograd_planes(
    op: WinogradPlanes, s: Tir, x: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
) -> Reduction:
    """The direct sum, with the filter from its values at the points."""
    n, channel, *position = index
    block, lane = s.floordiv(channel, BLOCK), s.floormod(channel, BLOCK)
    terms, width = filter_from_rows(op.tile), op.tile + 2

    def factor(inner: Expr, y: int, z: int) -> Expr:
        inner_block, inner_lane = s.floordiv(inner, BLOCK), s.floormod(inner, BLOCK)
        total = s.const(0, types[0].dtype)
        for v, a in terms[y]:
            for u, b in terms[z]:
                part = x[1](block, v * width + u, inner_block, inner_lane, lane)
                total += s.const(a * b, types[0].dtype) * part
        return total

    def body(r: Sequence[Expr]) -> Expr:
        total = s.const(0, types[0].dtype)
        for y in range(3):
            for z in range(3):
                value = _at_taps(op.plain(), s, x[0], types[0], (n, r[0]), position, (y, z))
                total += s.bind(value) * factor(r[0], y, z)
        return total

    bias = x[2](channel) if len(x) == 3 else None
    return _sum(s, types[0].dtype, [types[0].shape[1]], body, bias)


def _winograd_last(
    op: WinogradLast, s: Tir, x: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
) -> Reduction:
    place = [index[axis] for axis in first_axes(len(index))]
    return _winograd_planes(op.planes(), s, [_turned(x[0]), *x[1:]], [_turned_type(types[0]), *types[1:]], place)


def _conv_transpose(
    op: ConvTranspose, s: Tir, x: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
) -> Reduction:
    """Gathers: input position i and tap k meet output i * stride - padding + k * dilation."""
    n, channel, *position = index
    in_channels, group_out, *kernel = types[1].static_shape()
    spatial = [s.size(size) for size in types[0].shape[2:]]
    per_group = in_channels // op.groups
    group = s.floordiv(channel, group_out) if op.groups > 1 else 0
    within = s.floormod(channel, group_out) if op.groups > 1 else channel

    def body(r: Sequence[Expr]) -> Expr:
        inner, *taps = r
        inside: Expr = None
        places = []
        for axis, size in enumerate(spatial):
            reach = position[axis] + op.padding[axis] - taps[axis] * op.dilation[axis]
            place = s.floordiv(reach, op.stride[axis]) if op.stride[axis] > 1 else reach
            places.append(place)
            fits = s.logical_and(reach >= 0, place < size)
            if op.stride[axis] > 1:
                fits = s.logical_and(fits, s.eq(s.floormod(reach, op.stride[axis]), 0))
            inside = fits if inside is None else s.logical_and(inside, fits)
        value = s.guarded(inside, x[0](n, group * per_group + inner, *places), s.const(0, types[0].dtype))
        return s.wrapping(operator.mul, value, x[1](group * per_group + inner, within, *taps))

    bias = x[2](channel) if len(x) == 3 else None
    return _sum(s, types[0].dtype, [per_group, *kernel], body, bias)
