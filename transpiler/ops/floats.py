"""Parts and neighbours of floats: signs, exponents, maxima that ignore NaN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from transpiler.ir import Array, Value
from transpiler.ops.base import Expr, ImportContext, Op, Scalar, aten
from transpiler.ops.compare import Eq, IsFinite, IsNan, Lt, Where
from transpiler.ops.dtypes import HALF, category, out_type
from transpiler.ops.elementwise import Add, Binary, Div, Maximum, Minimum, Mul, Sub
from transpiler.ops.elementwise_unary import Exp2, Unary
from transpiler.ops.logic import LogicalAnd, LogicalNot, LogicalOr
from transpiler.ops.promotion import Number, aten_binary, operand, operands
from transpiler.ops.rounding import Floor, Round


class CopySign(Binary, name="copysign"):
    """|a| with the sign of b; zeros and NaN have one too."""

    categories = (2,)

    def reference(self, a: Array, b: Array) -> Array:
        return np.copysign(a, b)

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.call("copysign", a, b)


class NextAfter(Binary, name="nextafter"):
    """The float next to a on the way to b."""

    categories = (2,)

    def reference(self, a: Array, b: Array) -> Array:
        return np.nextafter(a, b)

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.call("nextafter", a, b)


class Hypot(Binary, name="hypot"):
    """sqrt(a*a + b*b) without overflow."""

    categories = (2,)

    def reference(self, a: Array, b: Array) -> Array:
        return np.hypot(a, b)

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.call("hypot", a, b)


class LogB(Unary, name="logb"):
    """The exponent of x as a float: floor(log2(|x|)), exactly; -inf for 0, inf for infinities."""

    def reference(self, x: Array) -> Array:
        exponent = (np.frexp(x)[1] - 1).astype(x.dtype)
        exponent = np.where(x == 0, x.dtype.type(-np.inf), exponent)
        return np.asarray(np.where(np.isfinite(x), exponent, np.abs(x)))

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return s.call("logb", x)


aten_binary(Hypot, "hypot.default")


@aten("copysign.Tensor", "copysign.Scalar")
def _copysign(context: ImportContext, a: Value, b: Value | Number) -> Any:
    out = out_type(context).dtype
    work = "float32" if out in HALF else out
    return context.cast(context.emit(CopySign(), *operands(context, (a, b), work)), out)


@aten("nextafter.default")
def _nextafter(context: ImportContext, a: Value, b: Value) -> Any:
    dtype = out_type(context).dtype
    if dtype in HALF:
        raise context.unsupported(f"nextafter of {dtype}")
    return context.emit(NextAfter(), *operands(context, (a, b), dtype))


@aten("signbit.default")
def _signbit(context: ImportContext, x: Value) -> Any:
    if x.dtype == "bool":
        x = context.cast(x, "int32")
    if category(x.dtype) == 2:
        x = context.cast(x, "float32" if x.dtype in HALF else x.dtype)
        x = context.emit(CopySign(), context.scalar(1.0, x.dtype), x)
    return context.emit(Lt(), x, context.scalar(0, x.dtype))


@aten("round.decimals")
def _round_decimals(context: ImportContext, x: Value, decimals: int = 0) -> Any:
    """To multiples of 10^-decimals; a positive power is multiplied with, a negative one divided by, as PyTorch does."""
    if category(x.dtype) != 2:
        return x
    dtype = x.dtype
    x = context.cast(x, "float32" if dtype in HALF else dtype)
    ten = context.scalar(10.0 ** abs(decimals), x.dtype)
    there: Op = Mul() if decimals > 0 else Div(True)
    back: Op = Div() if decimals > 0 else Mul()
    if decimals == 0:
        return context.cast(context.emit(Round(), x), dtype)
    return context.cast(context.emit(back, context.emit(Round(), context.emit(there, x, ten)), ten), dtype)


def _ignoring_nan(op: type[Maximum] | type[Minimum], overload: str) -> None:
    def convert(context: ImportContext, a: Value, b: Value) -> Any:
        dtype = out_type(context).dtype
        a, b = operands(context, (a, b), dtype)
        if dtype == "bool":
            return context.emit(LogicalOr() if op is Maximum else LogicalAnd(), a, b)
        if category(dtype) != 2:
            return context.emit(op(), a, b)
        # Of zeros of different sign C's function gives the first, the operator and bfloat16's the second.
        result = context.emit(op(), a, b) if dtype == "bfloat16" else context.emit(op(), b, a)
        result = context.emit(Where(), context.emit(IsNan(), b), a, result)
        return context.emit(Where(), context.emit(IsNan(), a), b, result)

    aten(overload)(convert)


_ignoring_nan(Maximum, "fmax.default")
_ignoring_nan(Minimum, "fmin.default")


@aten("frexp.Tensor")
def _frexp(context: ImportContext, x: Value) -> Any:
    """x = mantissa * 2^exponent, |mantissa| in [0.5, 1); 0, NaN and infinities have exponent 0."""
    dtype = x.dtype
    x = context.cast(x, "float32" if dtype in HALF else dtype)
    zero, one = context.scalar(0.0, x.dtype), context.scalar(1.0, x.dtype)
    is_zero = context.emit(Eq(), x, zero)
    usual = context.emit(LogicalAnd(), context.emit(IsFinite(), x), context.emit(LogicalNot(), is_zero))
    exponent = context.emit(Add(), context.emit(LogB(), context.emit(Where(), usual, x, one)), one)
    exponent = context.emit(Where(), usual, exponent, zero)
    # In two steps: 2^-exponent alone may overflow.
    half = context.emit(Floor(), context.emit(Mul(), exponent, context.scalar(0.5, x.dtype)))
    for part in (half, context.emit(Sub(), exponent, half)):
        x = context.emit(Mul(), x, context.emit(Exp2(), context.emit(Sub(), zero, part)))
    return context.cast(x, dtype), context.cast(exponent, "int32")


@aten("angle.default")
def _angle(context: ImportContext, x: Value) -> Any:
    """pi for negative reals, 0 for others."""
    dtype = out_type(context).dtype
    value = operand(context, x, dtype)
    zero, pi = context.scalar(0.0, dtype), context.scalar(math.pi, dtype)
    result = context.emit(Where(), context.emit(Lt(), value, zero), pi, zero)
    return context.emit(Where(), context.emit(IsNan(), value), value, result)
