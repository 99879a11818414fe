"""Writing through indices along one axis: scatter, its reductions, and what ATen composes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from transpiler.dims import Dim, product
from transpiler.ir import Array, TensorType, Value
from transpiler.ops.base import ImportContext, Opaque, OpError, Sample, aten, normalize_axis, rng
from transpiler.ops.compare import Cast, Ge, Lt, Where
from transpiler.ops.creation import Arange, Full
from transpiler.ops.dtypes import draw, highest, lowest, out_type, plain
from transpiler.ops.elementwise import Add, Div, DivRound, Maximum, Mul
from transpiler.ops.index import Take, check_indices
from transpiler.ops.promotion import operand
from transpiler.ops.reduce import ReduceSum
from transpiler.ops.scan import Cumsum
from transpiler.ops.views import broadcast, cut, reshape


class _Scatter(Opaque):
    """Base of out[indices[i, j], j] ∘= src[i, j] for axis 0; `indices` covers the leading part of `src`."""

    checks_index = True
    axis: int

    def infer(self, x: TensorType, indices: TensorType, src: TensorType) -> TensorType:
        check_indices(self.name, indices)
        if not 0 <= self.axis < x.rank or not x.rank == indices.rank == src.rank or src.dtype != x.dtype:
            raise OpError(f"{self.name} along axis {self.axis} of {x} at {indices} from {src}")
        return x

    def _key(self, indices: Array) -> tuple[Array, ...]:
        grid: list[Array] = list(np.indices(indices.shape, sparse=True))
        grid[self.axis] = indices
        return tuple(grid)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x, src = draw("scatter x", "float32", 5, 7), draw("scatter src", "float32", 5, 7)
        rows = np.stack([rng(f"scatter {column}").permutation(5)[:3] for column in range(7)], 1)
        yield Sample("rows", cls(0), (x, rows, src))
        yield Sample("columns", cls(1), (x, rows.T[:5].astype(np.int32), src))
        same = np.zeros((4,), np.int64)
        yield Sample("repeated", cls(0), (x[0], same, src[0]))
        ints = (draw("scatter x", "int64", 7), np.array([1, 1, 6]), draw("scatter src", "int64", 3))
        yield Sample("int64", cls(0), ints, exact=True)


class Scatter(_Scatter, name="scatter"):
    """Assignment; where indices repeat, the last one in row-major order wins."""

    def reference(self, x: Array, indices: Array, src: Array) -> Array:
        result = x.copy()
        result[self._key(indices)] = src[tuple(map(slice, indices.shape))]
        return result


class _Accumulate(_Scatter):
    """Base of those that combine what is there with what comes, in row-major order of `indices`."""

    combine: ClassVar[np.ufunc]

    def reference(self, x: Array, indices: Array, src: Array) -> Array:
        result = x.copy()
        self.combine.at(result, self._key(indices), src[tuple(map(slice, indices.shape))])
        return result


class ScatterAdd(_Accumulate, name="scatter_add"):
    """Addition."""

    combine = np.add


class ScatterMul(_Accumulate, name="scatter_mul"):
    """Multiplication."""

    combine = np.multiply


class _ScatterExtreme(_Accumulate):
    """Base of the extremes; NaN wins."""

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from super().samples()
        x = np.array([1, np.nan, -np.inf, 0.5, 2], np.float32)
        src = np.array([np.nan, 5, np.nan, 7, 0.25, 3], np.float32)
        yield Sample("nan", cls(0), (x, np.array([0, 1, 2, 2, 3, 4]), src), exact=True)


class ScatterMax(_ScatterExtreme, name="scatter_max"):
    """The larger; NaN wins."""

    combine = np.maximum


class ScatterMin(_ScatterExtreme, name="scatter_min"):
    """The smaller; NaN wins."""

    combine = np.minimum


# --- importing from ATen ---------------------------------------------------------------------------------

_OPS: dict[str, type[_Scatter]] = {
    "sum": ScatterAdd, "mean": ScatterAdd, "prod": ScatterMul, "amax": ScatterMax, "amin": ScatterMin,
}  # fmt: skip


def _identity(reduce: str, dtype: str) -> float | int | bool:
    """What a reduction of nothing leaves."""
    match reduce:
        case "amax":
            number: float | int = lowest(dtype)
        case "amin":
            number = highest(dtype)
        case _:
            number = int(reduce == "prod")
    value: float | int | bool = plain(number, dtype)
    return value


def _scatter(context: ImportContext, op: type[_Scatter], x: Value, dim: int, index: Value, src: Any) -> Any:
    source = src if isinstance(src, Value) and src.shape else None
    if source is None:
        source = broadcast(context, operand(context, src, x.dtype), index.shape)
    if op is ScatterAdd and x.dtype == "bool":  # their sum is an or
        wide, added = context.cast(x, "int32"), context.cast(source, "int32")
        return context.cast(_scatter(context, op, wide, dim, index, added), "bool")
    if not x.shape:
        parts = (reshape(context, item, (1,)) for item in (x, index, source))
        return reshape(context, context.emit(op(0), *parts), ())
    if not index.shape:
        index, source = reshape(context, index, (1,)), reshape(context, source, (1,))
    return context.emit(op(normalize_axis(dim, len(x.shape))), x, index, source)


def _reduced(
    context: ImportContext, x: Value, dim: int, index: Value, src: Any, reduce: str, include_self: bool
) -> Any:
    """Without `include_self`, the elements that are written to start from the identity of the reduction."""
    if x.dtype == "bool" and reduce != "sum":
        raise context.unsupported(f"the reduction {reduce!r} of bools")
    if 0 in index.shape:
        return x
    start = x if include_self else _scatter(context, Scatter, x, dim, index, _identity(reduce, x.dtype))
    total = _scatter(context, _OPS[reduce], start, dim, index, src)
    if reduce != "mean":
        return total
    counts = context.emit(Full(plain(include_self, x.dtype), x.shape, x.dtype))
    counts = _scatter(context, ScatterAdd, counts, dim, index, 1)
    counts = context.emit(Maximum(), counts, context.scalar(1, x.dtype))
    return context.emit(Div() if x.type.is_float else DivRound("floor"), total, counts)


@aten("scatter.src", "scatter.value")
def _scatter_set(context: ImportContext, x: Value, dim: int, index: Value, src: Any = None, value: Any = None) -> Any:
    return _scatter(context, Scatter, x, dim, index, value if src is None else src)


@aten("scatter_add.default")
def _scatter_add(context: ImportContext, x: Value, dim: int, index: Value, src: Value) -> Any:
    return _scatter(context, ScatterAdd, x, dim, index, src)


@aten("scatter.reduce", "scatter.value_reduce", "scatter_reduce.two")
def _scatter_reduce(
    context: ImportContext,
    x: Value,
    dim: int,
    index: Value,
    src: Any,
    reduce: str,
    *,
    include_self: bool = True,
) -> Any:
    return _reduced(context, x, dim, index, src, {"add": "sum", "multiply": "prod"}.get(reduce, reduce), include_self)


def _along(context: ImportContext, x: Value, axis: int, index: Value, source: Value) -> tuple[Value, Value]:
    """A rank-1 index of `axis` as one index per element of `source`."""
    column = tuple(dim if at == axis else 1 for at, dim in enumerate(source.shape))
    return broadcast(context, reshape(context, index, column), source.shape), source


@aten("index_add.default")
def _index_add(context: ImportContext, x: Value, dim: int, index: Value, source: Value, alpha: Any = 1) -> Any:
    if alpha != 1:
        source = context.emit(Mul(), source, context.scalar(alpha, source.dtype))
    return _index_reduce(context, x, dim, index, source, "sum")


@aten("index_reduce.default")
def _index_reduce(
    context: ImportContext, x: Value, dim: int, index: Value, source: Value, reduce: str, *, include_self: bool = True
) -> Any:
    wide = x if x.shape else reshape(context, x, (1,))
    source = source if source.shape else reshape(context, source, (1,))
    axis = normalize_axis(dim, len(wide.shape))
    picks, source = _along(context, wide, axis, index, source)
    return reshape(context, _reduced(context, wide, axis, picks, source, reduce, include_self), x.shape)


@aten("masked_scatter.default")
def _masked_scatter(context: ImportContext, x: Value, mask: Value, source: Value) -> Any:
    """The n-th element under the mask is the n-th of `source`: its position is a running count of the mask."""
    shape = out_type(context).shape
    mask = reshape(context, broadcast(context, mask, shape), _flat(shape))
    if source.shape and 0 in source.shape:
        if 0 in shape:
            return x
        raise context.unsupported("masked_scatter from an empty source")
    zero = context.scalar(0, "int64")
    count = context.emit(Cumsum(0), context.cast(mask, "int64"))
    place = context.emit(Where(), mask, context.emit(Add(), count, context.scalar(-1, "int64")), zero)
    values = context.emit(Take(0), reshape(context, source, _flat(source.shape)), place)
    flat = reshape(context, broadcast(context, x, shape), _flat(shape))
    return reshape(context, context.emit(Where(), mask, values, flat), shape)


def _flat(shape: tuple[Dim, ...]) -> tuple[Dim]:
    return (product(shape),)


@aten("segment_reduce.default")
def _segment_reduce(
    context: ImportContext, data: Value, reduce: str, *, lengths: Value | None = None, indices: Value | None = None,
    offsets: Value | None = None, axis: int = 0, unsafe: bool = False, initial: float | None = None,
) -> Any:  # fmt: skip
    """Consecutive runs of `axis`, given by lengths or by offsets[..., runs + 1], reduced each to one element.

    Every element finds its run by counting the runs that end before it, and is scattered there.
    """
    bounds = lengths if offsets is None else offsets
    if indices is not None or bounds is None:
        raise context.unsupported("segment_reduce by indices")
    reduce = {"max": "amax", "min": "amin"}.get(reduce, reduce)
    axis = normalize_axis(axis, len(data.shape))
    bounds = context.cast(bounds, "int64")
    ends = context.emit(Cumsum(axis), bounds) if offsets is None else cut(context, bounds, axis, 1, bounds.shape[axis])
    size, runs, outer = data.shape[axis], ends.shape[axis], data.shape[:axis]
    position = reshape(context, context.emit(Arange(0, 1, size, "int64")), (*([1] * axis), size, 1))
    if offsets is not None:  # what lies before the first offset belongs to no run
        begin = cut(context, bounds, axis, 0, 1)
        before = context.emit(Lt(), reshape(context, position, (*([1] * axis), size)), begin)
    passed = context.emit(Ge(), position, reshape(context, ends, (*outer, 1, runs)))
    run = context.emit(ReduceSum((axis + 1,), False), context.emit(Cast("int64"), passed))
    if offsets is not None:
        run = context.emit(Where(), before, context.scalar(runs, "int64"), run)
    inner = data.shape[axis + 1 :]
    picks = broadcast(context, reshape(context, run, (*outer, size, *([1] * len(inner)))), data.shape)
    # One run more takes what belongs to none.
    start = _identity(reduce, data.dtype) if initial is None else initial
    base = context.emit(Full(plain(start, data.dtype), (*outer, runs + 1, *inner), data.dtype))
    total = _scatter(context, _OPS[reduce], base, axis, picks, data)
    if reduce == "mean":
        counts = context.emit(Full(0.0, base.shape, data.dtype))
        counts = _scatter(context, ScatterAdd, counts, axis, picks, 1)
        empty = context.emit(Lt(), counts, context.scalar(0.5, data.dtype))
        fallback = context.scalar(float("nan") if initial is None else initial, data.dtype)
        total = context.emit(Where(), empty, fallback, context.emit(Div(), total, counts))
    return cut(context, total, axis, 0, runs)
