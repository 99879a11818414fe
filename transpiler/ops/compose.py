"""Building blocks of importers that compose an ATen op from neutral ones; each appends a node or two."""

from __future__ import annotations

from collections.abc import Sequence

from transpiler.dims import Dim, product
from transpiler.ir import Value
from transpiler.ops import views
from transpiler.ops.base import ImportContext, Op, normalize_axis
from transpiler.ops.compare import Eq, Where
from transpiler.ops.creation import Full
from transpiler.ops.elementwise import Add, Mul, Sub
from transpiler.ops.elementwise_unary import Clamp, Rsqrt
from transpiler.ops.index import Take
from transpiler.ops.reduce import ReduceMax, ReduceMean, ReduceSum
from transpiler.ops.shape import BroadcastTo, Concat
from transpiler.ops.shape_edges import Pad

__all__ = ["product"]


def emit(context: ImportContext, op: Op, *inputs: Value) -> Value:
    """The only output of a new node."""
    value = context.emit(op, *inputs)
    assert isinstance(value, Value)
    return value


def reshape(context: ImportContext, x: Value, shape: Sequence[Dim]) -> Value:
    return x if x.shape == tuple(shape) else _value(views.reshape(context, x, tuple(shape)))


def transpose(context: ImportContext, x: Value, perm: Sequence[int]) -> Value:
    """Axis i of the result is axis perm[i] of `x`."""
    return x if list(perm) == sorted(perm) else _value(views.transpose(context, x, tuple(perm)))


def swap_last(context: ImportContext, x: Value) -> Value:
    """The last two axes exchanged."""
    rank = x.type.rank
    return transpose(context, x, (*range(rank - 2), rank - 1, rank - 2))


def broadcast_to(context: ImportContext, x: Value, shape: Sequence[Dim]) -> Value:
    return x if x.shape == tuple(shape) else emit(context, BroadcastTo(tuple(shape)), x)


def slice_axis(context: ImportContext, x: Value, axis: int, start: Dim, stop: Dim) -> Value:
    """x[start:stop] along `axis`; both are non-negative."""
    return _value(views.cut(context, x, normalize_axis(axis, x.type.rank), start, stop))


def select(context: ImportContext, x: Value, axis: int, index: int) -> Value:
    """x[index] along `axis`, which goes away."""
    return reshape(context, slice_axis(context, x, axis, index, index + 1), (*x.shape[:axis], *x.shape[axis + 1 :]))


def concat(context: ImportContext, parts: Sequence[Value], axis: int) -> Value:
    return parts[0] if len(parts) == 1 else emit(context, Concat(axis), *parts)


def stack(context: ImportContext, parts: Sequence[Value], axis: int) -> Value:
    """Joined along a new axis."""
    widened = [reshape(context, x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in parts]
    return concat(context, widened, axis)


def pad_end(context: ImportContext, x: Value, high: Sequence[int]) -> Value:
    """Zeros after the end of the last axes."""
    before = (0,) * (x.type.rank - len(high))
    return emit(context, Pad((0,) * x.type.rank, (*before, *high)), x)


def full(context: ImportContext, value: float | bool, shape: Sequence[Dim], dtype: str) -> Value:
    return emit(context, Full(value, tuple(shape), dtype))


def add(context: ImportContext, a: Value, b: Value) -> Value:
    return emit(context, Add(), a, b)


def sub(context: ImportContext, a: Value, b: Value) -> Value:
    return emit(context, Sub(), a, b)


def mul(context: ImportContext, a: Value, b: Value) -> Value:
    return emit(context, Mul(), a, b)


def scale(context: ImportContext, x: Value, factor: float) -> Value:
    """x * factor; `x` itself for 1."""
    return x if factor == 1 else mul(context, x, context.scalar(factor, x.dtype))


def clamp(context: ImportContext, x: Value, low: float, high: float) -> Value:
    return emit(context, Clamp(low, high), x)


def rsqrt(context: ImportContext, x: Value) -> Value:
    return emit(context, Rsqrt(), x)


def equal(context: ImportContext, a: Value, b: Value) -> Value:
    return emit(context, Eq(), a, b)


def where(context: ImportContext, condition: Value, then: Value, otherwise: Value) -> Value:
    return emit(context, Where(), condition, then, otherwise)


def reduce_sum(context: ImportContext, x: Value, axes: Sequence[int]) -> Value:
    """The axes go away."""
    return emit(context, ReduceSum(tuple(axes), False), x)


def reduce_mean(context: ImportContext, x: Value, axes: Sequence[int]) -> Value:
    """The axes stay, of size 1."""
    return emit(context, ReduceMean(tuple(axes), True), x)


def reduce_max(context: ImportContext, x: Value, axes: Sequence[int]) -> Value:
    """The axes stay, of size 1."""
    return emit(context, ReduceMax(tuple(axes), True), x)


def take(context: ImportContext, x: Value, indices: Value, axis: int, *, wraps: bool = True) -> Value:
    """Rows along `axis`; negative indices count from the end if it `wraps`, else they are out of bounds."""
    return emit(context, Take(axis, wraps), x, indices)


def _value(value: object) -> Value:
    assert isinstance(value, Value)
    return value
