"""The meaning of one element as TIR expressions.

`Tir` implements the `Scalar` protocol of `transpiler.ops.base`, so that an op's element-wise meaning can be placed
inside any loop nest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.ops.dtypes import HALF, category, numpy_dtype
from transpiler.ops.special_numpy import FUNCTIONS

from . import vector_math
from .sizes import extent, machine
from .tir import STATUS_DIVISION, STATUS_INDEX, Buffer, Expr, temporary

# Functions of float32 that are polynomials in vector_math.
VECTOR_FUNCTIONS = frozenset(vector_math.ULPS) | frozenset(vector_math.ABSOLUTE)

# What templates/runtime/cpu/special.h declares: functions of float64. libm has the error function itself.
SPECIAL = frozenset(FUNCTIONS) - {"erfc"}

# Wider ints in which +, - and * cannot overflow: TVM takes it that ints never do, PyTorch's wrap. LLVM narrows the
# arithmetic again, without that assumption.
WRAPPING = {"int32": "int64", "int64": "int128"}
# GPUs have no ints of 128 bits; what TVM takes for granted of ints it does not of unsigned ones. Smaller ints become
# int in CUDA's text, and stay that until they are stored.
UNSIGNED = {**dict.fromkeys(("int8", "uint8", "int16", "int32"), "uint32"), "int64": "uint64"}


class Tir:
    """The `Scalar` protocol on TIR expressions, scalar or vector.

    `statements` says whether the expression stands at statement level, where temporaries can be bound and an index
    checked; without it everything stays one expression. `on_index_error` is the kernel's status buffer.
    """

    def __init__(self, *, statements: bool = True, status: Buffer | None = None, lanes: int = 1) -> None:
        self.statements = statements
        self.status = status
        self.lanes = lanes

    # --- values
    def dtype(self, x: Expr) -> str:
        match x:
            case bool():
                return "bool"
            case int():
                return "int32"
            case float():
                return "float32"
            case _:
                dtype = str(x.ty.dtype).split("x")[0]
                return "bfloat16" if dtype == "uint16" else dtype

    def const(self, value: float | int | bool, dtype: str) -> Expr:
        if dtype in HALF:
            return _half_const(float(value), dtype)
        if dtype.startswith("float") and not math.isfinite(value):
            return self._nonfinite(float(value), dtype)
        return tirx.const(value, dtype)

    def _nonfinite(self, value: float, dtype: str) -> Expr:
        if math.isnan(value):
            bits = {"float32": 0x7FC00000, "float64": 0x7FF8000000000000}[dtype]
            return T.reinterpret(dtype, tirx.const(bits, dtype.replace("float", "uint")))
        infinity = T.infinity(dtype)
        return infinity if value > 0 else tirx.const(0.0, dtype) - infinity

    def size(self, value: Any) -> Expr:
        return tirx.const(value, "int32") if isinstance(value, int) else extent(value)

    def bind(self, x: Expr) -> Expr:
        """A temporary, so that an expression used often is computed (and printed) once.

        A one-element buffer rather than `T.bind`, whose pure values TVM's simplifier puts back wherever they are
        used: a GELU epilogue took minutes to lower. LLVM makes it a register.
        """
        if not self.statements or isinstance(x, int | float | tirx.IntImm | tirx.FloatImm):
            return x
        free = temporary(self.dtype(x))
        if free is None:
            return x
        buffer, place = free
        buffer.store(place, x)
        return buffer[place]

    def quiet(self) -> Tir:
        """The same without statements: for expressions that stand under a guard."""
        return Tir(statements=False, status=self.status, lanes=self.lanes) if self.statements else self

    def cast(self, x: Expr, dtype: str) -> Expr:
        source = self.dtype(x)
        if source == dtype:
            return x
        if source in HALF:
            return self.cast(self._widened(x, source), dtype)
        if isinstance(x, tirx.IntImm) and category(dtype) == 2:
            return self.const(float(x.value), dtype)
        if dtype == "bool":
            return self.ne(x, self._zero(source))
        if source == "bool":
            return self.select(x, self.const(1, dtype), self.const(0, dtype))
        if dtype in HALF:
            return self._narrowed(self.cast(x, "float32"), dtype)
        if source.startswith("float") and dtype in ("int8", "uint8", "int16"):
            # PyTorch converts through a wider int and wraps; a direct conversion is undefined beyond the range.
            # Vulkan: float32 beyond int32's range is a multiple of 256, and becomes one in our SPIR-V.
            wide = dtype == "uint8" and (machine().wide_ints or source == "float64")
            return self._convert(self._convert(x, "int64" if wide else "int32"), dtype)
        return self._convert(x, dtype)

    def _convert(self, x: Expr, dtype: str) -> Expr:
        """The machine's conversion."""
        return T.Cast(dtype, x)

    def _widened(self, x: Expr, dtype: str) -> Expr:
        """float32 of a half float: exact."""
        if isinstance(x, tirx.IntImm | tirx.FloatImm):
            return self.const(_half_value(x), "float32")
        if dtype == "float16":
            return self._convert(x, "float32") if machine().converts_float16 else self._widened_by_bits(x)
        return self.reinterpret(self.shift_left(self._convert(x, "uint32"), 16), "float32")

    def _widened_by_bits(self, x: Expr) -> Expr:
        """float32 of float16 without an instruction for it: the fields move into place, and a product by 2^112 corrects
        the exponent, of subnormal numbers too. Infinities and NaN keep the largest exponent.
        """
        bits = self.bind(self._convert(self.reinterpret(x, "uint16"), "uint32"))
        fields = self.bind(self.shift_left(T.bitwise_and(bits, self.const(0x7FFF, "uint32")), 13))
        scaled = self.reinterpret(self.reinterpret(fields, "float32") * self.const(2.0**112, "float32"), "uint32")
        largest = T.bitwise_or(fields, self.const(0x7F800000, "uint32"))
        is_finite = fields < self.const(0x7C00 << 13, "uint32")
        sign = self.shift_left(T.bitwise_and(bits, self.const(0x8000, "uint32")), 16)
        return self.reinterpret(T.bitwise_or(self.select(is_finite, scaled, largest), sign), "float32")

    def _narrowed(self, x: Expr, dtype: str) -> Expr:
        """A half float of float32, rounded to nearest, ties to even."""
        if isinstance(x, tirx.FloatImm):
            return self.const(x.value, dtype)
        if dtype == "float16":
            return self._convert(x, "float16")
        x = self.bind(x)
        bits = self.reinterpret(x, "uint32")
        high = self.shift_right(bits, 16)
        odd = T.bitwise_and(high, self.const(1, "uint32"))
        rounded = self.shift_right(bits + (odd + self.const(0x7FFF, "uint32")), 16)
        # The sum of a NaN may overflow into the sign, or round to an infinity.
        quiet = T.bitwise_or(high, self.const(0x40, "uint32"))
        return self._convert(self.select(self.is_nan(x), quiet, rounded), "uint16")

    def wrapping(self, function: Callable[..., Expr], *x: Expr) -> Expr:
        """`function` of int operands, made of + - * << alone, with results that wrap around as PyTorch's do."""
        dtype = self.dtype(x[0])
        wide = (UNSIGNED if machine().is_gpu else WRAPPING).get(dtype)
        if wide is None:
            return function(*x)
        return self._convert(function(*(self._convert(item, wide) for item in x)), dtype)

    def _zero(self, dtype: str) -> Expr:
        return tirx.const(0, dtype)

    def reinterpret(self, x: Expr, dtype: str) -> Expr:
        return T.reinterpret(dtype, x)

    # --- choices
    def select(self, condition: Expr, then: Expr, otherwise: Expr) -> Expr:
        return tirx.Select(opaque_comparison(condition), then, otherwise)

    def guarded(self, condition: Expr, then: Expr, otherwise: Expr) -> Expr:
        return T.if_then_else(condition, then, otherwise)

    def eq(self, a: Expr, b: Expr) -> Expr:
        return self.logical_not(self._differ(a, b)) if self.dtype(a) == "bool" else tirx.EQ(a, b)

    def ne(self, a: Expr, b: Expr) -> Expr:
        if self.dtype(a) == "bool":
            return self._differ(a, b)
        if self.dtype(a).startswith("float"):
            # The code generator's `!=` is ordered: false for NaN.
            return tirx.Or(tirx.NE(a, b), tirx.Or(self.is_nan(a), self.is_nan(b)))
        return tirx.NE(a, b)

    def is_nan(self, x: Expr) -> Expr:
        """By its bits: TVM simplifies `x != x` to false."""
        if isinstance(x, tirx.FloatImm):
            return tirx.const(False, "bool")
        bits = self.dtype(x).replace("float", "uint")
        mantissa = {"uint16": 10, "uint32": 23, "uint64": 52}[bits]
        width = int(bits[4:])
        magnitude = T.bitwise_and(self.reinterpret(x, bits), tirx.const((1 << (width - 1)) - 1, bits))
        return magnitude > tirx.const(((1 << (width - 1 - mantissa)) - 1) << mantissa, bits)

    def _differ(self, a: Expr, b: Expr) -> Expr:
        """Exclusive or of bools; the code generator compares them as floats."""
        return tirx.Or(tirx.And(a, tirx.Not(b)), tirx.And(tirx.Not(a), b))

    def logical_and(self, a: Expr, b: Expr) -> Expr:
        return tirx.And(opaque_comparison(a), opaque_comparison(b))

    def logical_or(self, a: Expr, b: Expr) -> Expr:
        return tirx.Or(opaque_comparison(a), opaque_comparison(b))

    def logical_not(self, a: Expr) -> Expr:
        return tirx.Not(opaque_comparison(a))

    def maximum(self, a: Expr, b: Expr) -> Expr:
        if not self.dtype(a).startswith("float"):
            return tirx.Max(a, b)
        a, b = self.bind(a), self.bind(b)
        # `a` if it is NaN; else `a > b ? a : b`, which is `b` if that is NaN.
        return self.select(self.logical_or(a > b, self.is_nan(a)), a, b)

    def minimum(self, a: Expr, b: Expr) -> Expr:
        if not self.dtype(a).startswith("float"):
            return tirx.Min(a, b)
        a, b = self.bind(a), self.bind(b)
        return self.select(self.logical_or(a < b, self.is_nan(a)), a, b)

    # --- arithmetic
    def divide(self, a: Expr, b: Expr) -> Expr:
        return tirx.Div(a, opaque_zero(b))

    def divide_rounded(self, a: Expr, b: Expr) -> Expr:
        if machine().rounds_division:
            return self.divide(a, b)
        return T.call_pure_extern(self.dtype(a), "quotient", a, b)

    def floordiv(self, a: Expr, b: Expr) -> Expr:
        return tirx.floordiv(a, b)

    def floormod(self, a: Expr, b: Expr) -> Expr:
        return tirx.floormod(a, b)

    def truncdiv(self, a: Expr, b: Expr) -> Expr:
        return T.truncdiv(a, b)

    def bitwise(self, operator: str, a: Expr, b: Expr) -> Expr:
        if self.dtype(a) == "bool":
            as_int = {"&": tirx.And, "|": tirx.Or, "^": self._differ}
            return as_int[operator](a, b)
        functions: dict[str, Callable[[Expr, Expr], Expr]] = {
            "&": T.bitwise_and, "|": T.bitwise_or, "^": T.bitwise_xor, "<<": T.shift_left, ">>": T.shift_right,
        }  # fmt: skip
        if operator == "<<" and machine().is_gpu:
            return self.wrapping(T.shift_left, a, b)
        return functions[operator](a, b)

    def shift_left(self, x: Expr, bits: int) -> Expr:
        return T.shift_left(x, tirx.const(bits, self.dtype(x)))

    def shift_right(self, x: Expr, bits: int) -> Expr:
        return T.shift_right(x, tirx.const(bits, self.dtype(x)))

    def magnitude(self, x: Expr) -> Expr:
        """|x| of a float32 by its sign bit."""
        return self.reinterpret(
            T.bitwise_and(self.reinterpret(x, "uint32"), tirx.const(0x7FFFFFFF, "uint32")), "float32"
        )

    def negative_magnitude(self, x: Expr) -> Expr:
        """-|x| of a float32."""
        return self.reinterpret(
            T.bitwise_or(self.reinterpret(x, "uint32"), tirx.const(0x80000000, "uint32")), "float32"
        )

    def copy_sign(self, magnitude: Expr, sign: Expr) -> Expr:
        """float32 `magnitude` (>= 0) with the sign bit of `sign`."""
        bit = T.bitwise_and(self.reinterpret(sign, "uint32"), tirx.const(0x80000000, "uint32"))
        return self.reinterpret(T.bitwise_or(self.reinterpret(magnitude, "uint32"), bit), "float32")

    # --- functions
    def call(self, function: str, *args: Expr) -> Expr:
        dtype = self.dtype(args[0])
        if dtype == "float32" and function in VECTOR_FUNCTIONS:
            return getattr(vector_math, function)(self, self.bind(args[0]))
        match function:
            case "normal_cdf":
                half, one, root = (self.const(value, dtype) for value in (0.5, 1.0, math.sqrt(0.5)))
                return half * (one + self.call("erf", args[0] * root))
            case "sigmoid":
                one = self.const(1.0, dtype)
                return one / (one + self.call("exp", self.const(0.0, dtype) - args[0]))
            case "rsqrt":
                return self.const(1.0, dtype) / T.sqrt(args[0])
            case "round":
                return T.nearbyint(args[0])
            case "isnan":
                return self.is_nan(args[0])
            case "isinf":
                return self.eq(T.abs(args[0]), T.infinity(dtype))
            case "pow" if isinstance(args[1], tirx.FloatImm):
                return self._power(args[0], args[1].value, dtype)
            case "sqrt" | "floor" | "ceil" | "trunc" | "abs" | "exp" | "exp2" | "log" | "log2" | "log10" | "pow" | \
                    "sin" | "cos":  # fmt: skip
                # LLVM has these for any width; those without an instruction become one libm call per lane.
                return getattr(T, function)(*args)
            case _ if function in SPECIAL:
                return T.call_pure_extern("float64", f"tp_math_{function}", *args)
            case _:
                name = function + {"float32": "f", "float64": ""}[dtype]
                return T.call_pure_extern(dtype, name, *args)

    def _power(self, x: Expr, exponent: float, dtype: str) -> Expr:
        """The exponents that PyTorch treats apart as well; anything else is libm's pow."""
        x = self.bind(x)
        exact: dict[float, Callable[[], Expr]] = {
            1.0: lambda: x,
            2.0: lambda: x * x,
            3.0: lambda: x * x * x,
            0.5: lambda: T.sqrt(x),
            -0.5: lambda: self.call("rsqrt", x),
            -1.0: lambda: self.const(1.0, dtype) / x,
            -2.0: lambda: self.const(1.0, dtype) / (x * x),
        }
        return exact[exponent]() if exponent in exact else T.pow(x, self.const(exponent, dtype))

    # --- data that may not fit
    def divisor(self, value: Expr) -> Expr:
        assert self.status is not None, "the kernel was not built with checks_index"
        zero, one = (self.const(number, self.dtype(value)) for number in (0, 1))
        value = self.bind(value)
        is_zero = self.eq(value, zero)
        if self.statements:
            with T.If(is_zero), T.Then():
                self.status.store(0, tirx.const(STATUS_DIVISION, "int32"))
        return self.select(is_zero, one, value)

    def index(self, value: Expr, size: Any, wraps: bool = True) -> Expr:
        assert self.status is not None, "the kernel was not built with checks_index"
        # In the index's own dtype: devices without int64 have models whose indices are int32.
        dtype = self.dtype(value)
        zero = tirx.const(0, dtype)
        limit = tirx.const(size, dtype) if isinstance(size, int) else self.cast(extent(size), dtype)
        value = self.bind(value)
        wrapped = value
        if wraps:
            wrapped = self.bind(self.select(value < zero, value + limit, value))
        valid = self.logical_and(wrapped >= zero, wrapped < limit)
        if self.statements:
            with T.If(self.logical_not(valid)), T.Then():
                self.status.store(0, tirx.const(STATUS_INDEX, "int32"))
        return self.cast(self.select(valid, wrapped, zero), "int32")


