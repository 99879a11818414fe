"""Ops that move elements: views, slices, joins. `shape_edges.py` has pads, `views.py` the importers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transpiler.dims import Dim, product
from transpiler.ir import Array, TensorType
from transpiler.ops.base import (
    Expr,
    Injective,
    Load,
    OpError,
    Sample,
    Scalar,
    broadcast_shapes,
    normalize_axis,
)
from transpiler.ops.dtypes import draw, static


def ravel(s: Scalar, index: Sequence[Expr], shape: Sequence[Dim]) -> Expr:
    """The position of `index` in a row-major box of `shape`."""
    position: Expr = index[0] if index else s.size(0)
    for i, dim in zip(index[1:], shape[1:], strict=True):
        position = position * s.size(dim) + i
    return position


def unravel(s: Scalar, position: Expr, shape: Sequence[Dim]) -> list[Expr]:
    """The index of a position in a row-major box of `shape`."""
    index: list[Expr] = []
    for axis in range(len(shape) - 1, 0, -1):
        size = s.size(shape[axis] if shape[axis] != 0 else 1)
        index.insert(0, s.floormod(position, size))
        position = s.floordiv(position, size)
    return [position, *index] if shape else []


class Reshape(Injective, name="reshape"):
    """The same elements in row-major order in another shape; never -1."""

    shape: tuple[Dim, ...]

    def infer(self, x: TensorType) -> TensorType:
        before, after = product(x.shape), product(self.shape)
        if isinstance(before, int) and isinstance(after, int) and before != after:
            raise OpError(f"reshape of {x} to {self.shape} changes the number of elements")
        return x.with_shape(self.shape)

    def reference(self, x: Array) -> Array:
        return x.reshape(static(self.shape))

    def host(self, x: str) -> str:
        return f"{x}.reshape({static(self.shape)})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        """Axes that lead or trail both shapes are passed through; only the middle is flattened."""
        before, after = types[0].shape, self.shape
        lead = _common(before, after)
        tail = _common(before[lead:][::-1], after[lead:][::-1])
        end_before, end_after = len(before) - tail, len(after) - tail
        middle: list[Expr] = []
        if end_before > lead:
            position = ravel(s, index[lead:end_after], after[lead:end_after])
            middle = unravel(s, position, before[lead:end_before])
        return inputs[0](*index[:lead], *middle, *index[end_after:])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = draw("reshape", "float32", 3, 4, 5)
        for shape in ((60,), (12, 5), (3, 20), (5, 4, 3), (3, 2, 2, 5), (1, 3, 4, 5, 1)):
            yield Sample("x".join(map(str, shape)), cls(shape), (x,), exact=True)
        yield Sample("to_rank0", cls(()), (draw("reshape", "int64", 1, 1),), exact=True)
        yield Sample("from_rank0", cls((1,)), (np.array(True),), exact=True)
        yield Sample("empty", cls((0, 7)), (draw("reshape", "float32", 3, 0),), exact=True)


def _common(a: Sequence[Dim], b: Sequence[Dim]) -> int:
    """How many leading dims agree."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


class Transpose(Injective, name="transpose"):
    """Output axis i is input axis perm[i]."""

    perm: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        if sorted(self.perm) != list(range(x.rank)):
            raise OpError(f"transpose: {self.perm} is not a permutation of {x.rank} axes")
        return x.with_shape(x.shape[axis] for axis in self.perm)

    def reference(self, x: Array) -> Array:
        return x.transpose(self.perm)

    def host(self, x: str) -> str:
        return f"{x}.transpose({self.perm})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        return inputs[0](*(index[self.perm.index(axis)] for axis in range(len(self.perm))))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample("matrix", cls((1, 0)), (draw("transpose", "float32", 17, 33),), exact=True)
        yield Sample("nchw_to_nhwc", cls((0, 2, 3, 1)), (draw("transpose", "float32", 2, 3, 5, 7),), exact=True)
        yield Sample("cycle", cls((2, 0, 1)), (draw("transpose", "int64", 3, 4, 5),), exact=True)
        yield Sample("rank0", cls(()), (draw("transpose", "float32"),), exact=True)


class BroadcastTo(Injective, name="broadcast_to"):
    """Axes of size 1, and missing leading axes, repeated to `shape`."""

    shape: tuple[Dim, ...]

    def infer(self, x: TensorType) -> TensorType:
        if x.rank > len(self.shape) or broadcast_shapes(x.shape, self.shape) != self.shape:
            raise OpError(f"{x} does not broadcast to {self.shape}")
        return x.with_shape(self.shape)

    def reference(self, x: Array) -> Array:
        return np.broadcast_to(x, static(self.shape))

    def host(self, x: str) -> str:
        return f"np.broadcast_to({x}, {static(self.shape)})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        lead = len(self.shape) - types[0].rank
        return inputs[0](*(0 if dim == 1 else i for dim, i in zip(types[0].shape, index[lead:], strict=True)))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample("middle", cls((3, 5, 7)), (draw("broadcast_to", "float32", 3, 1, 7),), exact=True)
        yield Sample("leading", cls((3, 5, 7)), (draw("broadcast_to", "int64", 7),), exact=True)
        yield Sample("rank0", cls((2, 9)), (draw("broadcast_to", "float32"),), exact=True)
        yield Sample("to_empty", cls((0, 3)), (draw("broadcast_to", "float32", 1, 3),), exact=True)


