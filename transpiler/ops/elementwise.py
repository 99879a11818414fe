"""Arithmetic of two tensors of one dtype that broadcast. Importers promote."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from transpiler.ir import Array, Value
from transpiler.ops.base import Elementwise, Expr, ImportContext, Op, OpError, Sample, Scalar, aten
from transpiler.ops.dtypes import HALF, category, corner_pairs, draw, out_type
from transpiler.ops.logic import LogicalAnd, LogicalOr
from transpiler.ops.promotion import Number, aten_binary, in_dtype, operand, operands, rounded
from transpiler.ops.rounding import Trunc
from transpiler.ops.wide import wide_dtype


class Binary(Elementwise):
    """Base of the ops here. `categories` are the ones accepted: 0 bool, 1 integer, 2 float."""

    categories: ClassVar[tuple[int, ...]] = (1, 2)
    # The range that samples are drawn from.
    low: ClassVar[float] = -6.0
    high: ClassVar[float] = 7.0

    def result_dtype(self, *dtypes: str) -> str:
        dtype = super().result_dtype(*dtypes)
        if category(dtype) not in self.categories:
            raise OpError(f"{self.name} does not take {dtype}")
        return dtype

    @classmethod
    def _variants(cls) -> Iterator[tuple[str, Elementwise]]:
        """Each attribute setting with the prefix of its samples' ids."""
        yield "", cls()

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for prefix, op in cls._variants():
            if 2 in cls.categories:
                yield Sample(f"{prefix}same_shape", op, cls._pair("float32", (3, 17), (3, 17)))
                yield Sample(f"{prefix}broadcast", op, cls._pair("float32", (5, 1, 7), (3, 1)))
                yield Sample(f"{prefix}rank0", op, cls._pair("float32", (), (9,)))
                yield Sample(f"{prefix}empty", op, cls._pair("float32", (0, 3), (1, 3)))
                yield Sample(f"{prefix}corners", op, corner_pairs())
            if 1 in cls.categories:
                yield Sample(f"{prefix}int64", op, cls._pair("int64", (4, 13), (13,)), exact=True)
                yield Sample(f"{prefix}int32", op, cls._pair("int32", (65,), (65,)), exact=True)

    @classmethod
    def _pair(cls, dtype: str, left: tuple[int, ...], right: tuple[int, ...]) -> tuple[Array, Array]:
        return (
            draw(f"{cls.name} left", dtype, *left, low=cls.low, high=cls.high),
            draw(f"{cls.name} right", dtype, *right, low=cls.low, high=cls.high),
        )


class Add(Binary, name="add"):
    """a + b; integers wrap."""

    def reference(self, a: Array, b: Array) -> Array:
        return a + b

    def host(self, a: str, b: str) -> str:
        return f"({a} + {b})"

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.wrapping(operator.add, a, b)


class Sub(Binary, name="sub"):
    """a - b; integers wrap."""

    def reference(self, a: Array, b: Array) -> Array:
        return a - b

    def host(self, a: str, b: str) -> str:
        return f"({a} - {b})"

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.wrapping(operator.sub, a, b)


class Mul(Binary, name="mul"):
    """a * b; integers wrap."""

    def reference(self, a: Array, b: Array) -> Array:
        return a * b

    def host(self, a: str, b: str) -> str:
        return f"({a} * {b})"

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.wrapping(operator.mul, a, b)


class Div(Binary, name="div"):
    """a / b of floats; x / 0 is ±inf, 0 / 0 is NaN.

    `nearest`: the float nearest to the quotient, on devices too whose division gives a neighbour now and then; for
    quotients that are made ints of.
    """

    categories = (2,)
    unsaid = frozenset({"nearest"})
    nearest: bool = False

    def reference(self, a: Array, b: Array) -> Array:
        return a / b

    def host(self, a: str, b: str) -> str:
        return f"({a} / {b})"

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.divide_rounded(a, b) if self.nearest else s.divide(a, b)

    @classmethod
    def _variants(cls) -> Iterator[tuple[str, Elementwise]]:
        yield "", cls()
        yield "nearest_", cls(True)


