"""The `Scalar` protocol on numpy arrays: evaluates an op's element-wise meaning without a compiler.

Indices are whole arrays, so one evaluation gives every output element. A load out of bounds gives NaN (or a
large negative int), which shows unless `guarded` discards it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from transpiler.dims import evaluate
from transpiler.ir import Array, TensorType
from transpiler.ops.base import Elementwise, Injective, Load, Op, Reduce
from transpiler.ops.dtypes import numpy_dtype
from transpiler.ops.special_numpy import special_function

_FUNCTIONS = {
    "logb": lambda x: np.where(np.isfinite(x) & (x != 0), np.frexp(x)[1] - 1.0, np.where(x == 0, -np.inf, np.abs(x))),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "normal_cdf": np.vectorize(lambda x: (1 + math.erf(x * math.sqrt(0.5))) / 2, otypes=[np.float64]),
    "round": np.rint,
    "pow": np.power,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "atan2": np.arctan2,
}


class NumpyScalar:
    """Implements `transpiler.ops.base.Scalar`."""

    def const(self, value: Any, dtype: str) -> Any:
        return np.array(value).astype(numpy_dtype(dtype))[()]

    def size(self, value: Any) -> Any:
        return np.int64(evaluate(value, {}))

    def dtype(self, x: Any) -> str:
        return str(np.asarray(x).dtype)

    def bind(self, x: Any) -> Any:
        return x

    def cast(self, x: Any, dtype: str) -> Any:
        return np.asarray(x).astype(numpy_dtype(dtype))

    def select(self, condition: Any, then: Any, otherwise: Any) -> Any:
        assert np.asarray(condition).dtype == bool
        assert np.asarray(then).dtype == np.asarray(otherwise).dtype, "select of two dtypes"
        return np.where(condition, then, otherwise)

    guarded = select

    def call(self, function: str, *args: Any) -> Any:
        implementation = _FUNCTIONS.get(function) or getattr(np, function, None) or partial(special_function, function)
        result = implementation(*args)
        return result if result.dtype == bool else result.astype(args[0].dtype)

    def eq(self, a: Any, b: Any) -> Any:
        return a == b

    def ne(self, a: Any, b: Any) -> Any:
        return a != b

    def logical_and(self, a: Any, b: Any) -> Any:
        return np.logical_and(a, b)

    def logical_or(self, a: Any, b: Any) -> Any:
        return np.logical_or(a, b)

    def logical_not(self, a: Any) -> Any:
        return np.logical_not(a)

    def bitwise(self, operator: str, a: Any, b: Any) -> Any:
        return {
            "&": np.bitwise_and, "|": np.bitwise_or, "^": np.bitwise_xor, "<<": np.left_shift,
            ">>": np.right_shift,
        }[operator](a, b)  # fmt: skip

    def wrapping(self, function: Any, *x: Any) -> Any:
        return function(*x)

    def divide(self, a: Any, b: Any) -> Any:
        return np.divide(a, b)

    divide_rounded = divide

    def floordiv(self, a: Any, b: Any) -> Any:
        return np.floor_divide(a, b)

    def floormod(self, a: Any, b: Any) -> Any:
        return np.mod(a, b)

    def truncdiv(self, a: Any, b: Any) -> Any:
        return np.trunc(np.divide(a, b)).astype(np.asarray(a).dtype)

    def maximum(self, a: Any, b: Any) -> Any:
        return np.maximum(a, b)

    def minimum(self, a: Any, b: Any) -> Any:
        return np.minimum(a, b)

    def divisor(self, value: Any) -> Any:
        assert (value != 0).all()
        return value

    def index(self, value: Any, size: Any, wraps: bool = True) -> Any:
        count = evaluate(size, {})
        value = np.where(value < 0, value + count, value) if wraps else value
        assert ((value >= 0) & (value < count)).all()
        return value


def meaning(op: Op, inputs: Sequence[Array]) -> Array:
    """Every output element by the op's `scalar`, `element` or `reduction`."""
    scalar = NumpyScalar()
    types = [TensorType(str(x.dtype), x.shape) for x in inputs]
    (out,) = op.infer_types(types)
    shape = out.static_shape()
    with np.errstate(all="ignore"):
        if isinstance(op, Elementwise):
            return np.broadcast_to(np.asarray(op.scalar(scalar, *inputs)), shape)
        index = [np.asarray(axis) for axis in np.indices(shape, sparse=False)]
        loads = [_load(x) for x in inputs]
        if isinstance(op, Injective):
            return np.broadcast_to(np.asarray(op.element(scalar, loads, types, index)), shape)
        assert isinstance(op, Reduce)
        how = op.reduction(scalar, loads, types, index)
        state = how.init
        for r in np.ndindex(*(evaluate(extent, {}) for extent in how.extents)):
            state = how.combine(state, how.body([np.int64(i) for i in r]))
        return np.broadcast_to(np.asarray(how.finish(state)), shape)


def _load(x: Array) -> Load:
    outside = np.array(math.nan if x.dtype.kind not in "biu" else -(2**40) if x.dtype.itemsize == 8 else 111).astype(
        x.dtype
    )

    def load(*index: Any) -> Any:
        if x.size == 0:
            return np.full(np.broadcast_shapes(*(np.shape(i) for i in index)), outside)
        inside = np.array(True)
        for i, size in zip(index, x.shape, strict=True):
            inside = inside & (np.asarray(i) >= 0) & (np.asarray(i) < size)
        clipped = tuple(np.clip(i, 0, size - 1) for i, size in zip(index, x.shape, strict=True))
        return np.where(inside, x[clipped], outside)

    return load
