"""Max and average pooling over sliding windows, 1 to 3 spatial dimensions, channels first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transpiler.dims import Dim, dim_min
from transpiler.ir import Array, TensorType, Value
from transpiler.ops import compose
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
from transpiler.ops.conv import per_dim, window_count
from transpiler.ops.dtypes import lowest, static
from transpiler.ops.wide import narrow, narrow_expr, wide_dtype, widen, widen_expr

Ints = tuple[int, ...]


class _Window(Reduce):
    """x[N, C, *S] -> [N, C, *S']: one output per position of a window."""

    kernel: Ints
    stride: Ints
    padding: Ints

    def geometry(self) -> tuple[Ints, bool]:
        """(dilation, ceil_mode)"""
        raise NotImplementedError(self.name)

    def output_size(self, *types: TensorType) -> tuple[Dim, ...]:
        (x,) = types
        dilation, ceil_mode = self.geometry()
        attributes = (self.kernel, self.stride, self.padding, dilation)
        if any(len(values) != x.rank - 2 for values in attributes):
            raise OpError(f"{self.name}: attributes of {len(self.kernel)} spatial dims do not fit {x}")
        if any(2 * p > k for k, p in zip(self.kernel, self.padding, strict=True)):
            raise OpError(f"{self.name}: padding {self.padding} is more than half of kernel {self.kernel}")
        count = ceil_window_count if ceil_mode else window_count
        return tuple(count(size, *rest) for size, *rest in zip(x.shape[2:], *attributes, strict=True))

    def infer(self, *types: TensorType) -> TensorType:
        return types[0].with_shape((*types[0].shape[:2], *self.output_size(*types)))

    def positions(
        self, s: Scalar, x: TensorType, index: Sequence[Expr], r: Sequence[Expr]
    ) -> tuple[list[Expr], Expr | None]:
        """The input's spatial position at reduction index `r`, and whether it is inside (None: always)."""
        dilation, ceil_mode = self.geometry()
        places: list[Expr] = []
        inside: Expr | None = None
        for axis, size in enumerate(x.shape[2:]):
            place = index[2 + axis] * self.stride[axis] - self.padding[axis] + r[axis] * dilation[axis]
            places.append(place)
            if self.padding[axis]:
                inside = both(s, inside, place >= 0)
            if self.padding[axis] or ceil_mode:
                inside = both(s, inside, place < s.size(size))
        return places, inside

    def windows(self, x: Array, fill: float | int) -> Array:
        """[N, C, *S', *kernel]: every window, `fill` outside of the input."""
        dilation, _ = self.geometry()
        out = static(self.output_size(TensorType(str(x.dtype), x.shape)))
        widths = [(0, 0), (0, 0)]
        for size, k, step, p, d, count in zip(
            x.shape[2:], self.kernel, self.stride, self.padding, dilation, out, strict=True
        ):
            needed = (count - 1) * step + d * (k - 1) + 1
            widths.append((p, max(needed - size - p, 0)))
        padded = np.pad(x, widths, constant_values=fill)
        extent = [d * (k - 1) + 1 for k, d in zip(self.kernel, dilation, strict=True)]
        dims = len(out)
        windows: Any = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, 2 + dims)))
        windows = windows[(..., *(slice(None, None, d) for d in dilation))]
        windows = windows[(slice(None), slice(None), *(slice(None, None, step) for step in self.stride))]
        return np.asarray(windows[(slice(None), slice(None), *map(slice, out))])


def both(s: Scalar, a: Expr | None, b: Expr) -> Expr:
    """`a and b`, where None is true."""
    return b if a is None else s.logical_and(a, b)