def _safe_divisor(s: Scalar, b: Expr) -> Expr:
    """`b`, or 1 where an integer division could trap: 0, and -1 under the smallest integer."""
    dtype = s.dtype(b)
    one = s.const(1, dtype)
    nonzero = s.select(s.eq(b, s.const(0, dtype)), one, b)
    return nonzero if dtype == "uint8" else s.select(s.eq(b, s.const(-1, dtype)), one, nonzero)


class Divisor(Elementwise, name="divisor"):
    """Integers to divide by: they themselves, but a zero fails the call with a ZeroDivisionError."""

    checks_index = True

    def result_dtype(self, *dtypes: str) -> str:
        dtype = super().result_dtype(*dtypes)
        if category(dtype) != 1:
            raise OpError(f"divisor does not take {dtype}")
        return dtype

    def reference(self, x: Array) -> Array:
        if not np.all(x):
            raise ZeroDivisionError("an integer division by zero")
        return x

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return s.divisor(x)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for dtype in ("int64", "int32", "int8", "uint8"):
            x = draw(f"divisor {dtype}", dtype, 3, 17)
            yield Sample(dtype, cls(), (np.where(x == 0, x.dtype.type(3), x),), exact=True)


class DivRound(Binary, name="div_round"):
    """a / b rounded by `mode`: "floor" or "trunc".

    Integers: x / 0 is 0 (importers put a `Divisor` before, which fails the call). Floats: the exact quotient's floor as
    in Python, from `div_floor_floating` of c10/util/generic_math.h; x / 0 is x / 0.
    """

    mode: str

    def reference(self, a: Array, b: Array) -> Array:
        if category(str(a.dtype)) == 2:
            return np.trunc(a / b) if self.mode == "trunc" else _floor_quotient(a, b)
        if self.mode == "floor":
            return np.floor_divide(a, b)
        quotient = np.floor_divide(a, b)
        inexact = (quotient * b != a) & (b != 0)
        return np.where(inexact & (quotient < 0), quotient + 1, quotient).astype(a.dtype)

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        dtype = s.dtype(a)
        zero = s.const(0, dtype)
        if category(dtype) == 2:
            if self.mode == "trunc":
                return s.call("trunc", s.divide_rounded(a, b))
            ratio = s.divide(a, b)
            rest = s.call("fmod", a, b)
            crosses = s.logical_and(s.ne(rest, zero), s.ne(b < zero, rest < zero))
            quotient = s.divide_rounded(a - rest, b) - s.select(crosses, s.const(1, dtype), zero)
            # The quotient is whole up to rounding: the nearest integer is the floor.
            floored = s.call("floor", quotient)
            nudged = floored + s.select(quotient - floored > s.const(0.5, dtype), s.const(1, dtype), zero)
            whole = s.select(s.ne(quotient, zero), nudged, ratio * zero)
            return s.select(s.eq(b, zero), ratio, whole)
        divide = s.floordiv if self.mode == "floor" else s.truncdiv
        quotient = divide(a, _safe_divisor(s, b))
        if dtype != "uint8":
            quotient = s.select(s.eq(b, s.const(-1, dtype)), s.wrapping(operator.sub, zero, a), quotient)
        return s.select(s.eq(b, zero), zero, quotient)

    @classmethod
    def _variants(cls) -> Iterator[tuple[str, Elementwise]]:
        yield "floor_", cls("floor")
        yield "trunc_", cls("trunc")


def _floor_quotient(a: Array, b: Array) -> Array:
    rest = np.fmod(a, b)
    quotient = (a - rest) / b
    quotient = quotient - ((rest != 0) & ((b < 0) != (rest < 0))).astype(a.dtype)
    floored = np.floor(quotient)
    floored = floored + (quotient - floored > 0.5).astype(a.dtype)
    whole = np.where(quotient != 0, floored, (a / b) * a.dtype.type(0))
    return np.where(b == 0, a / b, whole).astype(a.dtype)


class Fmod(Binary, name="fmod"):
    """The remainder with the sign of `a` (C's); of integers by 0 it is 0."""

    def reference(self, a: Array, b: Array) -> Array:
        return np.fmod(a, b)

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        dtype = s.dtype(a)
        if category(dtype) == 2:
            return s.call("fmod", a, b)
        divisor = _safe_divisor(s, b)
        return a - s.truncdiv(a, divisor) * divisor


