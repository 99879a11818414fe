"""Reading and writing at indices that are data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transpiler.ir import Array, TensorType, Value
from transpiler.ops.base import (
    Expr,
    ImportContext,
    Injective,
    Load,
    Opaque,
    OpError,
    Sample,
    Scalar,
    aten,
    broadcast_shapes,
    normalize_axis,
    rng,
)
from transpiler.ops.compare import Cast, Eq, Where
from transpiler.ops.creation import Arange, Full
from transpiler.ops.dtypes import draw, plain
from transpiler.ops.elementwise import Add
from transpiler.ops.promotion import operand
from transpiler.ops.views import broadcast, reshape


def check_indices(name: str, *types: TensorType) -> None:
    if any(item.dtype not in ("int32", "int64") for item in types):
        raise OpError(f"{name}: int32 or int64 indices expected, got {', '.join(t.dtype for t in types)}")


def _refuse_negative(*indices: Array) -> None:
    if any((item < 0).any() for item in indices):
        raise IndexError("a negative index")


class Take(Injective, name="take"):
    """Rows of `x` along `axis`: x (…, n, …), indices (*i) -> (…, *i, …). An index may be negative if it `wraps`."""

    checks_index = True
    axis: int = 0
    wraps: bool = True

    def infer(self, x: TensorType, indices: TensorType) -> TensorType:
        check_indices(self.name, indices)
        if not 0 <= self.axis < x.rank:
            raise OpError(f"take: axis {self.axis} of {x}")
        return x.with_shape((*x.shape[: self.axis], *indices.shape, *x.shape[self.axis + 1 :]))

    def reference(self, x: Array, indices: Array) -> Array:
        if not self.wraps:
            _refuse_negative(indices)
        return np.take(x, indices, self.axis)

    def host(self, x: str, indices: str) -> str:
        return f"np.take({x}, {indices}, {self.axis})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        stop = self.axis + types[1].rank
        at = s.index(inputs[1](*index[self.axis : stop]), types[0].shape[self.axis], self.wraps)
        return inputs[0](*index[: self.axis], at, *index[stop:])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = draw("take", "float32", 7, 5)
        picks = rng("take").integers(0, 5, (3, 4))
        yield Sample("rows", cls(0), (x, picks), exact=True)
        yield Sample("columns_int32", cls(1), (x, picks.astype(np.int32)), exact=True)
        yield Sample("negative", cls(0), (x, np.array([-1, -7, 6, 0])), exact=True)
        yield Sample("rank0_index", cls(1), (x, np.array(2)), exact=True)
        yield Sample("no_indices", cls(0), (x, np.zeros((0,), np.int64)), exact=True)
        yield Sample("int64", cls(0), (draw("take", "int64", 5), picks), exact=True)


class Gather(Injective, name="gather"):
    """out[i, j] = x[indices[i, j], j] for axis 0; `indices` may be smaller than `x` along the other axes."""

    checks_index = True
    axis: int

    def infer(self, x: TensorType, indices: TensorType) -> TensorType:
        check_indices(self.name, indices)
        if not 0 <= self.axis < x.rank or indices.rank != x.rank:
            raise OpError(f"gather along axis {self.axis} of {x} at {indices}")
        return x.with_shape(indices.shape)

    def reference(self, x: Array, indices: Array) -> Array:
        part = tuple(slice(None) if axis == self.axis else slice(dim) for axis, dim in enumerate(indices.shape))
        return np.take_along_axis(x[part], indices.astype(np.int64), self.axis)

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        at = s.index(inputs[1](*index), types[0].shape[self.axis], wraps=False)
        return inputs[0](*index[: self.axis], at, *index[self.axis + 1 :])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = draw("gather", "float32", 5, 7)
        yield Sample("rows", cls(0), (x, rng("gather").integers(0, 5, (3, 7))), exact=True)
        yield Sample("smaller", cls(1), (x, rng("gather").integers(0, 7, (2, 9))), exact=True)
        yield Sample("int32", cls(1), (x, rng("gather").integers(0, 7, (5, 1), np.int32)), exact=True)


def _adjacent(axes: Sequence[int]) -> bool:
    return list(axes) == list(range(axes[0], axes[0] + len(axes)))


class Index(Injective, name="index"):
    """x[:, i, j, :] with index tensors that broadcast to one shape (*b).

    `axes` are the indexed axes, ascending, one per index tensor. If they are adjacent, (*b) stands in their
    place, otherwise in front, as in numpy and PyTorch.
    """

    checks_index = True
    axes: tuple[int, ...]

    def infer(self, x: TensorType, *indices: TensorType) -> TensorType:
        check_indices(self.name, *indices)
        ascending = sorted(set(self.axes)) == list(self.axes) and all(0 <= axis < x.rank for axis in self.axes)
        if not indices or len(indices) != len(self.axes) or not ascending:
            raise OpError(f"index: {len(indices)} index tensors for axes {self.axes} of {x}")
        box = broadcast_shapes(*(item.shape for item in indices))
        kept = [dim for axis, dim in enumerate(x.shape) if axis not in self.axes]
        front = self.axes[0] if _adjacent(self.axes) else 0
        return x.with_shape((*kept[:front], *box, *kept[front:]))

    def reference(self, x: Array, *indices: Array) -> Array:
        return np.asarray(x[self.key(x.ndim, indices)])

    def key(self, rank: int, indices: Sequence[Any]) -> tuple[Any, ...]:
        """What numpy is indexed with."""
        key: list[Any] = [slice(None)] * rank
        for axis, picks in zip(self.axes, indices, strict=True):
            key[axis] = picks
        return tuple(key)

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        x, *picks = types
        width = len(broadcast_shapes(*(item.shape for item in picks)))
        front = self.axes[0] if _adjacent(self.axes) else 0
        box = index[front : front + width]
        rest = iter([*index[:front], *index[front + width :]])
        at: dict[int, Expr] = {}
        for axis, load, kind in zip(self.axes, inputs[1:], picks, strict=True):
            tail = box[width - kind.rank :]
            value = load(*(0 if dim == 1 else i for dim, i in zip(kind.shape, tail, strict=True)))
            at[axis] = s.index(value, x.shape[axis])
        return inputs[0](*(at[axis] if axis in at else next(rest) for axis in range(x.rank)))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = draw("index", "float32", 4, 5, 6)
        a, b = rng("index a").integers(-4, 4, (3, 1)), rng("index b").integers(-5, 5, (2,))
        yield Sample("first", cls((0,)), (x, a), exact=True)
        yield Sample("adjacent", cls((1, 2)), (x, a, b), exact=True)
        yield Sample("separated", cls((0, 2)), (x, a, b), exact=True)
        yield Sample("all_rank0", cls((0, 1, 2)), (x, a, b, np.array(5, np.int32)), exact=True)


class IndexPut(Opaque, name="index_put"):
    """`x` with x[:, i, j, :] = values, indexed as `index` does; inputs x, values, *indices.

    `values` broadcasts to the indexed shape. Where indices repeat, the last one in row-major order wins; with
    `accumulate` all are added to `x`, in that order. An index may be negative if it `wraps`.
    """

    checks_index = True
    axes: tuple[int, ...]
    accumulate: bool = False
    wraps: bool = True

    def infer(self, x: TensorType, values: TensorType, *indices: TensorType) -> TensorType:
        target = Index(self.axes).infer(x, *indices)
        if values.dtype != x.dtype or broadcast_shapes(values.shape, target.shape) != target.shape:
            raise OpError(f"index_put: {values} does not broadcast to {target}")
        return x

    def reference(self, x: Array, values: Array, *indices: Array) -> Array:
        if not self.wraps:
            _refuse_negative(*indices)
        result = x.copy()
        key = Index(self.axes).key(x.ndim, indices)
        if self.accumulate:
            np.add.at(result, key, values)
        else:
            result[key] = values
        return result

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = draw("index_put", "float32", 4, 5, 6)
        picks = np.array([3, 0, -2])
        rows = draw("index_put rows", "float32", 3, 5, 6)
        yield Sample("rows", cls((0,)), (x, rows, picks), exact=True)
        yield Sample("columns", cls((1,)), (x, draw("index_put columns", "float32", 1, 3, 6), picks), exact=True)
        yield Sample("points", cls((0, 2)), (x, draw("index_put points", "float32"), picks, picks), exact=True)
        same = np.array([1, 1, -3])
        yield Sample("added_rows", cls((0,), True), (x, rows, same))
        yield Sample("added_points", cls((0, 2), True), (x, draw("index_put points", "float32", 3, 1), same, picks))
        yield Sample("no_points", cls((0,), True), (x, rows[:0], same[:0]), exact=True)


@aten("index_select.default")
def _index_select(context: ImportContext, x: Value, dim: int, index: Value) -> Any:
    if not x.shape:
        return x
    picks = reshape(context, index, (1,)) if not index.shape else index
    return context.emit(Take(normalize_axis(dim, len(x.shape)), wraps=False), x, picks)


@aten("gather.default")
def _gather(context: ImportContext, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Any:
    if 0 in index.shape:
        return context.emit(Full(plain(0, x.dtype), index.shape, x.dtype))
    if index.dtype == "uint8":
        index = context.cast(index, "int64")
    if not index.shape or not x.shape:
        lifted = (item if item.shape else reshape(context, item, (1,)) for item in (x, index))
        return reshape(context, context.emit(Gather(0), *lifted), index.shape)
    return context.emit(Gather(normalize_axis(dim, len(x.shape))), x, index)


def _indexed(context: ImportContext, indices: Sequence[Value | None]) -> tuple[tuple[int, ...], list[Value]]:
    """The indexed axes and their index tensors. Masks are refused: the shape would depend on the data."""
    given = [(axis, picks) for axis, picks in enumerate(indices) if picks is not None]
    if any(picks.dtype in ("bool", "uint8") for _, picks in given):
        raise context.unsupported("indexing with a mask: the shape of the result depends on the data")
    axes = tuple(axis for axis, _ in given)
    return axes, [picks if picks.dtype == "int32" else context.cast(picks, "int64") for _, picks in given]


@aten("index.Tensor", "_unsafe_index.Tensor")
def _index(context: ImportContext, x: Value, indices: Sequence[Value | None]) -> Any:
    axes, picks = _indexed(context, indices)
    if len(axes) == 1:
        return context.emit(Take(axes[0]), x, picks[0])
    return context.emit(Index(axes), x, *picks) if axes else x


@aten("index_put.default", "_unsafe_index_put.default")
def _index_put(
    context: ImportContext, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Any:
    """One mask over the leading axes is a `where`, if all rows that it picks get the same values."""
    first = indices[0] if len(indices) == 1 else None
    if accumulate and x.dtype == "bool":  # their sum is an or
        return context.cast(_index_put(context, context.cast(x, "int32"), indices, values, True), "bool")
    values = context.cast(values, x.dtype)
    if first is not None and first.dtype == "bool":
        tail = x.shape[len(first.shape) :]
        if len(values.shape) == len(tail) + 1 and values.shape[0] == 1:
            values = reshape(context, values, values.shape[1:])
        if len(values.shape) > len(tail):
            raise context.unsupported("writing through a mask: the number of values depends on the data")
        mask = reshape(context, first, (*first.shape, *([1] * len(tail))))
        return context.emit(Where(), mask, context.emit(Add(), x, values) if accumulate else values, x)
    axes, picks = _indexed(context, indices)
    if axes:
        return context.emit(IndexPut(axes, accumulate), x, values, *picks)
    return context.emit(Add(), x, values) if accumulate else broadcast(context, values, x.shape)


@aten("index_copy.default")
def _index_copy(context: ImportContext, x: Value, dim: int, index: Value, source: Value) -> Any:
    if not x.shape:
        return reshape(context, _index_copy(context, reshape(context, x, (1,)), 0, index, source), ())
    axis = normalize_axis(dim, len(x.shape))
    if not source.shape:
        source = reshape(context, source, (1,))
    return context.emit(
        IndexPut((axis,), wraps=False), x, source, reshape(context, index, source.shape[axis : axis + 1])
    )


@aten("index_fill.int_Scalar", "index_fill.int_Tensor")
def _index_fill(context: ImportContext, x: Value, dim: int, index: Value, value: Any) -> Any:
    wide = x if x.shape else reshape(context, x, (1,))
    filled = context.emit(
        IndexPut((normalize_axis(dim, len(wide.shape)),)), wide, operand(context, value, x.dtype), index
    )
    return reshape(context, filled, x.shape)


@aten("one_hot.default")
def _one_hot(context: ImportContext, x: Value, num_classes: int = -1) -> Any:
    """Each index, checked, compared with every class."""
    if not isinstance(num_classes, int) or num_classes < 0:
        raise context.unsupported("one_hot without num_classes: the shape of the result depends on the data")
    classes = context.emit(Arange(0, 1, num_classes, "int64"))
    chosen = context.emit(Take(0, wraps=False), classes, context.cast(x, "int64"))
    column = reshape(context, chosen, (*x.shape, 1))
    return context.emit(Cast("int64"), context.emit(Eq(), column, classes))


@aten(
    "masked_select.default", "nonzero.default", "nonzero_numpy.default", "argwhere.default", "bincount.default",
    "_unique2.default", "unique_dim.default", "unique_consecutive.default", "unique_dim_consecutive.default",
)  # fmt: skip
def _data_dependent(context: ImportContext, *_: Any, **__: Any) -> Any:
    raise context.unsupported("the shape of the result depends on the data")
