"""A `Scalar` that evaluates lazily with numpy: the element-wise meaning of an op, without a compiler.

`compute(op, arrays)` runs `scalar`, `element` or `reduction` element by element. A load outside a tensor, and
a division of integers that would trap, raise; so what a kernel must not do is found here first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from tests.conformance.eager import type_of
from transpiler.ir import Array, Dim, TensorType, fixed_size
from transpiler.ops.base import Elementwise, Injective, Op, Reduce
from transpiler.ops.dtypes import numpy_dtype
from transpiler.ops.special_numpy import special_function


class Lazy:
    """An expression of a known dtype; `value()` evaluates it."""

    def __init__(self, dtype: str, value: Callable[[], Any]) -> None:
        self.dtype, self.value = dtype, value

    def _binary(self, other: Any, function: Callable[[Any, Any], Any], dtype: str | None = None) -> Lazy:
        right = other if isinstance(other, Lazy) else constant(other, self.dtype)
        assert right.dtype == self.dtype, f"{self.dtype} with {right.dtype}"
        return Lazy(dtype or self.dtype, lambda: function(self.value(), right.value()))

    def __add__(self, other: Any) -> Lazy:
        return self._binary(other, np.add)

    def __sub__(self, other: Any) -> Lazy:
        return self._binary(other, np.subtract)

    def __mul__(self, other: Any) -> Lazy:
        return self._binary(other, np.multiply)

    def __radd__(self, other: Any) -> Lazy:
        return constant(other, self.dtype) + self

    def __rsub__(self, other: Any) -> Lazy:
        return constant(other, self.dtype) - self

    def __rmul__(self, other: Any) -> Lazy:
        return constant(other, self.dtype) * self

    def __lt__(self, other: Any) -> Lazy:
        return self._binary(other, np.less, "bool")

    def __le__(self, other: Any) -> Lazy:
        return self._binary(other, np.less_equal, "bool")

    def __gt__(self, other: Any) -> Lazy:
        return self._binary(other, np.greater, "bool")

    def __ge__(self, other: Any) -> Lazy:
        return self._binary(other, np.greater_equal, "bool")


def constant(value: Any, dtype: str) -> Lazy:
    if not math.isfinite(value) and "float" not in dtype:
        raise AssertionError(f"{value} as {dtype}")
    number = np.array(value).astype(numpy_dtype(dtype))[()]
    return Lazy(dtype, lambda: number)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "round": np.rint,
    "pow": lambda a, b: np.power(np.array([a]), np.array([b]))[0],
    "logb": lambda x: type(x)(math.frexp(x)[1] - 1) if math.isfinite(x) and x else type(x)(abs(x) if x else -math.inf),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "erf": lambda x: type(x)(math.erf(x)),
    "normal_cdf": lambda x: type(x)((1 + math.erf(x * math.sqrt(0.5))) / 2),
}
_BITS: dict[str, Callable[[Any, Any], Any]] = {
    "&": np.bitwise_and,
    "|": np.bitwise_or,
    "^": np.bitwise_xor,
    "<<": np.left_shift,
    ">>": np.right_shift,
}


class NumpyScalar:
    """Implements `transpiler.ops.base.Scalar` on `Lazy`."""

    def const(self, value: Any, dtype: str) -> Lazy:
        return constant(value, dtype)

    def size(self, value: Dim) -> Lazy:
        return constant(value, "int64")

    def dtype(self, x: Lazy) -> str:
        return x.dtype

    def bind(self, x: Lazy) -> Lazy:
        return Lazy(x.dtype, cache(x.value))

    def cast(self, x: Lazy, dtype: str) -> Lazy:
        return Lazy(dtype, lambda: np.asarray(x.value()).astype(numpy_dtype(dtype))[()])

    def select(self, condition: Lazy, then: Any, otherwise: Any) -> Lazy:
        """Both sides are evaluated, so that a trap in either shows."""
        a, b = self._pair(then, otherwise)

        def choose() -> Any:
            yes, no = a.value(), b.value()
            return yes if condition.value() else no

        return Lazy(a.dtype, choose)

    def guarded(self, condition: Lazy, then: Any, otherwise: Any) -> Lazy:
        a, b = self._pair(then, otherwise)
        return Lazy(a.dtype, lambda: a.value() if condition.value() else b.value())

    def call(self, function: str, *args: Lazy) -> Lazy:
        dtype = "bool" if function.startswith("is") else args[0].dtype
        assert all("float" in arg.dtype for arg in args), f"{function} of {args[0].dtype}"
        apply = _FUNCTIONS.get(function) or getattr(np, function, None) or partial(special_function, function)
        return Lazy(dtype, lambda: apply(*(arg.value() for arg in args)))

    def eq(self, a: Any, b: Any) -> Lazy:
        a, b = self._pair(a, b)
        return a._binary(b, np.equal, "bool")

    def ne(self, a: Any, b: Any) -> Lazy:
        a, b = self._pair(a, b)
        return a._binary(b, np.not_equal, "bool")

    def logical_and(self, a: Lazy, b: Lazy) -> Lazy:
        return self._logic(np.logical_and, a, b)

    def logical_or(self, a: Lazy, b: Lazy) -> Lazy:
        return self._logic(np.logical_or, a, b)

    def logical_not(self, a: Lazy) -> Lazy:
        return self._logic(np.logical_not, a)

    def bitwise(self, operator: str, a: Lazy, b: Lazy) -> Lazy:
        return a._binary(b, _BITS[operator])

    def wrapping(self, function: Callable[..., Lazy], *x: Lazy) -> Lazy:
        return function(*x)

    def divide(self, a: Lazy, b: Lazy) -> Lazy:
        assert "float" in a.dtype
        return a._binary(b, np.divide)

    divide_rounded = divide

    def floordiv(self, a: Lazy, b: Any) -> Lazy:
        return self._whole(a, b, np.floor_divide)

    def floormod(self, a: Lazy, b: Any) -> Lazy:
        return self._whole(a, b, np.remainder)

    def truncdiv(self, a: Lazy, b: Any) -> Lazy:
        return self._whole(a, b, lambda x, y: type(x)(np.trunc(float(x) / float(y))))

    def maximum(self, a: Lazy, b: Lazy) -> Lazy:
        return a._binary(b, np.maximum)

    def minimum(self, a: Lazy, b: Lazy) -> Lazy:
        return a._binary(b, np.minimum)

    def divisor(self, value: Lazy) -> Lazy:
        def checked() -> Any:
            assert value.value() != 0
            return value.value()

        return Lazy(value.dtype, checked)

    def index(self, value: Lazy, size: int, wraps: bool = True) -> Lazy:
        assert value.dtype in ("int32", "int64")

        def wrap() -> Any:
            position = value.value()
            assert (-size if wraps else 0) <= position < size
            return position % size

        return Lazy(value.dtype, wrap)

    def _pair(self, a: Any, b: Any) -> tuple[Lazy, Lazy]:
        dtype = a.dtype if isinstance(a, Lazy) else b.dtype
        a, b = (item if isinstance(item, Lazy) else constant(item, dtype) for item in (a, b))
        assert a.dtype == b.dtype, f"{a.dtype} with {b.dtype}"
        return a, b

    def _logic(self, function: Callable[..., Any], *args: Lazy) -> Lazy:
        assert all(arg.dtype == "bool" for arg in args)
        return Lazy("bool", lambda: function(*(arg.value() for arg in args)))

    def _whole(self, a: Lazy, b: Any, function: Callable[[Any, Any], Any]) -> Lazy:
        def divide(x: Any, y: Any) -> Any:
            assert y != 0, "division by zero traps"
            assert not (y == -1 and x == np.iinfo(a.dtype).min), "the quotient overflows and traps"
            return function(x, y)

        assert "int" in a.dtype
        return a._binary(b, divide)


def _load(array: Array) -> Callable[..., Lazy]:
    def load(*index: Any) -> Lazy:
        def read() -> Any:
            position = tuple(int(i.value()) if isinstance(i, Lazy) else int(i) for i in index)
            assert len(position) == array.ndim
            inside = all(0 <= i < dim for i, dim in zip(position, array.shape, strict=True))
            assert inside, f"reads {position} of a tensor of shape {array.shape}"
            return array[position]

        return Lazy(str(array.dtype), read)

    return load


def compute(op: Op, arrays: Sequence[Array], most: int = 150) -> tuple[Array, Array]:
    """About `most` elements of the op's output, evenly spread: their flat positions, and their values."""
    types = [type_of(array) for array in arrays]
    (out,) = op.infer_types(types)
    shape = out.static_shape()
    size = math.prod(shape)
    positions = np.arange(0, size, size // most + 1)
    values = np.zeros(len(positions), numpy_dtype(out.dtype))
    for number, position in enumerate(positions):
        index = [constant(int(i), "int64") for i in np.unravel_index(position, shape)]
        element = _element(op, arrays, types, index)
        assert element.dtype == out.dtype, f"an element is {element.dtype}, the output {out.dtype}"
        values[number] = element.value()
    return positions, values


def _element(op: Op, arrays: Sequence[Array], types: Sequence[TensorType], index: Sequence[Lazy]) -> Lazy:
    s: Any = NumpyScalar()
    loads = [_load(array) for array in arrays]
    if isinstance(op, Elementwise):
        return op.scalar(s, *(_load_broadcast(array, index) for array in arrays))
    if isinstance(op, Injective):
        return op.element(s, loads, types, index)
    assert isinstance(op, Reduce)
    reduction = op.reduction(s, loads, types, index)
    state = reduction.init
    for position in np.ndindex(tuple(map(fixed_size, reduction.extents))):
        element = reduction.body([constant(i, "int64") for i in position])
        # Accumulators are evaluated as they would be stored: otherwise the expression grows with every step.
        state = tuple(constant(item.value(), item.dtype) for item in reduction.combine(state, element))
    return reduction.finish(state)


def _load_broadcast(array: Array, index: Sequence[Lazy]) -> Lazy:
    tail = index[len(index) - array.ndim :]
    return _load(array)(*(0 if dim == 1 else i for i, dim in zip(tail, array.shape, strict=True)))