class Remainder(Binary, name="remainder"):
    """The remainder with the sign of `b` (Python's); of integers by 0 it is 0."""

    def reference(self, a: Array, b: Array) -> Array:
        if category(str(a.dtype)) != 2:
            return np.remainder(a, b)
        rest = np.fmod(a, b)
        return np.where((rest != 0) & ((b < 0) != (rest < 0)), rest + b, rest).astype(a.dtype)

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        dtype = s.dtype(a)
        if category(dtype) != 2:
            return s.floormod(a, _safe_divisor(s, b))
        zero = s.const(0, dtype)
        rest = s.call("fmod", a, b)
        crosses = s.logical_and(s.ne(rest, zero), s.ne(b < zero, rest < zero))
        return s.select(crosses, rest + b, rest)


class Maximum(Binary, name="maximum"):
    """The larger; NaN if either is NaN."""

    def reference(self, a: Array, b: Array) -> Array:
        return np.maximum(a, b)

    def host(self, a: str, b: str) -> str:
        return f"np.maximum({a}, {b})"

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.maximum(a, b)


class Minimum(Binary, name="minimum"):
    """The smaller; NaN if either is NaN."""

    def reference(self, a: Array, b: Array) -> Array:
        return np.minimum(a, b)

    def host(self, a: str, b: str) -> str:
        return f"np.minimum({a}, {b})"

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.minimum(a, b)


class Atan2(Binary, name="atan2"):
    """The angle of the point (b, a) in (-pi, pi]."""

    categories = (2,)

    def reference(self, a: Array, b: Array) -> Array:
        return np.arctan2(a, b)

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.call("atan2", a, b)


aten_binary(Atan2, "atan2.default", "arctan2.default")


def _plus(context: ImportContext, op: Op, a: Any, b: Any, alpha: Any) -> Any:
    """a + alpha * b or a - alpha * b. Half floats are rounded once, and `alpha` before that, as in vectors of
    aten/src/ATen/native/cpu/BinaryOpsKernel.cpp."""
    dtype = out_type(context).dtype
    if alpha == 1:
        return rounded(context, op, dtype, a, b)
    wide = wide_dtype(dtype)
    factor = operand(context, operand(context, alpha, dtype), wide)
    a, b = operands(context, operands(context, (a, b), dtype), wide)
    return context.cast(context.emit(op, a, context.emit(Mul(), b, factor)), dtype)


@aten("add.Tensor", "add.Scalar")
def _add(context: ImportContext, a: Any, b: Any, alpha: Any = 1) -> Any:
    dtype = out_type(context).dtype
    if dtype == "bool":
        a, b = operands(context, (a, b), dtype)
        return context.emit(LogicalOr(), a, b if alpha else context.emit(LogicalAnd(), b, context.scalar(False, dtype)))
    return _plus(context, Add(), a, b, alpha)


@aten("sub.Tensor", "sub.Scalar", "subtract.Tensor", "subtract.Scalar")
def _sub(context: ImportContext, a: Any, b: Any, alpha: Any = 1) -> Any:
    return _plus(context, Sub(), a, b, alpha)


@aten("rsub.Tensor", "rsub.Scalar")
def _rsub(context: ImportContext, a: Any, b: Any, alpha: Any = 1) -> Any:
    return _sub(context, b, a, alpha)


@aten("mul.Tensor", "mul.Scalar", "multiply.Tensor", "multiply.Scalar")
def _mul(context: ImportContext, a: Any, b: Any) -> Any:
    dtype = out_type(context).dtype
    if dtype == "bool":
        return context.emit(LogicalAnd(), *operands(context, (a, b), dtype))
    return in_dtype(context, Mul(), dtype, a, b)


@aten("div.Tensor", "div.Scalar", "true_divide.Tensor", "divide.Tensor", "divide.Scalar")
def _div(context: ImportContext, a: Any, b: Any) -> Any:
    return in_dtype(context, Div(), out_type(context).dtype, a, b)