class Slice(Injective, name="slice"):
    """Per axis the elements start, start + step, … below stop; 0 <= start <= stop <= dim, step > 0."""

    starts: tuple[Dim, ...]
    stops: tuple[Dim, ...]
    steps: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        return x.with_shape(slice_shape(self.starts, self.stops, self.steps, x))

    def reference(self, x: Array) -> Array:
        return x[slices(self.starts, self.stops, self.steps)]

    def host(self, x: str) -> str:
        parts = zip(static(self.starts), static(self.stops), self.steps, strict=True)
        text = ", ".join(f"{start}:{stop}:{step}" for start, stop, step in parts)
        return f"{x}[{text}]" if text else x

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        return inputs[0](
            *(i * step + s.size(start) for i, start, step in zip(index, self.starts, self.steps, strict=True))
        )

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = draw("slice", "float32", 7, 11)
        yield Sample("rows", cls((2, 0), (5, 11), (1, 1)), (x,), exact=True)
        yield Sample("steps", cls((1, 0), (7, 10), (2, 3)), (x,), exact=True)
        yield Sample("empty", cls((3, 0), (3, 11), (1, 1)), (x,), exact=True)
        yield Sample("int64", cls((1,), (4,), (1,)), (draw("slice", "int64", 5),), exact=True)


def slice_shape(starts: Sequence[Dim], stops: Sequence[Dim], steps: Sequence[int], x: TensorType) -> tuple[Dim, ...]:
    """The shape of a slice of `x`. Raises OpError if the slice is not normalised for it."""
    if not len(starts) == len(stops) == len(steps) == x.rank:
        raise OpError(f"slice of {x}: one start, stop and step per axis expected")
    for start, stop, step, dim in zip(starts, stops, steps, x.shape, strict=True):
        wrong = isinstance(start, int) and isinstance(stop, int) and not 0 <= start <= stop
        if wrong or step < 1 or (isinstance(stop, int) and isinstance(dim, int) and stop > dim):
            raise OpError(f"slice {start}:{stop}:{step} of a dim of {dim} is not normalised")
    return tuple((stop - start + (step - 1)) // step for start, stop, step in zip(starts, stops, steps, strict=True))


def slices(starts: Sequence[Dim], stops: Sequence[Dim], steps: Sequence[int]) -> tuple[slice, ...]:
    return tuple(map(slice, static(starts), static(stops), steps))


class Concat(Injective, name="concat"):
    """Inputs joined along `axis`; the other dims agree."""

    axis: int

    def infer(self, *types: TensorType) -> TensorType:
        if not types:
            raise OpError("concat of nothing")
        first = types[0]
        if normalize_axis(self.axis, first.rank) != self.axis or not first.rank:
            raise OpError(f"concat: axis {self.axis} of rank {first.rank}")
        total: Dim = 0
        for other in types:
            total = total + other.shape[self.axis] if other.rank == first.rank else total
            same = other.rank == first.rank and all(
                a == b for axis, (a, b) in enumerate(zip(first.shape, other.shape, strict=True)) if axis != self.axis
            )
            if not same or other.dtype != first.dtype:
                raise OpError(f"concat: {other} does not join {first} along axis {self.axis}")
        return first.with_shape((*first.shape[: self.axis], total, *first.shape[self.axis + 1 :]))

    def reference(self, *inputs: Array) -> Array:
        return np.concatenate(inputs, self.axis)

    def host(self, *names: str) -> str:
        return f"np.concatenate([{', '.join(names)}], {self.axis})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        return self._pick(s, list(zip(inputs, types, strict=True)), list(index))

    def _pick(self, s: Scalar, parts: list[tuple[Load, TensorType]], index: list[Expr]) -> Expr:
        """The element if its position is in the first part, else look in the rest, counted from there."""
        (load, kind), *rest = parts
        if not rest:
            return load(*index)
        size = s.size(kind.shape[self.axis])
        position = index[self.axis]
        later = [*index[: self.axis], position - size, *index[self.axis + 1 :]]
        # The loads of the rest are guarded too: `position - size` is negative inside the first part.
        inside = load(*index)
        zero = s.const(False if kind.dtype == "bool" else 0, kind.dtype)
        outside = s.guarded(position >= size, self._pick(s, rest, later), zero)
        return s.guarded(position < size, inside, outside)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        def parts(dtype: str, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
            return tuple(draw(f"concat {n}", dtype, *shape) for n, shape in enumerate(shapes))

        yield Sample("last", cls(1), parts("float32", (3, 4), (3, 1), (3, 6)), exact=True)
        yield Sample("first", cls(0), parts("int64", (2, 5), (3, 5)), exact=True)
        yield Sample("one", cls(0), parts("float32", (2, 5)), exact=True)
        yield Sample("with_empty", cls(1), parts("float32", (2, 3, 2), (2, 0, 2), (2, 1, 2)), exact=True)
        yield Sample("bool", cls(0), parts("bool", (3,), (5,)), exact=True)
        yield Sample("pieces", cls(1), parts("float32", (2, 5000), (2, 4096), (2, 33)), exact=True)
        yield Sample("blocked", cls(1), parts("int64", (3, 2, 5, 16), (3, 1, 5, 16)), exact=True)
        yield Sample("long_bool", cls(0), parts("bool", (40,), (17,)), exact=True)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """ATen's int[1] arguments come as an int or a list."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)
