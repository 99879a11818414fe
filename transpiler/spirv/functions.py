"""Mathematical functions by the names that TIR calls them.

What Vulkan promises of GLSL's own `exp`, `sin` or `pow` is far less than a float's digits (`sin` has an absolute
error of 2^-11), so they are written out here. Errors in units of the last place, measured against float64 over the
whole range by tests/vulkan/test_functions.py, on a device that rounds +, -, *, / and sqrt correctly; Vulkan allows
2.5 units for a division, and a device that flushes denormal numbers gives 0 for them.

float16 is computed in float32 and rounded once. float64 has what `DOUBLE` lists and what `c_functions` has, computed in
float64; the others are refused rather than computed in fewer digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from transpiler.schedule import import_schedule

from . import bits, c_functions, division, doubles, logarithm, trigonometry
from .arithmetic import Arithmetic, Value
from .control import loop
from .dtypes import FLOAT16, FLOAT32, FLOAT64, UINT32, unsupported
from .opcodes import Glsl

Function = Callable[..., Value]

# Largest errors of float32, in units of the last place.
ULPS: dict[str, float] = {
    "exp": 1.5, "exp2": 1.5, "exp10": 1.5, "expm1": 2, "log": 1, "log2": 1, "log10": 1, "log1p": 2, "sqrt": 1,
    "rsqrt": 2, "sigmoid": 3, "tanh": 2, "erf": 3, "sin": 3, "cos": 3, "tan": 5, "asin": 3, "acos": 3, "atan": 3,
    "sinh": 4, "cosh": 4, "asinh": 3, "acosh": 3, "atanh": 3, "pow": 3, "atan2": 3, "fmod": 0,
    "hypot": 2, "logb": 0, "quotient": 0.5,
}  # fmt: skip


def polynomial(name: str) -> Function:
    """The function of the CPU target: the same coefficients, written as SPIR-V."""

    def call(s: Arithmetic, x: Value) -> Value:
        module: Any = import_schedule("vector_math")
        result: Value = getattr(module, name)(s, x)
        # Its clipping lets NaN through; a compiler that reorders comparisons may not.
        return s.select(s.is_nan(x), x, result)

    return call


def expm1(s: Arithmetic, x: Value) -> Value:
    """2^n (e^r - 1) + (2^n - 1), as in exp."""
    tables: Any = import_schedule("vector_math")
    one = s.const(1.0, FLOAT32)
    clipped = s.minimum(s.maximum(x, s.const(-18.0, FLOAT32)), s.const(88.0, FLOAT32))
    n = s.glsl(Glsl.ROUND_EVEN, FLOAT32, s.mul(clipped, s.const(tables.LOG2_E, FLOAT32)))
    r = s.sub(s.sub(clipped, s.mul(n, s.const(tables.LN2_HIGH, FLOAT32))), s.mul(n, s.const(tables.LN2_LOW, FLOAT32)))
    rest = s.mul(logarithm.horner(s, tables.EXP, r), s.mul(r, r)) + r
    # Half the power, so that 2^128 is not needed.
    half = logarithm.power_of_two(s, s.cast(n, "int32") - s.const(1, "int32"))
    inside = s.mul(s.plain_add(s.mul(half, rest), s.sub(half, s.const(0.5, FLOAT32))), s.const(2.0, FLOAT32))
    tiny = s.magnitude(x) < s.const(2.0**-25, FLOAT32)
    inside = s.select(tiny, x, inside)
    large = x > s.const(88.0, FLOAT32)
    return s.select(s.is_nan(x), x, s.select(large, s.sub(polynomial("exp")(s, x), one), inside))


def _root_of_exp(s: Arithmetic, x: Value) -> tuple[Value, Value]:
    """e^|x| as two factors, as e^|x| / 2 may be finite where e^|x| is not."""
    half = polynomial("exp")(s, s.mul(s.magnitude(x), s.const(0.5, FLOAT32)))
    return half, half


def sinh(s: Arithmetic, x: Value) -> Value:
    half, one = s.const(0.5, FLOAT32), s.const(1.0, FLOAT32)
    magnitude = s.magnitude(x)
    t = expm1(s, magnitude)
    small = s.mul(half, s.plain_add(t, s.divide(t, s.plain_add(t, one))))
    a, b = _root_of_exp(s, x)
    large = s.mul(s.mul(half, a), b)
    return s.copy_sign(s.select(magnitude > s.const(20.0, FLOAT32), large, small), x)


def cosh(s: Arithmetic, x: Value) -> Value:
    half = s.const(0.5, FLOAT32)
    e = polynomial("exp")(s, s.minimum(s.magnitude(x), s.const(80.0, FLOAT32)))
    small = s.plain_add(s.mul(half, e), s.divide(half, e))
    a, b = _root_of_exp(s, x)
    large = s.magnitude(x) > s.const(20.0, FLOAT32)
    return s.select(s.is_nan(x), x, s.select(large, s.mul(s.mul(half, a), b), small))


def asinh(s: Arithmetic, x: Value) -> Value:
    """log1p(a + a^2 / (1 + sqrt(1 + a^2))), for large a log(a) + log 2."""
    one = s.const(1.0, FLOAT32)
    a = s.magnitude(x)
    square = s.mul(a, a)
    root = s.glsl(Glsl.SQRT, FLOAT32, s.plain_add(one, square))
    small = logarithm.log1p(s, s.plain_add(a, s.divide(square, s.plain_add(one, root))))
    large = s.plain_add(logarithm.log(s, a), s.const(math.log(2), FLOAT32))
    result = s.select(a > s.const(2.0**30, FLOAT32), large, small)
    return s.copy_sign(result, x)


def acosh(s: Arithmetic, x: Value) -> Value:
    one = s.const(1.0, FLOAT32)
    t = s.sub(x, one)
    root = s.glsl(Glsl.SQRT, FLOAT32, s.maximum(s.mul(t, s.plain_add(t, s.const(2.0, FLOAT32))), s.const(0.0, FLOAT32)))
    small = logarithm.log1p(s, s.plain_add(t, root))
    large = s.plain_add(logarithm.log(s, x), s.const(math.log(2), FLOAT32))
    result = s.select(x > s.const(2.0**30, FLOAT32), large, small)
    return s.select(x >= one, result, s.const(math.nan, FLOAT32))


def atanh(s: Arithmetic, x: Value) -> Value:
    a = s.magnitude(x)
    one, two, half = (s.const(value, FLOAT32) for value in (1.0, 2.0, 0.5))
    inside = s.mul(half, logarithm.log1p(s, s.divide(s.mul(two, a), s.sub(one, a))))
    at_one = s.compare("eq", a, one)
    result = s.select(at_one, s.const(math.inf, FLOAT32), s.select(a < one, inside, s.const(math.nan, FLOAT32)))
    return s.select(s.is_nan(x), x, s.copy_sign(result, x))


def rsqrt(s: Arithmetic, x: Value) -> Value:
    return s.divide(s.const(1.0, x.dtype), sqrt(s, x))


def sqrt(s: Arithmetic, x: Value) -> Value:
    negative = x < s.const(0.0, x.dtype)
    return s.select(negative, s.const(math.nan, x.dtype), s.glsl(Glsl.SQRT, x.dtype, x))


def _whole(instruction: Glsl) -> Function:
    def call(s: Arithmetic, x: Value) -> Value:
        return x if x.dtype.is_int else s.glsl(instruction, x.dtype, x)

    return call


def round_away(s: Arithmetic, x: Value) -> Value:
    """Ties away from zero, C's `round`."""
    whole = s.glsl(Glsl.TRUNC, x.dtype, x)
    rest = s.magnitude(s.sub(x, whole))
    away = s.plain_add(whole, s.copy_sign(s.const(1.0, x.dtype), x))
    return s.select(rest >= s.const(0.5, x.dtype), away, whole)