def _by_divisor(context: ImportContext, op: Op, a: Any, b: Any, apply: Callable[..., Value] = in_dtype) -> Any:
    """`op(a, b)` in the result's dtype; of integers with a divisor that may be 0 it is checked."""
    dtype = out_type(context).dtype
    if category(dtype) == 1 and (isinstance(b, Value) or b == 0):
        b = context.emit(Divisor(), operand(context, b, dtype))
    return apply(context, op, dtype, a, b)


@aten("fmod.Tensor", "fmod.Scalar")
def _fmod(context: ImportContext, a: Any, b: Any) -> Any:
    return _by_divisor(context, Fmod(), a, b, rounded)


@aten("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
def _remainder(context: ImportContext, a: Any, b: Any) -> Any:
    return _by_divisor(context, Remainder(), a, b, rounded)


@aten("div.Tensor_mode", "div.Scalar_mode")
def _div_mode(context: ImportContext, a: Any, b: Any, rounding_mode: str | None = None) -> Any:
    dtype = out_type(context).dtype
    if dtype in HALF and rounding_mode == "trunc":  # PyTorch rounds the quotient before
        return context.emit(Trunc(), rounded(context, Div(True), dtype, a, b))
    if rounding_mode is None:
        return in_dtype(context, Div(), dtype, a, b)
    return _by_divisor(context, DivRound(rounding_mode), a, b)


@aten("floor_divide.default", "floor_divide.Scalar")
def _floor_divide(context: ImportContext, a: Any, b: Any) -> Any:
    return _by_divisor(context, DivRound("floor"), a, b)


@aten("maximum.default", "max.other")
def _maximum(context: ImportContext, a: Value, b: Value) -> Any:
    dtype = out_type(context).dtype
    return in_dtype(context, LogicalOr() if dtype == "bool" else Maximum(), dtype, a, b)


@aten("minimum.default", "min.other")
def _minimum(context: ImportContext, a: Value, b: Value) -> Any:
    dtype = out_type(context).dtype
    return in_dtype(context, LogicalAnd() if dtype == "bool" else Minimum(), dtype, a, b)


@aten("clamp.Tensor", "clamp_min.Tensor")
def _clamp_tensor(context: ImportContext, x: Value, min: Value | None = None, max: Value | None = None) -> Any:
    dtype = out_type(context).dtype
    larger, smaller = (LogicalOr(), LogicalAnd()) if dtype == "bool" else (Maximum(), Minimum())
    low = context.cast(x, dtype) if min is None else in_dtype(context, larger, dtype, x, min)
    return low if max is None else in_dtype(context, smaller, dtype, low, max)


@aten("clamp_max.Tensor")
def _clamp_max_tensor(context: ImportContext, x: Value, max: Value) -> Any:
    return _clamp_tensor(context, x, None, max)


@aten("lerp.Scalar", "lerp.Tensor")
def _lerp(context: ImportContext, start: Value, end: Value, weight: Value | float) -> Any:
    dtype = out_type(context).dtype
    wide = wide_dtype(dtype)
    start, end, factor = operands(context, (start, end, weight), wide)
    span = context.emit(Mul(), context.emit(Sub(), end, start), factor)
    return context.cast(context.emit(Add(), start, span), dtype)


def _with_product(context: ImportContext, op: Op, x: Value, a: Value, b: Value, value: Number) -> Any:
    """x + value * op(a, b), rounded once."""
    dtype = out_type(context).dtype
    wide = wide_dtype(dtype)
    x, a, b = operands(context, (x, a, b), wide)
    product = context.emit(op, a, b)
    if value != 1:
        product = context.emit(Mul(), product, operand(context, value, wide))
    return context.cast(context.emit(Add(), x, product), dtype)


@aten("addcmul.default")
def _addcmul(context: ImportContext, x: Value, a: Value, b: Value, value: Number = 1) -> Any:
    return _with_product(context, Mul(), x, a, b, value)


@aten("addcdiv.default")
def _addcdiv(context: ImportContext, x: Value, a: Value, b: Value, value: Number = 1) -> Any:
    return _with_product(context, Div(), x, a, b, value)


@aten("frac.default")
def _frac(context: ImportContext, x: Value) -> Any:
    return context.emit(Sub(), x, context.emit(Trunc(), x))
