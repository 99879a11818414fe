"""Pooling to a given output size: window i of n over a dim of size S is [i*S // n, ceil((i+1)*S / n))."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transpiler.dims import Dim
from transpiler.ir import Array, TensorType, Value
from transpiler.ops.base import (
    Expr,
    ImportContext,
    Load,
    OpError,
    Reduce,
    Reduction,
    Sample,
    Scalar,
    aten,
    rng,
)  # fmt: skip
from transpiler.ops.dtypes import lowest
from transpiler.ops.pool import batched, both, first_largest, flat_index, later_wins, unbatched
from transpiler.ops.wide import narrow, narrow_expr, wide_dtype, widen, widen_expr

Ints = tuple[int, ...]


class _Adaptive(Reduce):
    """x[N, C, *S] -> [N, C, *size]."""

    size: Ints

    def infer(self, *types: TensorType) -> TensorType:
        (x,) = types
        if x.rank != len(self.size) + 2:
            raise OpError(f"{self.name}: an output size of {x.rank - 2} spatial dims expected, got {self.size}")
        if not all(isinstance(size, int) for size in self.size):
            raise OpError(f"{self.name}: the output size must not vary, got {self.size}")
        return x.with_shape((*x.shape[:2], *self.size))

    def extents(self, x: TensorType) -> tuple[Dim, ...]:
        """The largest window, per dim."""
        return tuple(_widest(size, count) for size, count in zip(x.shape[2:], self.size, strict=True))

    def bounds(self, s: Scalar, x: TensorType, index: Sequence[Expr], axis: int) -> tuple[Expr, Expr]:
        """The window's first position and the one after its last (int64)."""
        i, size = s.cast(index[2 + axis], "int64"), s.cast(s.size(x.shape[2 + axis]), "int64")
        count = s.const(self.size[axis], "int64")
        return s.floordiv(i * size, count), s.floordiv((i + 1) * size + count - 1, count)

    def positions(
        self, s: Scalar, x: TensorType, index: Sequence[Expr], r: Sequence[Expr]
    ) -> tuple[list[Expr], Expr | None]:
        """The input's position at reduction index `r`, and whether it is in the window (None: always)."""
        places: list[Expr] = []
        inside: Expr | None = None
        for axis, (size, count) in enumerate(zip(x.shape[2:], self.size, strict=True)):
            begin, end = self.bounds(s, x, index, axis)
            place = begin + s.cast(r[axis], "int64")
            places.append(place)
            if not _uniform(size, count):
                inside = both(s, inside, place < end)
        return places, inside

    def windows(self, x: Array) -> Iterator[tuple[Ints, Array]]:
        """(output position, the window as a box of [N, C, ...])"""
        for position in np.ndindex(*self.size):
            box = tuple(
                slice(i * size // n, -(-(i + 1) * size // n))
                for i, size, n in zip(position, x.shape[2:], self.size, strict=True)
            )
            yield position, x[(slice(None), slice(None), *box)]


def _uniform(size: Dim, count: int) -> bool:
    """Whether all windows have one width."""
    return count == 1 or (isinstance(size, int) and isinstance(count, int) and size % count == 0)


def _widest(size: Dim, count: int) -> Dim:
    if _uniform(size, count):
        return size // count
    if isinstance(size, int):
        return max(-(-(i + 1) * size // count) - i * size // count for i in range(count))
    return (size + count - 1) // count + 1


class AdaptiveAvgPool(_Adaptive, name="adaptive_avg_pool"):
    """The mean of each window."""

    def infer(self, *types: TensorType) -> TensorType:
        if not types[0].is_float:
            raise OpError(f"adaptive_avg_pool: a float tensor expected, got {types[0]}")
        return super().infer(*types)

    def reference(self, *inputs: Array) -> Array:
        x = widen(inputs[0])
        y: Any = np.empty((*x.shape[:2], *self.size), x.dtype)
        for position, window in self.windows(x):
            y[(slice(None), slice(None), *position)] = window.mean(tuple(range(2, x.ndim)))
        return narrow(y, inputs[0])

    def reduction(
        self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
    ) -> Reduction:
        (x,) = types
        dtype = wide_dtype(x.dtype)
        zero = s.const(0, dtype)

        def body(r: Sequence[Expr]) -> tuple[Expr, ...]:
            places, inside = self.positions(s, x, index, r)
            element = widen_expr(s, inputs[0](*index[:2], *places))
            return (element if inside is None else s.guarded(inside, element, zero),)

        def finish(state: tuple[Expr, ...]) -> Expr:
            count: Expr = s.const(1, dtype)
            for axis in range(len(self.size)):
                begin, end = self.bounds(s, x, index, axis)
                count = count * s.cast(end - begin, dtype)
            return narrow_expr(s, s.divide(state[0], count), x.dtype)

        return Reduction(self.extents(x), (zero,), body, lambda a, b: (a[0] + b[0],), finish)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from _samples(cls)


class AdaptiveMaxPool(_Adaptive, name="adaptive_max_pool"):
    """The largest element of each window; NaN if there is one."""

    def reference(self, *inputs: Array) -> Array:
        (x,) = inputs
        y: Any = np.empty((*x.shape[:2], *self.size), x.dtype)
        for position, window in self.windows(x):
            y[(slice(None), slice(None), *position)] = window.max(tuple(range(2, x.ndim)))
        return np.asarray(y)

    def reduction(
        self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
    ) -> Reduction:
        (x,) = types
        least = s.const(lowest(x.dtype), x.dtype)

        def body(r: Sequence[Expr]) -> tuple[Expr, ...]:
            places, inside = self.positions(s, x, index, r)
            element = inputs[0](*index[:2], *places)
            return (element if inside is None else s.guarded(inside, element, least),)

        return Reduction(self.extents(x), (least,), body, lambda a, b: (s.maximum(a[0], b[0]),), lambda state: state[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from _samples(cls)
        yield Sample("nan", cls((3, 2)), (_with_nan(),))


class AdaptiveMaxPoolIndices(_Adaptive, name="adaptive_max_pool_indices"):
    """int64 position in the flattened map of the first largest element of each window; of the last NaN."""

    def infer(self, *types: TensorType) -> TensorType:
        return super().infer(*types).with_dtype("int64")

    def reference(self, *inputs: Array) -> Array:
        (x,) = inputs
        y: Any = np.empty((*x.shape[:2], *self.size), np.int64)
        places = np.arange(math.prod(x.shape[2:])).reshape(1, 1, *x.shape[2:])
        for (position, window), (_, where) in zip(self.windows(x), self.windows(places), strict=True):
            y[(slice(None), slice(None), *position)] = first_largest(window, where, len(self.size))
        return np.asarray(y)

    def reduction(
        self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
    ) -> Reduction:
        (x,) = types
        least, nowhere = s.const(lowest(x.dtype), x.dtype), s.const(-1, "int64")

        def body(r: Sequence[Expr]) -> tuple[Expr, ...]:
            places, inside = self.positions(s, x, index, r)
            element, place = inputs[0](*index[:2], *places), flat_index(s, places, x.shape[2:])
            if inside is None:
                return element, place
            return s.guarded(inside, element, least), s.select(inside, place, nowhere)

        return Reduction(
            self.extents(x),
            (least, nowhere),
            body,
            lambda a, b: later_wins(s, x, a, b),
            lambda state: state[1],
        )

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for sample in _samples(cls):
            yield Sample(sample.id, sample.op, sample.inputs, exact=True)
        yield Sample("nan", cls((3, 2)), (_with_nan(),), exact=True)


def _with_nan() -> Array:
    x = rng("adaptive_nan").standard_normal((1, 3, 7, 9), np.float32)
    x[0, 0, 2, 3] = x[0, 1, 0, 0] = x[0, 1, 0, 1] = math.nan
    return x


def _samples(op: type[_Adaptive]) -> Iterator[Sample]:
    cases: list[tuple[Ints, Ints]] = [
        ((2, 5, 7, 9), (1, 1)), ((1, 3, 7, 9), (3, 2)), ((1, 17, 8, 12), (4, 3)), ((1, 2, 5, 5), (7, 11)),
        ((1, 3, 7, 9), (7, 9)), ((1, 1, 1, 1), (2, 2)), ((2, 3, 17), (5,)), ((1, 2, 5, 6, 7), (2, 6, 3)),
        ((1, 64, 7, 7), (1, 1)), ((0, 2, 4, 4), (2, 2)),
    ]  # fmt: skip
    for shape, size in cases:
        label = f"{'x'.join(map(str, shape))}_to_{'x'.join(map(str, size))}"
        yield Sample(label, op(size), (rng("adaptive" + label).standard_normal(shape, np.float32),))


# --- importing from ATen ---------------------------------------------------------------------------------


def _run(context: ImportContext, op: type[_Adaptive], x: Value, size: Sequence[int]) -> Value:
    if not all(isinstance(count, int) for count in size):
        raise context.unsupported("adaptive pooling to a symbolic size")
    return unbatched(context, context.emit(op(tuple(size)), batched(context, x, len(size))), x)


@aten(
    "adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default",
    "adaptive_avg_pool3d.default", "_adaptive_avg_pool3d.default",
)  # fmt: skip
def _adaptive_avg_pool(context: ImportContext, x: Value, output_size: Sequence[int]) -> Any:
    return _run(context, AdaptiveAvgPool, x, output_size)


@aten("adaptive_max_pool1d.default", "adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def _adaptive_max_pool(context: ImportContext, x: Value, output_size: Sequence[int]) -> Any:
    values = _run(context, AdaptiveMaxPool, x, output_size)
    return values, _run(context, AdaptiveMaxPoolIndices, x, output_size)
