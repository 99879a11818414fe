"""Pads, flips, sliding windows, diagonals, triangles, and writing into a slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from transpiler.dims import Dim
from transpiler.ir import Array, TensorType
from transpiler.ops.base import Expr, Injective, Load, Opaque, OpError, Sample, Scalar
from transpiler.ops.dtypes import draw, static
from transpiler.ops.shape import slice_shape, slices

_NUMPY_MODES: dict[str, Literal["constant", "reflect", "edge", "wrap"]] = {
    "constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap",
}  # fmt: skip


class Pad(Injective, name="pad"):
    """`low[i]` elements before and `high[i]` after axis i, none negative.

    They are `value` (mode "constant"), the mirror image without the edge ("reflect"), the edge ("replicate")
    or the other end ("circular"); reflect needs pads below the dim, circular at most the dim.
    """

    low: tuple[Dim, ...]
    high: tuple[Dim, ...]
    mode: str = "constant"
    value: bool | int | float = 0

    def infer(self, x: TensorType) -> TensorType:
        if not len(self.low) == len(self.high) == x.rank:
            raise OpError(f"pad of {x}: one low and one high per axis expected")
        if self.mode not in _NUMPY_MODES:
            raise OpError(f"pad: unknown mode {self.mode!r}; known: {', '.join(_NUMPY_MODES)}")
        for pad, dim in zip((*self.low, *self.high), x.shape * 2, strict=True):
            if not isinstance(pad, int) or not isinstance(dim, int):
                continue
            limit = {"reflect": max(dim - 1, 0), "circular": dim, "replicate": pad if dim else 0}.get(self.mode, pad)
            if not 0 <= pad <= limit:
                raise OpError(f"pad: {pad} of a dim of {dim} is out of range for mode {self.mode!r}")
        return x.with_shape(low + dim + high for low, dim, high in zip(self.low, x.shape, self.high, strict=True))

    def reference(self, x: Array) -> Array:
        widths = list(zip(static(self.low), static(self.high), strict=True))
        if self.mode == "constant":
            return np.pad(x, widths, constant_values=np.array(self.value).astype(x.dtype))
        return np.pad(x, widths, mode=_NUMPY_MODES[self.mode])

    def host(self, x: str) -> str | None:
        if self.mode != "constant" or not np.isfinite(self.value):
            return None
        widths = tuple(zip(static(self.low), static(self.high), strict=True))
        return f"np.pad({x}, {widths}, constant_values={self.value})" if widths else x

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        (x,) = types
        inside: Expr = None
        where: list[Expr] = []
        for i, low, high, dim in zip(index, self.low, self.high, x.shape, strict=True):
            if low == 0 and high == 0:
                where.append(i)
                continue
            position, size = i - s.size(low), s.size(dim)
            if self.mode == "constant":
                within = s.logical_and(position >= 0, position < size)
                inside = within if inside is None else s.logical_and(inside, within)
            where.append(self._source(s, position, size))
        element = inputs[0](*where)
        return element if inside is None else s.guarded(inside, element, s.const(self.value, x.dtype))

    def _source(self, s: Scalar, position: Expr, size: Expr) -> Expr:
        """Where the element at `position` (which may lie outside 0..size-1) is read."""
        last = size - 1
        match self.mode:
            case "reflect":
                mirrored = s.select(position < 0, 0 - position, position)
                return s.select(mirrored > last, last + last - mirrored, mirrored)
            case "replicate":
                return s.select(position < 0, position * 0, s.select(position > last, position * 0 + last, position))
            case "circular":
                return s.floormod(position, size)
        return position

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = draw("pad", "float32", 2, 5, 7)
        yield Sample("constant", cls((0, 1, 2), (0, 3, 0)), (x,), exact=True)
        yield Sample("constant_value", cls((1, 0, 2), (0, 0, 1), "constant", -1.5), (x,), exact=True)
        infinity = float("-inf")
        yield Sample("constant_infinite", cls((0, 0, 2), (0, 0, 1), "constant", infinity), (x,), exact=True)
        for mode in ("reflect", "replicate", "circular"):
            yield Sample(mode, cls((0, 4, 2), (0, 3, 6), mode), (x,), exact=True)
        yield Sample("int64", cls((2,), (1,), "constant", 7), (draw("pad", "int64", 4),), exact=True)
        yield Sample("bool", cls((2,), (1,), "constant", True), (draw("pad", "bool", 4),), exact=True)
        yield Sample("empty", cls((1, 0), (2, 0)), (draw("pad", "float32", 0, 3),), exact=True)


class Flip(Injective, name="flip"):
    """Reversed along `axes`."""

    axes: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        if not all(0 <= axis < x.rank for axis in self.axes):
            raise OpError(f"flip: axes {self.axes} of rank {x.rank}")
        return x

    def reference(self, x: Array) -> Array:
        return np.flip(x, self.axes)

    def host(self, x: str) -> str:
        return f"np.flip({x}, {self.axes})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        return inputs[0](
            *(
                s.size(dim) - 1 - i if axis in self.axes else i
                for axis, (i, dim) in enumerate(zip(index, types[0].shape, strict=True))
            )
        )

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample("last", cls((2,)), (draw("flip", "float32", 2, 3, 7),), exact=True)
        yield Sample("two", cls((0, 2)), (draw("flip", "int64", 2, 3, 7),), exact=True)


class SliceUpdate(Injective, name="slice_update"):
    """`x` with the slice `starts:stops:steps` replaced by `update`, which has the slice's shape."""

    starts: tuple[Dim, ...]
    stops: tuple[Dim, ...]
    steps: tuple[int, ...]

    def infer(self, x: TensorType, update: TensorType) -> TensorType:
        expected = x.with_shape(slice_shape(self.starts, self.stops, self.steps, x))
        if update != expected:
            raise OpError(f"slice_update: an update of {expected} expected, got {update}")
        return x

    def reference(self, x: Array, update: Array) -> Array:
        result = x.copy()
        result[slices(self.starts, self.stops, self.steps)] = update
        return result

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        inside: Expr = None
        where: list[Expr] = []
        parts = zip(index, self.starts, self.stops, self.steps, types[0].shape, strict=True)
        for i, start, stop, step, dim in parts:
            offset = i - s.size(start)
            where.append(offset if step == 1 else s.floordiv(offset, step))
            checks = []
            if start != 0:
                checks.append(offset >= 0)
            if stop != dim:
                checks.append(i < s.size(stop))
            if step != 1:
                checks.append(s.eq(s.floormod(offset, step), 0))
            for check in checks:
                inside = check if inside is None else s.logical_and(inside, check)
        if inside is None:
            return inputs[1](*where)
        return s.guarded(inside, inputs[1](*where), inputs[0](*index))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        def data(dtype: str, *update: int) -> tuple[Array, Array]:
            return draw("slice_update x", dtype, 5, 9), draw("slice_update update", dtype, *update)

        yield Sample("rows", cls((1, 0), (3, 9), (1, 1)), data("float32", 2, 9), exact=True)
        yield Sample("steps", cls((0, 1), (5, 8), (2, 3)), data("float32", 3, 3), exact=True)
        yield Sample("all", cls((0, 0), (5, 9), (1, 1)), data("int64", 5, 9), exact=True)
        yield Sample("nothing", cls((2, 0), (2, 9), (1, 1)), data("float32", 0, 9), exact=True)


