"""Fractional max pooling (Graham, arXiv:1412.6071) with the random numbers given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transpiler.ir import Value, fixed_size
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, aten
from transpiler.ops.compare import Lt, Where
from transpiler.ops.creation import Arange
from transpiler.ops.elementwise import Add
from transpiler.ops.index import Gather, Index
from transpiler.ops.reduce import Argmax, ReduceMax
from transpiler.ops.rounding import Trunc


def _starts(context: ImportContext, u: Value, size: int, kernel: int, count: int) -> Value:
    """Where the windows of one axis begin, int64 [N, C, count], from u[N, C] in [0, 1).

    Source: generate_intervals in aten/src/ATen/native/FractionalMaxPooling.h.
    """
    last = context.scalar(size - kernel, "int64")
    steps: Value = context.emit(Arange(0, 1, count, "int64"))
    if count == 1:
        return compose.broadcast_to(context, last, (*u.shape, 1))
    alpha = context.array(_quotient(size - kernel, count - 1, u.dtype))
    u = compose.reshape(context, u, (*u.shape, 1))
    moved = compose.mul(context, compose.add(context, context.cast(steps, u.dtype), u), alpha)
    begin = [context.emit(Trunc(), value) for value in (moved, compose.mul(context, u, alpha))]
    places = context.cast(compose.sub(context, begin[0], begin[1]), "int64")
    inner: Value = context.emit(Lt(), steps, context.scalar(count - 1, "int64"))
    result: Value = context.emit(Where(), inner, places, last)
    return result


def _quotient(a: int, b: int, dtype: str) -> Any:
    """a / b, divided in `dtype` as PyTorch does."""
    import numpy as np

    kind = np.dtype(dtype).type
    return np.asarray(kind(a) / kind(b))


def _register(dims: int) -> None:
    def pool(
        context: ImportContext, x: Value, kernel_size: Sequence[int], output_size: Sequence[int], samples: Value
    ) -> Any:
        """x[N, C, *S] (or [C, *S]) -> (the largest of each window, its position in the flattened map)."""
        whole = x if x.type.rank == dims + 2 else compose.reshape(context, x, (1, *x.shape))
        sizes = whole.shape
        if not all(isinstance(size, int) for size in sizes):
            raise context.unsupported("fractional max pooling of symbolic sizes")
        rank = 2 + 2 * dims
        samples = compose.slice_axis(context, samples, 0, 0, sizes[0])  # PyTorch does not mind more of them

        def along(value: Value, axes: Sequence[int]) -> Value:
            """`value` with its axes at the given places of [N, C, *windows, *kernel]."""
            shape = [1] * rank
            for axis, size in zip(axes, value.shape, strict=True):
                assert isinstance(size, int)
                shape[axis] = size
            return compose.reshape(context, value, shape)

        picks = [along(context.emit(Arange(0, 1, sizes[axis], "int64")), [axis]) for axis in (0, 1)]
        for axis in range(dims):
            # 2-d samples begin with the last axis, 3-d ones with the first.
            u = compose.select(context, samples, 2, dims - 1 - axis if dims == 2 else axis)
            start = _starts(context, u, fixed_size(sizes[2 + axis]), kernel_size[axis], output_size[axis])
            inner: Value = context.emit(Arange(0, 1, kernel_size[axis], "int64"))
            picks.append(compose.add(context, along(start, [0, 1, 2 + axis]), along(inner, [2 + dims + axis])))
        windows: Value = context.emit(Index(tuple(range(2 + dims))), whole, *picks)
        outer = windows.shape[: 2 + dims]
        flat = compose.reshape(context, windows, (*outer, compose.product(kernel_size)))
        position = picks[2]
        for axis in range(1, dims):
            scaled = compose.mul(context, position, context.scalar(fixed_size(sizes[2 + axis]), "int64"))
            position = context.emit(Add(), scaled, picks[2 + axis])
        positions = compose.reshape(context, compose.broadcast_to(context, position, windows.shape), flat.shape)
        best = context.emit(Argmax(2 + dims, True), flat)
        where = compose.reshape(context, context.emit(Gather(2 + dims), positions, best), outer)
        largest: Value = context.emit(ReduceMax((2 + dims,), False), flat)
        if whole is x:
            return largest, where
        return tuple(compose.reshape(context, value, outer[1:]) for value in (largest, where))

    aten(f"fractional_max_pool{dims}d.default")(pool)


for _dims in (2, 3):
    _register(_dims)
