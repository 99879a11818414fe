"""Views of storage: as_strided and its relatives, on values that have no storage but a known layout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transpiler.dims import Dim, product
from transpiler.ir import Array, TensorType, Value
from transpiler.ops.base import Expr, ImportContext, Injective, Load, OpError, Sample, Scalar, aten, normalize_axis
from transpiler.ops.creation import Full
from transpiler.ops.dtypes import draw, out_type, plain
from transpiler.ops.index import IndexPut, Take
from transpiler.ops.shape_edges import SliceUpdate
from transpiler.ops.views import cut, reshape, transpose


class AsStrided(Injective, name="as_strided"):
    """out[i, j, ...] = x[offset + i * strides[0] + j * strides[1] + ...] of a rank-1 `x`; no stride is negative."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def infer(self, x: TensorType) -> TensorType:
        if x.rank != 1 or len(self.size) != len(self.strides) or min((*self.strides, self.offset), default=0) < 0:
            raise OpError(f"as_strided{self.attributes()} of {x}")
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.size, self.strides, strict=True))
        if math.prod(self.size) and isinstance(x.shape[0], int) and last >= x.shape[0]:
            raise OpError(f"as_strided reads element {last} of {x}")
        return x.with_shape(self.size)

    def positions(self) -> Array:
        """Where each element is read, int64."""
        grid = np.indices(self.size, sparse=True)
        strides = zip(grid, self.strides, strict=True)
        return np.broadcast_to(self.offset + sum((axis * stride for axis, stride in strides), np.int64(0)), self.size)

    def reference(self, x: Array) -> Array:
        return x[self.positions()]

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        position: Expr = self.offset
        for i, stride in zip(index, self.strides, strict=True):
            position = position + i * stride
        return inputs[0](position)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = draw("as_strided", "float32", 40)
        yield Sample("frames", cls((8, 5), (3, 1), 2), (x,), exact=True)
        yield Sample("transposed", cls((2, 5, 4), (20, 1, 5)), (x,), exact=True)
        yield Sample("repeated", cls((3, 17), (0, 2), 1), (x,), exact=True)
        yield Sample("rank0", cls((), (), 7), (x,), exact=True)
        yield Sample("int64", cls((3, 3), (4, 1)), (draw("as_strided", "int64", 11),), exact=True)
        yield Sample("empty", cls((0, 3), (4, 1)), (x,), exact=True)


# --- importing from ATen ---------------------------------------------------------------------------------


def _memory(context: ImportContext, x: Value) -> tuple[Value, list[int]]:
    """The elements of `x` in the order of PyTorch's memory, flat, and the axes from the outermost to the innermost.

    Only for layouts without gaps and overlaps, in storage of their own: what lies outside of `x` is not known.
    """
    strides, offset = context.storage()
    order = sorted(range(x.type.rank), key=lambda axis: (-_known(context, strides[axis]), axis))
    expected = 1
    for axis in reversed(order):
        size = _known(context, x.shape[axis])
        if size != 1 and strides[axis] != expected and 0 not in x.shape:
            raise context.unsupported("the memory of a tensor with gaps or overlaps; call contiguous() first")
        expected *= size
    if offset != 0:
        raise context.unsupported("the memory of a part of another tensor; call contiguous() first")
    return reshape(context, transpose(context, x, order), (expected,)), order


def _known(context: ImportContext, dim: Dim) -> int:
    if not isinstance(dim, int):
        raise context.unsupported("the memory of a tensor whose sizes are symbolic")
    return dim


def _strided(context: ImportContext, size: Sequence[Dim], stride: Sequence[Dim], offset: Any) -> AsStrided:
    fixed = [tuple(_known(context, dim) for dim in dims) for dims in (size, stride)]
    return AsStrided(fixed[0], fixed[1], _known(context, offset or 0))


@aten("as_strided.default", "as_strided_copy.default")
def _as_strided(context: ImportContext, x: Value, size: Any, stride: Any, storage_offset: Any = None) -> Any:
    flat, _ = _memory(context, x)
    return context.emit(_strided(context, size, stride, storage_offset), flat)


@aten("as_strided_scatter.default")
def _as_strided_scatter(
    context: ImportContext, x: Value, src: Value, size: Any, stride: Any, storage_offset: Any = None
) -> Any:
    flat, order = _memory(context, x)
    places = _strided(context, size, stride, storage_offset).positions()
    if len(np.unique(places)) != places.size:
        raise context.unsupported("as_strided_scatter to places that overlap")
    written = context.emit(IndexPut((0,)), flat, context.cast(src, x.dtype), context.array(places))
    ordered = reshape(context, written, [x.shape[axis] for axis in order])
    return transpose(context, ordered, [order.index(axis) for axis in range(len(order))])


@aten("resize.default", "resize_as.default")
def _resize(context: ImportContext, x: Value, *_: Any, **__: Any) -> Any:
    """The first elements in memory."""
    shape = out_type(context).shape
    flat, _order = _memory(context, x)
    count, own = (_known(context, product(dims)) for dims in (shape, x.shape))
    if count > own:
        raise context.unsupported("a resize to more elements: the new ones are undefined")
    return reshape(context, cut(context, flat, 0, 0, count), shape)


@aten("diagonal_scatter.default")
def _diagonal_scatter(
    context: ImportContext, x: Value, src: Value, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Any:
    """A diagonal is a slice, with the step of a row and one, of the flattened matrix."""
    rank = x.type.rank
    first, second = normalize_axis(dim1, rank), normalize_axis(dim2, rank)
    perm = [*(axis for axis in range(rank) if axis not in (first, second)), first, second]
    columns = _known(context, x.shape[second])
    start = offset if offset >= 0 else -offset * columns
    length = _known(context, src.shape[-1])
    if length == 0:
        return x
    matrices = transpose(context, x, perm)
    *outer, n, m = matrices.shape
    flat = reshape(context, matrices, (*outer, n * m))
    zeros, ones = (0,) * len(outer), (1,) * len(outer)
    stop = start + (length - 1) * (columns + 1) + 1
    op = SliceUpdate((*zeros, start), (*outer, stop), (*ones, columns + 1))
    updated = reshape(context, context.emit(op, flat, context.cast(src, x.dtype)), matrices.shape)
    return transpose(context, updated, [perm.index(axis) for axis in range(rank)])


@aten("take.default")
def _take(context: ImportContext, x: Value, index: Value) -> Any:
    if 0 in index.shape:  # also of no elements
        return context.emit(Full(plain(0, x.dtype), index.shape, x.dtype))
    return context.emit(Take(0), reshape(context, x, (product(x.shape),)), index)


@aten("put.default")
def _put(context: ImportContext, x: Value, index: Value, source: Value, accumulate: bool = False) -> Any:
    """Flat positions; those that repeat are written in order."""
    if accumulate and x.dtype == "bool":  # their sum is an or
        wide, added = context.cast(x, "int32"), context.cast(source, "int32")
        return context.cast(_put(context, wide, index, added, True), "bool")
    flat = reshape(context, x, (product(x.shape),))
    places = reshape(context, index, (product(index.shape),))
    values = reshape(context, source, (product(source.shape),))
    return reshape(context, context.emit(IndexPut((0,), accumulate), flat, values, places), x.shape)