class SliceWrite(Opaque, name="slice_write"):
    """`slice_update` where `x` is a state: a kernel of its own, which can run in place."""

    starts: tuple[Dim, ...]
    stops: tuple[Dim, ...]
    steps: tuple[int, ...]

    def infer(self, x: TensorType, update: TensorType) -> TensorType:
        return SliceUpdate(self.starts, self.stops, self.steps).infer(x, update)

    def reference(self, x: Array, update: Array) -> Array:
        return SliceUpdate(self.starts, self.stops, self.steps).reference(x, update)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for sample in SliceUpdate.samples():
            op = sample.op
            assert isinstance(op, SliceUpdate)
            yield replace(sample, op=cls(op.starts, op.stops, op.steps))


class Unfold(Injective, name="unfold"):
    """Windows of `size`, `step` apart, along `axis`: (…, d, …) -> (…, (d - size) // step + 1, …, size)."""

    axis: int
    size: int
    step: int

    def infer(self, x: TensorType) -> TensorType:
        if not 0 <= self.axis < x.rank or self.step < 1 or self.size < 0:
            raise OpError(f"unfold{self.attributes()} of {x}")
        dim = x.shape[self.axis]
        if isinstance(dim, int) and dim < self.size:
            raise OpError(f"unfold: windows of {self.size} in a dim of {dim}")
        windows = (dim - self.size) // self.step + 1
        return x.with_shape((*x.shape[: self.axis], windows, *x.shape[self.axis + 1 :], self.size))

    def reference(self, x: Array) -> Array:
        windows = np.lib.stride_tricks.sliding_window_view(x, self.size, self.axis)
        return windows[(slice(None),) * self.axis + (slice(None, None, self.step),)]

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        *outer, inner = index
        position = outer[self.axis] * self.step + inner
        return inputs[0](*outer[: self.axis], position, *outer[self.axis + 1 :])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample("overlapping", cls(1, 3, 2), (draw("unfold", "float32", 2, 9, 3),), exact=True)
        yield Sample("last", cls(0, 4, 1), (draw("unfold", "int64", 11),), exact=True)