def absolute(s: Arithmetic, x: Value) -> Value:
    if x.dtype.is_float:
        return s.magnitude(x)
    return s.maximum(x, s.negate(x)) if x.dtype.kind == "int" else x


def is_finite(s: Arithmetic, x: Value) -> Value:
    return s.logical_not(s.logical_or(s.is_nan(x), s.is_infinite(x)))


def fmod(s: Arithmetic, x: Value, y: Value) -> Value:
    """x - y trunc(x / y), exactly: the long division of the mantissas, bit by bit."""
    zero_bits, one_bit = s.const(0, UINT32), s.const(1, UINT32)
    a, b = (s.reinterpret(s.magnitude(value), UINT32) for value in (x, y))
    infinity = s.const(0x7F800000, UINT32)

    def parts(bits: Value) -> tuple[Value, Value]:
        """Exponent and mantissa, of denormal numbers too."""
        exponent = s.shift_right(bits, 23)
        fraction = s.bitwise("and", bits, s.const(0x7FFFFF, UINT32))
        normal = s.compare("ne", exponent, zero_bits)
        implied = s.select(normal, s.const(0x800000, UINT32), zero_bits)
        return s.select(normal, exponent, one_bit), s.bitwise("or", fraction, implied)

    (ea, ma), (eb, mb) = parts(a), parts(b)
    mb = s.select(s.compare("eq", mb, zero_bits), one_bit, mb)
    steps = s.select(s.compare("gt", ea, eb), ea - eb, zero_bits)

    def reduced(value: Value) -> Value:
        return s.select(s.compare("ge", value, mb), value - mb, value)

    (rest,) = loop(s, steps, [s.remainder(ma, mb)], lambda _, state: [reduced(s.shift_left(state[0], 1))], most=254)
    # rest * 2^(eb - 150), exactly: its bits moved up to the implied one.
    top = s.glsl(Glsl.FIND_U_MSB, UINT32, s.bitwise("or", rest, one_bit))
    room = s.const(23, UINT32) - top
    shift = s.select(s.compare("lt", room, eb), room, eb - one_bit)
    moved = s.shift_left(rest, shift)
    normal = s.compare("ge", moved, s.const(0x800000, UINT32))
    exponent = s.select(normal, s.shift_left(eb - shift, 23), zero_bits)
    bits = s.bitwise("or", exponent, s.bitwise("and", moved, s.const(0x7FFFFF, UINT32)))
    inside = s.select(s.compare("lt", a, b), s.magnitude(x), s.reinterpret(bits, FLOAT32))
    undefined = s.logical_or(s.compare("ge", a, infinity), s.compare("eq", b, zero_bits))
    undefined = s.logical_or(undefined, s.is_nan(y))
    return s.select(undefined, s.const(math.nan, FLOAT32), s.copy_sign(inside, x))


