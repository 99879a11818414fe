"""Powers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from transpiler.ir import Array, Value
from transpiler.ops.base import Expr, ImportContext, Scalar, aten
from transpiler.ops.compare import Eq, Where
from transpiler.ops.dtypes import category, out_type
from transpiler.ops.elementwise import Add, Binary, Mul
from transpiler.ops.elementwise_unary import Reciprocal, Rsqrt, Sqrt
from transpiler.ops.logic import LeftShift
from transpiler.ops.promotion import Number, in_dtype


class Pow(Binary, name="pow"):
    """a ** b of floats."""

    categories = (2,)
    cost = 25

    def reference(self, a: Array, b: Array) -> Array:
        return np.power(a, b)

    def host(self, a: str, b: str) -> str:
        return f"np.power({a}, {b})"

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.call("pow", a, b)


@aten("square.default")
def _square(context: ImportContext, x: Value) -> Any:
    return in_dtype(context, Mul(), out_type(context).dtype, x, x)


@aten("pow.Tensor_Tensor")
def _pow(context: ImportContext, a: Value, b: Value) -> Any:
    dtype = out_type(context).dtype
    if category(dtype) != 2:
        raise context.unsupported("an integer tensor to the power of an integer tensor; cast one of them to float")
    return in_dtype(context, Pow(), dtype, a, b)


@aten("pow.Scalar")
def _pow_base(context: ImportContext, base: Number, exponent: Value) -> Any:
    """Integer powers of two are shifts: 0 for a negative exponent and beyond the width, as wrapping gives."""
    dtype = out_type(context).dtype
    if category(dtype) == 2:
        return in_dtype(context, Pow(), dtype, base, exponent)
    if base == 1:
        return in_dtype(context, Add(), dtype, in_dtype(context, Mul(), dtype, exponent, 0), 1)
    if base != 2:
        raise context.unsupported(f"{base} to the power of an integer tensor; cast the exponent to float")
    return in_dtype(context, LeftShift(), dtype, 1, exponent)


@aten("pow.Tensor_Scalar")
def _pow_scalar(context: ImportContext, x: Value, exponent: Number) -> Any:
    """The exponents that PyTorch itself computes without pow (PowKernel.cpp), and integers by squaring."""
    dtype = out_type(context).dtype
    x = context.cast(x, dtype)
    if category(dtype) == 2:
        if exponent in (0.5, -0.5):
            if dtype == "float16":  # PyTorch calls C's pow, whose root of -inf is inf
                infinity = context.scalar(math.inf, dtype)
                lowest = context.emit(Eq(), x, context.scalar(-math.inf, dtype))
                x = context.emit(Where(), lowest, infinity, x)
            return context.emit(Sqrt() if exponent > 0 else Rsqrt(), x)
        if exponent in (-1, -2):
            return context.emit(Reciprocal(), x if exponent == -1 else context.emit(Mul(), x, x))
        if exponent not in (1, 2, 3):
            return in_dtype(context, Pow(), dtype, x, exponent)
    if not isinstance(exponent, int | float) or exponent < 0:
        raise context.unsupported("an integer tensor to a negative or symbolic power")
    result: Value | None = None
    factor, bits = x, int(exponent)
    while bits:
        if bits & 1:
            result = factor if result is None else context.emit(Mul(), result, factor)
        bits >>= 1
        factor = context.emit(Mul(), factor, factor) if bits else factor
    if result is None:
        return in_dtype(context, Add(), dtype, in_dtype(context, Mul(), dtype, x, 0), 1)
    return result