class Diagonal(Injective, name="diagonal"):
    """Elements (i, i + offset) of `axis1`, `axis2`, which are dropped; the diagonal is the last axis."""

    offset: int
    axis1: int
    axis2: int

    def infer(self, x: TensorType) -> TensorType:
        if self.axis1 == self.axis2 or not 0 <= min(self.axis1, self.axis2) <= max(self.axis1, self.axis2) < x.rank:
            raise OpError(f"diagonal: axes {self.axis1}, {self.axis2} of rank {x.rank}")
        rows, columns = x.shape[self.axis1], x.shape[self.axis2]
        if not isinstance(rows, int) or not isinstance(columns, int):
            raise OpError("diagonal of symbolic dims")
        length = max(min(rows + min(self.offset, 0), columns - max(self.offset, 0)), 0)
        kept = (dim for axis, dim in enumerate(x.shape) if axis not in (self.axis1, self.axis2))
        return x.with_shape((*kept, length))

    def reference(self, x: Array) -> Array:
        return np.diagonal(x, self.offset, self.axis1, self.axis2)

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        *outer, i = index
        rest = iter(outer)
        at = {self.axis1: i + max(-self.offset, 0), self.axis2: i + max(self.offset, 0)}
        return inputs[0](*(at[axis] if axis in at else next(rest) for axis in range(types[0].rank)))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = draw("diagonal", "float32", 4, 3, 7)
        yield Sample("main", cls(0, 0, 1), (x,), exact=True)
        yield Sample("above", cls(2, 0, 2), (x,), exact=True)
        yield Sample("below", cls(-1, 0, 1), (x,), exact=True)
        yield Sample("none", cls(9, 0, 1), (x,), exact=True)


class _Triangle(Injective):
    """Base of the triangles of the last two axes; the rest is 0."""

    diagonal: int = 0

    def keeps(self, row: Expr, column: Expr) -> Expr:
        """Does the element stay?"""
        raise NotImplementedError(self.name)

    def infer(self, x: TensorType) -> TensorType:
        if x.rank < 2:
            raise OpError(f"{self.name} of {x}: two axes expected")
        return x

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        zero = s.const(False if types[0].dtype == "bool" else 0, types[0].dtype)
        return s.select(self.keeps(index[-2], index[-1]), inputs[0](*index), zero)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for diagonal in (0, 2, -3):
            yield Sample(f"diagonal{diagonal}", cls(diagonal), (draw("tri", "float32", 2, 5, 7),), exact=True)
        yield Sample("bool", cls(), (np.ones((6, 4), bool),), exact=True)
        yield Sample("nan_dropped", cls(), (np.full((3, 3), np.nan, np.float32),), exact=True)


class Tril(_Triangle, name="tril", aten=["tril.default"]):
    """Elements with column - row <= diagonal."""

    def keeps(self, row: Expr, column: Expr) -> Expr:
        return column - row <= self.diagonal

    def reference(self, x: Array) -> Array:
        return np.tril(x, self.diagonal)


class Triu(_Triangle, name="triu", aten=["triu.default"]):
    """Elements with column - row >= diagonal."""

    def keeps(self, row: Expr, column: Expr) -> Expr:
        return column - row >= self.diagonal

    def reference(self, x: Array) -> Array:
        return np.triu(x, self.diagonal)
