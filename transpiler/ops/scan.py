"""Running sums, sorting and the k largest: ops with loops of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from transpiler.ir import Array, TensorType, Value
from transpiler.ops.base import ImportContext, Opaque, OpError, Sample, aten, normalize_axis
from transpiler.ops.dtypes import HALF, draw, out_type
from transpiler.ops.statistics import work_dtype


class _Running(Opaque):
    """Base of the running sum and product along `axis`, in the input's dtype."""

    axis: int

    def infer(self, x: TensorType) -> TensorType:
        if x.dtype == "bool" or not 0 <= self.axis < x.rank:
            raise OpError(f"{self.name} along axis {self.axis} of {x}")
        return x

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample("last", cls(1), (draw(cls.name, "float32", 5, 33, low=-1.2, high=1.3),))
        yield Sample("first", cls(0), (draw(cls.name, "float32", 9, 3, 5, low=-1.2, high=1.3),))
        yield Sample("int64", cls(0), (draw(cls.name, "int64", 17),), exact=True)
        yield Sample("empty", cls(1), (draw(cls.name, "float32", 3, 0),))


class Cumsum(_Running, name="cumsum"):
    """out[i] = x[0] + … + x[i]."""

    def reference(self, x: Array) -> Array:
        return np.cumsum(x, self.axis, dtype=x.dtype)


class Cumprod(_Running, name="cumprod"):
    """out[i] = x[0] * … * x[i]."""

    def reference(self, x: Array) -> Array:
        return np.cumprod(x, self.axis, dtype=x.dtype)


def order(x: Array, axis: int, descending: bool) -> Array:
    """Positions that sort stably: equal elements keep their order, NaN counts as the largest."""
    keys = x.astype(np.float32) if str(x.dtype) in HALF else x
    if not descending:
        return np.argsort(keys, axis, kind="stable").astype(np.int64)
    # numpy sorts upwards only: sort the reverse and reverse the result, so that ties keep their order.
    backwards = np.flip(np.argsort(np.flip(keys, axis), axis, kind="stable"), axis)
    return np.asarray(x.shape[axis] - 1 - backwards, np.int64)


class Sort(Opaque, name="sort"):
    """(sorted values, their positions as int64) along `axis`; NaN counts as the largest.

    `stable` says that the caller relies on the order of equal elements; every implementation keeps it.
    """

    axis: int
    descending: bool = False
    stable: bool = True

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if not 0 <= self.axis < x.rank:
            raise OpError(f"sort along axis {self.axis} of {x}")
        return x, x.with_dtype("int64")

    def reference(self, x: Array) -> tuple[Array, ...]:
        positions = order(x, self.axis, self.descending)
        return np.take_along_axis(x, positions, self.axis), positions

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        nans = draw("sort", "float32", 3, 17)
        nans[0, 2:5], nans[1, 0], nans[2, 16], nans[0, 9], nans[0, 10] = (
            np.nan,
            np.nan,
            np.nan,
            np.inf,
            -np.inf,
        )
        for label, descending in (("up", False), ("down", True)):
            yield Sample(label, cls(1, descending), (draw("sort", "float32", 5, 33),), exact=True)
            yield Sample(f"{label}_ties", cls(0, descending), (draw("sort", "int64", 33, 3),), exact=True)
            yield Sample(f"{label}_nan", cls(1, descending), (nans,), exact=True)
            yield Sample(f"{label}_one", cls(0, descending), (draw("sort", "int32", 1, 3),), exact=True)


class Topk(Opaque, name="topk"):
    """(the k largest values, their positions as int64) along `axis`; the smallest if not `largest`.

    Always sorted, best first; the first of equal elements wins; NaN counts as the largest.
    """

    k: int
    axis: int
    largest: bool = True
    sorted: bool = True

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if not 0 <= self.axis < x.rank or x.dtype == "bool":
            raise OpError(f"topk along axis {self.axis} of {x}")
        dim = x.shape[self.axis]
        if self.k < 0 or (isinstance(dim, int) and self.k > dim):
            raise OpError(f"topk: {self.k} of {dim} elements")
        values = x.with_shape((*x.shape[: self.axis], self.k, *x.shape[self.axis + 1 :]))
        return values, values.with_dtype("int64")

    def reference(self, x: Array) -> tuple[Array, ...]:
        positions = np.take(order(x, self.axis, self.largest), np.arange(self.k), self.axis)
        return np.take_along_axis(x, positions, self.axis), positions

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = draw("topk", "float32", 5, 33)
        yield Sample("largest", cls(4, 1), (x,), exact=True)
        yield Sample("smallest", cls(3, 0, False), (x,), exact=True)
        yield Sample("all", cls(33, 1), (x,), exact=True)
        nans = x.copy()
        nans[:, 3:9:2] = np.nan
        yield Sample("nan", cls(5, 1), (nans,), exact=True)
        yield Sample("ties", cls(7, 0), (draw("topk", "int64", 33),), exact=True)


def _running(op: type[_Running], overload: str) -> None:
    """Integers and bools are accumulated as int64, 16-bit floats as float32."""

    def convert(context: ImportContext, x: Value, dim: int, dtype: Any = None) -> Any:
        out = out_type(context)
        x = context.cast(x, work_dtype(out.dtype))
        if not x.shape:
            return context.cast(x, out.dtype)
        return context.cast(context.emit(op(normalize_axis(dim, len(x.shape))), x), out.dtype)

    aten(overload)(convert)


_running(Cumsum, "cumsum.default")
_running(Cumprod, "cumprod.default")


def _sorted(context: ImportContext, x: Value, dim: int, descending: bool) -> Any:
    if not x.shape:
        return x, context.scalar(0, "int64")
    return context.emit(Sort(normalize_axis(dim, len(x.shape)), descending), x)


@aten("sort.default")
def _sort(context: ImportContext, x: Value, dim: int = -1, descending: bool = False) -> Any:
    return _sorted(context, x, dim, descending)


@aten("sort.stable")
def _sort_stable(
    context: ImportContext, x: Value, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    return _sorted(context, x, dim, descending)


@aten("argsort.default")
def _argsort(context: ImportContext, x: Value, dim: int = -1, descending: bool = False) -> Any:
    return _sorted(context, x, dim, descending)[1]


@aten("argsort.stable")
def _argsort_stable(
    context: ImportContext, x: Value, stable: bool = True, dim: int = -1, descending: bool = False
) -> Any:
    return _sorted(context, x, dim, descending)[1]


@aten("topk.default")
def _topk(context: ImportContext, x: Value, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    if not isinstance(k, int):
        raise context.unsupported("topk with a k that is not fixed")
    if not x.shape:
        return x, context.scalar(0, "int64")
    return context.emit(Topk(k, normalize_axis(dim, len(x.shape)), largest, sorted), x)
