"""Softmax and log-softmax along one axis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from transpiler.ir import Array, TensorType, Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, Opaque, OpError, Sample, aten, normalize_axis, rng
from transpiler.ops.wide import narrow, widen


class _AlongAxis(Opaque):
    axis: int

    def infer(self, *types: TensorType) -> TensorType:
        (x,) = types
        if not x.is_float or not 0 <= self.axis < x.rank:
            raise OpError(f"{self.name}: a float tensor with an axis {self.axis} expected, got {x}")
        return x

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        shapes: list[tuple[tuple[int, ...], int]] = [
            ((3, 5), 1), ((17,), 0), ((2, 3, 7, 9), 3), ((2, 3, 7, 9), 1), ((5, 1), 1), ((4, 0), 1), ((0,
            4), 1), ((2, 64, 77), 2), ((1, 1000), 1), ((3, 130), 0),
        ]  # fmt: skip
        for shape, axis in shapes:
            label = f"{'x'.join(map(str, shape))}_axis{axis}"
            yield Sample(label, cls(axis), (3 * rng(cls.name + label).standard_normal(shape, np.float32),))
        special = rng(cls.name).standard_normal((6, 5), np.float32)
        special[0, 2], special[1, :], special[2, 1], special[3, :2], special[4] = (
            math.nan,
            -math.inf,
            200,
            -math.inf,
            -1e4,
        )
        yield Sample("special_rows", cls(1), (special,))
        yield Sample("infinity", cls(0), (np.array([1, math.inf, 2], np.float32),))
        yield Sample("float64", cls(1), (special.astype(np.float64),))


class Softmax(_AlongAxis, name="softmax"):
    """exp(x - max) / sum(exp(x - max)) along `axis`; a row of -inf is NaN, as in PyTorch."""

    def reference(self, *inputs: Array) -> Array:
        return narrow(softmax(widen(inputs[0]), self.axis), inputs[0])


class LogSoftmax(_AlongAxis, name="log_softmax"):
    """x - max - log(sum(exp(x - max))) along `axis`."""

    def reference(self, *inputs: Array) -> Array:
        x = widen(inputs[0])
        with np.errstate(invalid="ignore", divide="ignore"):
            shifted = x - _max(x, self.axis)
            return narrow(shifted - np.log(np.exp(shifted).sum(self.axis, keepdims=True)), inputs[0])


def softmax(x: Array, axis: int) -> Array:
    """Softmax in the dtype of `x`."""
    with np.errstate(invalid="ignore"):
        exponentials = np.exp(x - _max(x, axis))
        return np.asarray(exponentials / exponentials.sum(axis, keepdims=True))


def _max(x: Array, axis: int) -> Array:
    return np.asarray(np.max(x, axis, keepdims=True, initial=-math.inf))


# --- importing from ATen ---------------------------------------------------------------------------------


def _emit(context: ImportContext, op: type[Softmax | LogSoftmax], x: Value, dim: int) -> Value:
    """`x` is cast to what PyTorch returns first (the `dtype` argument); a scalar is a row of one."""
    x = context.cast(x, context.out_types()[0].dtype)
    if x.type.rank == 0:
        return compose.reshape(context, context.emit(op(0), compose.reshape(context, x, (1,))), ())
    result: Value = context.emit(op(normalize_axis(dim, x.type.rank)), x)
    return result


@aten("softmax.int", "_softmax.default")
def _softmax(context: ImportContext, x: Value, dim: int, *_dtype: Any, **_dtype_by_name: Any) -> Any:
    return _emit(context, Softmax, x, dim)


@aten("log_softmax.int", "_log_softmax.default")
def _log_softmax(context: ImportContext, x: Value, dim: int, *_dtype: Any, **_dtype_by_name: Any) -> Any:
    return _emit(context, LogSoftmax, x, dim)


@aten("_safe_softmax.default")
def _safe_softmax(context: ImportContext, x: Value, dim: int, *_dtype: Any, **_dtype_by_name: Any) -> Any:
    """Softmax whose rows of -inf are 0."""
    y = _emit(context, Softmax, x, dim)
    if 0 in x.shape:
        return y
    x = context.cast(x, y.dtype)
    largest = x if x.type.rank == 0 else compose.reduce_max(context, x, (normalize_axis(dim, x.type.rank),))
    empty = compose.equal(context, largest, context.scalar(-math.inf, x.dtype))
    return compose.where(context, empty, context.scalar(0.0, y.dtype), y)
