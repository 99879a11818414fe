"""Functions of float32 that work on exponents and bits."""

from __future__ import annotations

import math

from .arithmetic import Arithmetic, Value
from .dtypes import FLOAT32, INT32, UINT32
from .opcodes import Glsl


def hypot(s: Arithmetic, x: Value, y: Value) -> Value:
    """m sqrt(1 + (n / m)^2) with the larger of the magnitudes outside; an infinity wins over NaN."""
    a, b = s.magnitude(x), s.magnitude(y)
    large, small = s.maximum(a, b), s.minimum(a, b)
    zero, one = s.const(0.0, FLOAT32), s.const(1.0, FLOAT32)
    empty = s.compare("eq", large, zero)
    ratio = s.divide(small, s.select(empty, one, large))
    result = s.mul(large, s.glsl(Glsl.SQRT, FLOAT32, s.plain_add(one, s.mul(ratio, ratio))))
    result = s.select(empty, zero, result)
    result = s.select(s.logical_or(s.is_nan(x), s.is_nan(y)), s.const(math.nan, FLOAT32), result)
    infinite = s.logical_or(s.is_infinite(x), s.is_infinite(y))
    return s.select(infinite, s.const(math.inf, FLOAT32), result)


def logb(s: Arithmetic, x: Value) -> Value:
    """The exponent, of denormal numbers too; -inf of 0, inf of infinities."""
    bits = s.bitwise("and", s.reinterpret(x, UINT32), s.const(0x7FFFFFFF, UINT32))
    exponent = s.cast(s.shift_right(bits, 23), INT32) - s.const(127, INT32)
    top = s.cast(s.glsl(Glsl.FIND_U_MSB, UINT32, s.bitwise("or", bits, s.const(1, UINT32))), INT32)
    denormal = s.compare("lt", bits, s.const(0x800000, UINT32))
    finite = s.cast(s.select(denormal, top - s.const(149, INT32), exponent), FLOAT32)
    result = s.select(s.compare("eq", bits, s.const(0, UINT32)), s.const(-math.inf, FLOAT32), finite)
    result = s.select(s.is_infinite(x), s.const(math.inf, FLOAT32), result)
    return s.select(s.is_nan(x), x, result)


def nextafter(s: Arithmetic, x: Value, y: Value) -> Value:
    """The neighbour of x towards y: one more or less in the bits."""
    bits, one = s.reinterpret(x, UINT32), s.const(1, UINT32)
    larger = s.compare("eq", y > x, x > s.const(0.0, FLOAT32))
    moved = s.reinterpret(s.select(larger, bits + one, bits - one), FLOAT32)
    from_zero = s.copy_sign(s.reinterpret(one, FLOAT32), y)
    nothing = s.compare("eq", s.bitwise("and", bits, s.const(0x7FFFFFFF, UINT32)), s.const(0, UINT32))
    other = s.reinterpret(y, UINT32)
    zeros = s.compare("eq", s.bitwise("and", other, s.const(0x7FFFFFFF, UINT32)), s.const(0, UINT32))
    equal = s.logical_or(s.compare("eq", bits, other), s.logical_and(nothing, zeros))
    result = s.select(equal, y, s.select(nothing, from_zero, moved))
    return s.select(s.logical_or(s.is_nan(x), s.is_nan(y)), s.const(math.nan, FLOAT32), result)
