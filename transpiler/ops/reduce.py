"""Reductions over whole axes. Their importers, and what is composed of them, are in `statistics.py`."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from transpiler.dims import Dim, product
from transpiler.ir import Array, TensorType
from transpiler.ops.base import Expr, Load, OpError, Reduce, Reduction, Sample, Scalar
from transpiler.ops.dtypes import CORNERS, category, draw, highest, lowest


def reduced_shape(shape: Sequence[Dim], axes: Sequence[int], keepdims: bool) -> tuple[Dim, ...]:
    """The shape without `axes`, or with 1 there."""
    if list(axes) != sorted(set(axes)) or not all(0 <= axis < len(shape) for axis in axes):
        raise OpError(f"axes {tuple(axes)} of rank {len(shape)}: sorted, distinct and not negative expected")
    if keepdims:
        return tuple(1 if axis in axes else dim for axis, dim in enumerate(shape))
    return tuple(dim for axis, dim in enumerate(shape) if axis not in axes)


def input_index(
    axes: Sequence[int], rank: int, keepdims: bool, index: Sequence[Expr], inner: Sequence[Expr]
) -> list[Expr]:
    """The input index of output `index`, which has the reduced axes only with `keepdims`, at `inner`."""
    kept = iter([i for axis, i in enumerate(index) if axis not in axes] if keepdims else index)
    return [inner[axes.index(axis)] if axis in axes else next(kept) for axis in range(rank)]


class AxisReduce(Reduce):
    """Base: one accumulator over `axes`, sorted; `keepdims` leaves them as 1."""

    axes: tuple[int, ...]
    keepdims: bool = False

    # 0 bool, 1 integer, 2 float.
    categories: ClassVar[tuple[int, ...]] = (1, 2)
    # Can it reduce no elements?
    has_identity: ClassVar[bool] = True

    def identity(self, s: Scalar, dtype: str) -> Expr:
        raise NotImplementedError(self.name)

    def join(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        """Two accumulators, or an accumulator and an element, into one."""
        raise NotImplementedError(self.name)

    def finish(self, s: Scalar, total: Expr, count: Dim) -> Expr:
        """The result from the accumulator of `count` elements."""
        return total

    def infer(self, x: TensorType) -> TensorType:
        if category(x.dtype) not in self.categories:
            raise OpError(f"{self.name} does not take {x.dtype}")
        if not self.has_identity and any(x.shape[axis] == 0 for axis in self.axes):
            raise OpError(f"{self.name} of no elements")
        return x.with_shape(reduced_shape(x.shape, self.axes, self.keepdims))

    def reduction(
        self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
    ) -> Reduction:
        (x,), (load,) = types, inputs
        extents = tuple(x.shape[axis] for axis in self.axes)
        return Reduction(
            extents=extents,
            init=(self.identity(s, x.dtype),),
            body=lambda r: (load(*input_index(self.axes, x.rank, self.keepdims, index, r)),),
            combine=lambda a, b: (self.join(s, a[0], b[0]),),
            finish=lambda state: self.finish(s, state[0], product(extents)),
        )

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        shapes = {
            "last": ((1,), False, (7, 65)),
            "first": ((0,), False, (33, 5)),
            "two": ((0, 2), True, (3, 5, 7)),
            "all": ((0, 1), False, (9, 11)),
            "rank0": ((), False, ()),
            "no_results": ((1,), False, (0, 3)),
        }
        if cls.has_identity:
            shapes["no_elements"] = ((1,), True, (3, 0))
        dtype = {0: "bool", 2: "float32"}[max(cls.categories) & 2]
        for label, (axes, keepdims, shape) in shapes.items():
            yield Sample(label, cls(axes, keepdims), (draw(cls.name, dtype, *shape, low=-1.2, high=1.3),))
        if 2 in cls.categories:
            yield Sample("corners", cls((1,)), (np.stack([np.full(2, 0.5, np.float32), CORNERS[3:5], CORNERS[5:7]]),))
        if 1 in cls.categories:
            yield Sample("int64", cls((0,), True), (draw(cls.name, "int64", 5, 7),), exact=True)


class ReduceSum(AxisReduce, name="reduce_sum"):
    """The sum, in the input's dtype; 0 of no elements."""

    def reference(self, x: Array) -> Array:
        return np.asarray(np.sum(x, self.axes, dtype=x.dtype, keepdims=self.keepdims))

    def host(self, x: str) -> str:
        return f"np.sum({x}, {self.axes}, dtype={x}.dtype, keepdims={self.keepdims})"

    def identity(self, s: Scalar, dtype: str) -> Expr:
        return s.const(0, dtype)

    def join(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.wrapping(operator.add, a, b)


class ReduceMean(AxisReduce, name="reduce_mean"):
    """The mean of floats; NaN of no elements."""

    categories = (2,)

    def reference(self, x: Array) -> Array:
        count = int(np.prod([x.shape[axis] for axis in self.axes], dtype=np.int64))
        return np.asarray(np.sum(x, self.axes, dtype=x.dtype, keepdims=self.keepdims) / x.dtype.type(count))

    def host(self, x: str) -> str:
        return f"np.mean({x}, {self.axes}, keepdims={self.keepdims})"

    def identity(self, s: Scalar, dtype: str) -> Expr:
        return s.const(0, dtype)

    def join(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.wrapping(operator.add, a, b)

    def finish(self, s: Scalar, total: Expr, count: Dim) -> Expr:
        return s.divide(total, s.cast(s.size(count), s.dtype(total)))


class ReduceProd(AxisReduce, name="reduce_prod"):
    """The product; 1 of no elements."""

    def reference(self, x: Array) -> Array:
        return np.asarray(np.prod(x, self.axes, dtype=x.dtype, keepdims=self.keepdims))

    def identity(self, s: Scalar, dtype: str) -> Expr:
        return s.const(1, dtype)

    def join(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.wrapping(operator.mul, a, b)


class ReduceMax(AxisReduce, name="reduce_max"):
    """The largest; NaN if there is one."""

    has_identity = False

    def reference(self, x: Array) -> Array:
        return np.asarray(np.max(x, self.axes, keepdims=self.keepdims))

    def host(self, x: str) -> str:
        return f"np.max({x}, {self.axes}, keepdims={self.keepdims})"

    def identity(self, s: Scalar, dtype: str) -> Expr:
        return s.const(lowest(dtype), dtype)

    def join(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.maximum(a, b)


class ReduceMin(AxisReduce, name="reduce_min"):
    """The smallest; NaN if there is one."""

    has_identity = False

    def reference(self, x: Array) -> Array:
        return np.asarray(np.min(x, self.axes, keepdims=self.keepdims))

    def host(self, x: str) -> str:
        return f"np.min({x}, {self.axes}, keepdims={self.keepdims})"

    def identity(self, s: Scalar, dtype: str) -> Expr:
        return s.const(highest(dtype), dtype)

    def join(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.minimum(a, b)


class ReduceAny(AxisReduce, name="reduce_any"):
    """Does one hold? False of no elements."""

    categories = (0,)

    def reference(self, x: Array) -> Array:
        return np.asarray(np.any(x, self.axes, keepdims=self.keepdims))

    def identity(self, s: Scalar, dtype: str) -> Expr:
        return s.const(False, "bool")

    def join(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.logical_or(a, b)


class ReduceAll(AxisReduce, name="reduce_all"):
    """Do all hold? True of no elements."""

    categories = (0,)

    def reference(self, x: Array) -> Array:
        return np.asarray(np.all(x, self.axes, keepdims=self.keepdims))

    def identity(self, s: Scalar, dtype: str) -> Expr:
        return s.const(True, "bool")

    def join(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.logical_and(a, b)


class _ArgReduce(Reduce):
    """Base of argmax and argmin along one axis: int64, the first on ties, the first NaN if there is one."""

    axis: int
    keepdims: bool = False

    def beats(self, a: Expr, b: Expr) -> Expr:
        """Is `a` strictly better than `b`?"""
        raise NotImplementedError(self.name)

    def worst(self, dtype: str) -> float | int:
        """Nothing is worse than this value."""
        raise NotImplementedError(self.name)

    def infer(self, x: TensorType) -> TensorType:
        if x.dtype == "bool" or not x.rank or x.shape[self.axis] == 0:
            raise OpError(f"{self.name} along axis {self.axis} of {x}")
        return TensorType("int64", reduced_shape(x.shape, (self.axis,), self.keepdims))

    def reduction(
        self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
    ) -> Reduction:
        """The state is (value, its position); it starts behind every element, at a position beyond all."""
        (x,), (load,) = types, inputs

        def element(r: Sequence[Expr]) -> tuple[Expr, ...]:
            return load(*input_index((self.axis,), x.rank, self.keepdims, index, r)), s.cast(r[0], "int64")

        def better(a: tuple[Expr, ...], b: tuple[Expr, ...]) -> tuple[Expr, ...]:
            wins, ties = self.beats(b[0], a[0]), s.eq(a[0], b[0])
            if x.is_float:
                a_nan, b_nan = s.call("isnan", a[0]), s.call("isnan", b[0])
                wins = s.logical_or(wins, s.logical_and(b_nan, s.logical_not(a_nan)))
                wins = s.logical_and(wins, s.logical_not(a_nan))
                ties = s.logical_or(ties, s.logical_and(a_nan, b_nan))
            taken = s.logical_or(wins, s.logical_and(ties, b[1] < a[1]))
            return s.select(taken, b[0], a[0]), s.select(taken, b[1], a[1])

        return Reduction(
            extents=(x.shape[self.axis],),
            init=(s.const(self.worst(x.dtype), x.dtype), s.const(2**63 - 1, "int64")),
            body=element,
            combine=better,
            finish=lambda state: state[1],
        )

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample("last", cls(1), (draw(cls.name, "float32", 7, 65),), exact=True)
        yield Sample("middle", cls(1, True), (draw(cls.name, "float32", 3, 9, 5),), exact=True)
        yield Sample("ties", cls(1), (draw(cls.name, "int64", 9, 33),), exact=True)
        nans = draw(cls.name, "float32", 5, 9)
        nans[1, 3:5], nans[2, 0], nans[3, 8], nans[4] = np.nan, np.nan, np.nan, np.nan
        yield Sample("nan", cls(1), (nans,), exact=True)
        infinite = np.full((2, 5), np.inf, np.float32)
        infinite[1] = -np.inf
        yield Sample("infinite", cls(1), (infinite,), exact=True)
        yield Sample("no_results", cls(1), (draw(cls.name, "float32", 0, 5),), exact=True)


class Argmax(_ArgReduce, name="argmax"):
    """The position of the largest element."""

    def reference(self, x: Array) -> Array:
        return np.asarray(np.argmax(x, self.axis, keepdims=self.keepdims), np.int64)

    def beats(self, a: Expr, b: Expr) -> Expr:
        return a > b

    def worst(self, dtype: str) -> float | int:
        return lowest(dtype)


class Argmin(_ArgReduce, name="argmin"):
    """The position of the smallest element."""

    def reference(self, x: Array) -> Array:
        return np.asarray(np.argmin(x, self.axis, keepdims=self.keepdims), np.int64)

    def beats(self, a: Expr, b: Expr) -> Expr:
        return a < b

    def worst(self, dtype: str) -> float | int:
        return highest(dtype)