SINGLE: dict[str, Function] = {
    "exp": polynomial("exp"), "tanh": polynomial("tanh"), "sigmoid": polynomial("sigmoid"), "erf": polynomial("erf"),
    "exp2": logarithm.exp2, "exp10": logarithm.exp10, "expm1": expm1, "log": logarithm.log, "log2": logarithm.log2,
    "log10": logarithm.log10, "log1p": logarithm.log1p, "pow": logarithm.power, "sin": trigonometry.sin,
    "cos": trigonometry.cos, "tan": trigonometry.tan, "asin": trigonometry.asin, "acos": trigonometry.acos,
    "atan": trigonometry.atan, "atan2": trigonometry.atan2, "sinh": sinh, "cosh": cosh, "asinh": asinh,
    "acosh": acosh, "atanh": atanh, "fmod": fmod, "hypot": bits.hypot, "logb": bits.logb, "nextafter": bits.nextafter,
    "quotient": division.quotient,
}  # fmt: skip
DOUBLE: dict[str, Function] = {
    "exp": doubles.exp, "log": doubles.log, "sigmoid": doubles.sigmoid, "quotient": division.quotient,
}  # fmt: skip
# Of any dtype; floats exactly (sqrt and rsqrt as exactly as the device divides).
ANY: dict[str, Function] = {
    "sqrt": sqrt, "rsqrt": rsqrt, "floor": _whole(Glsl.FLOOR), "ceil": _whole(Glsl.CEIL), "trunc": _whole(Glsl.TRUNC),
    "round": round_away, "nearbyint": _whole(Glsl.ROUND_EVEN), "rint": _whole(Glsl.ROUND_EVEN), "fabs": absolute,
    "abs": absolute, "copysign": Arithmetic.copy_sign, "fma": Arithmetic.fma, "fmax": Arithmetic.maximum,
    "fmin": Arithmetic.minimum, "isnan": Arithmetic.is_nan, "isinf": Arithmetic.is_infinite, "isfinite": is_finite,
}  # fmt: skip


def known(name: str) -> str | None:
    """The function that `name` means: C's names of float32 end in f, LLVM's intrinsics of TIR have none."""
    for candidate in (name, name.removesuffix("f")):
        if candidate in ANY or candidate in SINGLE:
            return candidate
    return name if c_functions.defines(name) else None


def call(s: Arithmetic, name: str, *args: Value) -> Value:
    """Raises:
    TranspileError: there is no such function, or not of this dtype.
    """
    function = known(name)
    if function is None:
        raise unsupported(f"the function {name}", hint=f"functions: {', '.join(sorted(ANY | SINGLE))}")
    dtype = args[0].dtype
    if function not in SINGLE and function not in ANY:
        return c_functions.call(s, function, *args)
    if function in ANY and not (dtype == FLOAT16 and function in ("sqrt", "rsqrt")):
        if function in ("sqrt", "rsqrt") and not dtype.is_float:
            raise unsupported(f"{function} of {dtype}")
        return ANY[function](s, *args)
    if dtype == FLOAT16:
        return s.cast(call(s, function, *(s.cast(x, FLOAT32) for x in args)), FLOAT16)
    table = {FLOAT32: SINGLE, FLOAT64: DOUBLE}.get(dtype, {})
    if dtype == FLOAT64 and function not in table and c_functions.defines(function):
        return c_functions.call(s, function, *args)
    if function not in table:
        known_ones = ", ".join(sorted({*DOUBLE, *c_functions.OF_FLOAT64})) if dtype == FLOAT64 else "floats"
        raise unsupported(f"{function} of {dtype}", hint=f"of {dtype} there are: {known_ones}")
    return table[function](s, *args)