def _half_const(value: float, dtype: str) -> Expr:
    """The literal, rounded here: TVM folds a cast of a literal without rounding it."""
    with np.errstate(over="ignore"):
        rounded = np.array(value, np.float32).astype(numpy_dtype(dtype))
    if dtype == "bfloat16":
        return tirx.const(int(rounded.view(np.uint16)), "uint16")
    if math.isfinite(rounded):
        return tirx.const(float(rounded), "float16")
    return T.reinterpret("float16", tirx.const(int(rounded.view(np.uint16)), "uint16"))


def _half_value(x: tirx.IntImm | tirx.FloatImm) -> float:
    if isinstance(x, tirx.FloatImm):
        return float(x.value)
    return float(np.array(x.value, np.uint16).view(numpy_dtype("bfloat16")))


def opaque_comparison(x: Expr) -> Expr:
    """A comparison of floats as the bool of a chosen int8, which TVM does not reason about.

    It takes `not (a < b)`, and what is left where `a < b` does not hold, for `a >= b`, and `a < b or a >= b` for true:
    all wrong for NaN.
    """
    if isinstance(x, tirx.LT | tirx.LE | tirx.GT | tirx.GE | tirx.EQ) and str(x.a.ty.dtype) in ("float32", "float64"):
        # Not a cast: the analysis of a variable that holds one (common subexpressions do) fails on vectors.
        return tirx.NE(tirx.Select(x, tirx.const(1, "int8"), tirx.const(0, "int8")), tirx.const(0, "int8"))
    return x


def opaque_zero(x: Expr) -> Expr:
    """A literal float zero in a form that TVM does not fold: it takes `x * 0` for 0 and refuses `x / 0`."""
    if isinstance(x, tirx.FloatImm) and x.value == 0:
        dtype = str(x.ty.dtype)
        bits = dtype.replace("float", "uint")
        # The code generator takes reinterpret(0) for a null pointer, so +0 is -0 times -1.
        negative_zero = T.reinterpret(dtype, tirx.const(1 << (int(bits[4:]) - 1), bits))
        return negative_zero if math.copysign(1.0, x.value) < 0 else negative_zero * tirx.const(-1.0, dtype)
    return x