def ceil_window_count(size: Dim, kernel: int, stride: int, padding: int, dilation: int) -> Dim:
    """As `window_count`, rounded up; the last window must begin inside the input or its left padding."""
    count = (size + 2 * padding - dilation * (kernel - 1) - 1 + stride - 1) // stride + 1
    return dim_min(count, (size + padding + stride - 1) // stride)


class MaxPool(_Window, name="max_pool"):
    """The largest element of each window; NaN if there is one. Ints and floats."""

    dilation: Ints
    ceil_mode: bool = False

    def geometry(self) -> tuple[Ints, bool]:
        return self.dilation, self.ceil_mode

    def reference(self, *inputs: Array) -> Array:
        (x,) = inputs
        windows = self.windows(x, lowest(str(x.dtype)))
        return np.asarray(windows.max(tuple(range(x.ndim, windows.ndim))))

    def reduction(
        self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
    ) -> Reduction:
        least = s.const(lowest(types[0].dtype), types[0].dtype)

        def body(r: Sequence[Expr]) -> tuple[Expr, ...]:
            places, inside = self.positions(s, types[0], index, r)
            element = inputs[0](*index[:2], *places)
            return (element if inside is None else s.guarded(inside, element, least),)

        return Reduction(self.kernel, (least,), body, lambda a, b: (s.maximum(a[0], b[0]),), lambda state: state[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from _max_samples(cls)


class MaxPoolIndices(_Window, name="max_pool_indices"):
    """int64 position in the flattened map of the first largest element of each window; of the last NaN."""

    dilation: Ints
    ceil_mode: bool = False

    def geometry(self) -> tuple[Ints, bool]:
        return self.dilation, self.ceil_mode

    def infer(self, *types: TensorType) -> TensorType:
        return super().infer(*types).with_dtype("int64")

    def reference(self, *inputs: Array) -> Array:
        (x,) = inputs
        windows = self.windows(x, lowest(str(x.dtype)))
        flat = np.arange(math.prod(x.shape[2:])).reshape(1, 1, *x.shape[2:])
        return first_largest(windows, self.windows(flat, -1), len(self.kernel))

    def reduction(
        self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
    ) -> Reduction:
        least, nowhere = s.const(lowest(types[0].dtype), types[0].dtype), s.const(-1, "int64")

        def body(r: Sequence[Expr]) -> tuple[Expr, ...]:
            places, inside = self.positions(s, types[0], index, r)
            element, place = inputs[0](*index[:2], *places), flat_index(s, places, types[0].shape[2:])
            if inside is None:
                return element, place
            return s.guarded(inside, element, least), s.select(inside, place, nowhere)

        return Reduction(
            self.kernel,
            (least, nowhere),
            body,
            lambda a, b: later_wins(s, types[0], a, b),
            lambda state: state[1],
        )

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for sample in _max_samples(cls):
            yield Sample(sample.id, sample.op, sample.inputs, exact=True)
        ties = np.array([[[1, 2, 2, 0, 2], [3, 3, 3, 3, 3], [-math.inf] * 5]], np.float32)
        yield Sample("ties", cls((3,), (1,), (1,), (1,)), (ties,), exact=True)


def first_largest(windows: Array, places: Array, dims: int) -> Array:
    """The place (-1: outside) of the first largest element or the last NaN, over the last `dims` axes."""
    shape = windows.shape[: windows.ndim - dims]
    best, where = np.zeros(shape, windows.dtype), np.full(shape, -1)
    for r in np.ndindex(*windows.shape[windows.ndim - dims :]):
        element, place = windows[(..., *r)], places[(..., *r)]
        take = (place >= 0) & ((where < 0) | (element > best) | (element != element))
        best, where = np.where(take, element, best), np.where(take, place, where)
    return where


def flat_index(s: Scalar, places: Sequence[Expr], shape: Sequence[Dim]) -> Expr:
    """int64 row-major position."""
    flat = s.cast(places[0], "int64")
    for place, size in zip(places[1:], shape[1:], strict=True):
        flat = flat * s.cast(s.size(size), "int64") + s.cast(place, "int64")
    return flat


def later_wins(s: Scalar, x: TensorType, a: tuple[Expr, ...], b: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """(value, place) of two elements in order; a place below 0 is none. Not commutative."""
    zero = s.const(0, "int64")
    better = s.logical_or(a[1] < zero, b[0] > a[0])
    if x.is_float:
        better = s.logical_or(better, s.call("isnan", b[0]))
    take = s.logical_and(b[1] >= zero, better)
    return s.select(take, b[0], a[0]), s.select(take, b[1], a[1])


class AvgPool(_Window, name="avg_pool"):
    """The mean of each window.

    The sum is divided by `divisor` if it is given, else by the number of elements in the window: including
    padding (but not what `ceil_mode` adds) with `count_include_pad`, only those of the input without.
    """

    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None

    def geometry(self) -> tuple[Ints, bool]:
        return (1,) * len(self.kernel), self.ceil_mode

    def infer(self, *types: TensorType) -> TensorType:
        if not types[0].is_float:
            raise OpError(f"avg_pool: a float tensor expected, got {types[0]}")
        return super().infer(*types)

    def reference(self, *inputs: Array) -> Array:
        x = widen(inputs[0])
        dims = len(self.kernel)
        windows = self.windows(x, 0)
        total = windows.sum(tuple(range(x.ndim, windows.ndim)))
        if self.divisor is not None:
            return narrow(total / x.dtype.type(self.divisor), inputs[0])
        counts = np.ones(total.shape[2:], x.dtype)
        for axis, (size, k, step, p) in enumerate(
            zip(x.shape[2:], self.kernel, self.stride, self.padding, strict=True)
        ):
            begin = np.arange(total.shape[2 + axis]) * step - p
            end = np.minimum(begin + k, size + p)
            if not self.count_include_pad:
                begin, end = np.maximum(begin, 0), np.minimum(end, size)
            counts = counts * (end - begin).reshape(-1, *(1,) * (dims - axis - 1)).astype(x.dtype)
        return narrow(total / counts, inputs[0])

    def reduction(
        self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
    ) -> Reduction:
        dtype = wide_dtype(types[0].dtype)
        zero = s.const(0, dtype)

        def body(r: Sequence[Expr]) -> tuple[Expr, ...]:
            places, inside = self.positions(s, types[0], index, r)
            element = widen_expr(s, inputs[0](*index[:2], *places))
            return (element if inside is None else s.guarded(inside, element, zero),)

        def finish(state: tuple[Expr, ...]) -> Expr:
            mean = s.divide(state[0], self._count(s, types[0], index, dtype))
            return narrow_expr(s, mean, types[0].dtype)

        return Reduction(self.kernel, (zero,), body, lambda a, b: (a[0] + b[0],), finish)

    def _count(self, s: Scalar, x: TensorType, index: Sequence[Expr], dtype: str) -> Expr:
        """What the sum of the window at `index` is divided by."""
        if self.divisor is not None:
            return s.const(self.divisor, dtype)
        if not self.ceil_mode and (self.count_include_pad or not any(self.padding)):
            return s.const(math.prod(self.kernel), dtype)
        count: Expr = s.const(1, dtype)
        for axis, size in enumerate(x.shape[2:]):
            padding, kernel = self.padding[axis], self.kernel[axis]
            begin = s.cast(index[2 + axis], "int64") * self.stride[axis] - padding
            extra = padding if self.count_include_pad else 0
            end = s.minimum(begin + kernel, s.cast(s.size(size), "int64") + extra)
            if not self.count_include_pad:
                begin = s.maximum(begin, s.const(0, "int64"))
            count = count * s.cast(end - begin, dtype)
        return count

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for label, shape, kernel, stride, padding, dilation in _CASES:
            if any(d != 1 for d in dilation):
                continue
            x = rng("avg_pool" + label).standard_normal(shape, np.float32)
            for ceil_mode in (False, True):
                for include in (False, True):
                    flags = f"{'_ceil' if ceil_mode else ''}{'' if include else '_exclude_pad'}"
                    yield Sample(label + flags, cls(kernel, stride, padding, ceil_mode, include), (x,))
            yield Sample(f"{label}_divisor", cls(kernel, stride, padding, False, True, 3), (x,))


# (id, x, kernel, stride, padding, dilation)
_CASES: list[tuple[str, Ints, Ints, Ints, Ints, Ints]] = [
    ("2x2", (2, 3, 8, 10), (2, 2), (2, 2), (0, 0), (1, 1)),
    ("2x2_odd", (1, 5, 7, 9), (2, 2), (2, 2), (0, 0), (1, 1)),
    ("3x3_stride2", (2, 5, 7, 9), (3, 3), (2, 2), (1, 1), (1, 1)),
    ("3x2_mixed", (1, 17, 7, 8), (3, 2), (1, 3), (1, 0), (1, 1)),
    ("dilated", (1, 3, 9, 11), (3, 2), (2, 1), (1, 1), (2, 3)),
    ("gap", (1, 2, 9, 9), (2, 2), (3, 3), (1, 1), (1, 1)),
    ("last_begins_in_padding", (1, 2, 5, 5), (2, 2), (3, 3), (1, 1), (1, 1)),
    ("one_pixel", (1, 1, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    ("whole_map", (1, 16, 7, 7), (7, 7), (7, 7), (0, 0), (1, 1)),
    ("stem", (1, 32, 14, 14), (3, 3), (2, 2), (1, 1), (1, 1)),
    ("1d", (2, 5, 17), (3,), (2,), (1,), (1,)),
    ("3d", (1, 3, 5, 7, 6), (2, 3, 2), (2, 2, 1), (0, 1, 1), (1, 1, 1)),
]  # fmt: skip


def _max_samples(op: type[MaxPool | MaxPoolIndices]) -> Iterator[Sample]:
    for label, shape, kernel, stride, padding, dilation in _CASES:
        x = rng("max_pool" + label).standard_normal(shape, np.float32)
        for ceil_mode in (False, True):
            yield Sample(label + "_ceil" * ceil_mode, op(kernel, stride, padding, dilation, ceil_mode), (x,))
    x = rng("max_pool_nan").standard_normal((1, 3, 7, 9), np.float32)
    x[0, 0, 2, 3] = x[0, 1, 0, 0] = x[0, 1, 0, 1] = math.nan
    yield Sample("nan", op((3, 3), (2, 2), (1, 1), (1, 1)), (x,))
    negative = np.full((1, 2, 5, 5), -math.inf, np.float32)
    yield Sample("all_infinite", op((3, 3), (1, 1), (1, 1), (1, 1)), (negative,))
    yield Sample("int64", op((2, 2), (2, 2), (1, 1), (1, 1)), (rng("max_pool_int").integers(-9, 9, (1, 2, 5, 5)),))


# --- importing from ATen ---------------------------------------------------------------------------------


def batched(context: ImportContext, x: Value, dims: int) -> Value:
    """`x` with a batch axis: pools take [C, *S] too."""
    return compose.reshape(context, x, (1, *x.shape)) if x.type.rank == dims + 1 else x


def unbatched(context: ImportContext, y: Value, like: Value) -> Value:
    """`y` without the batch axis that `like` does not have."""
    return y if y.type.rank == like.type.rank else compose.reshape(context, y, y.shape[1:])


def _lists(dims: int, kernel: Any, stride: Any, padding: Any) -> tuple[Ints, Ints, Ints]:
    sizes = per_dim(kernel, dims)
    return sizes, per_dim(stride, dims) if stride else sizes, per_dim(padding, dims)


def _register(dims: int) -> None:
    def max_pool(
        context: ImportContext, x: Value, kernel_size: Any, stride: Any = (), padding: Any = 0,
        dilation: Any = 1, ceil_mode: bool = False,
    ) -> Any:  # fmt: skip
        op = MaxPool(*_lists(dims, kernel_size, stride, padding), per_dim(dilation, dims), ceil_mode)
        return unbatched(context, context.emit(op, batched(context, x, dims)), x)

    def max_pool_with_indices(context: ImportContext, x: Value, *args: Any, **kwargs: Any) -> Any:
        def indices(
            kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
        ) -> MaxPoolIndices:
            return MaxPoolIndices(*_lists(dims, kernel_size, stride, padding), per_dim(dilation, dims), ceil_mode)

        places = context.emit(indices(*args, **kwargs), batched(context, x, dims))
        return max_pool(context, x, *args, **kwargs), unbatched(context, places, x)

    def avg_pool(
        context: ImportContext, x: Value, kernel_size: Any, stride: Any = (), padding: Any = 0,
        ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Any:  # fmt: skip
        sizes = _lists(dims, kernel_size, stride, padding)
        op = AvgPool(*sizes, ceil_mode, count_include_pad, divisor_override)
        return unbatched(context, context.emit(op, batched(context, x, dims)), x)

    aten(f"max_pool{dims}d.default")(max_pool)
    aten(f"max_pool{dims}d_with_indices.default")(max_pool_with_indices)
    aten(f"avg_pool{dims}d.default")(avg_pool)


for _dims in (1, 2, 3):
    _register(_dims)
