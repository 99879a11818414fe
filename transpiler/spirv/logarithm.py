"""Logarithms and powers of float32, in pairs of floats where one float is too few digits.

With x = 2^e m, m in [sqrt(1/2), sqrt 2), and s = (m - 1) / (m + 1): log m = 2 atanh s = 2 s + 2 s^3/3 + 2 s^5/5 + ...
s^2 is below 0.0295, so the series is cut after s^9 (the next term is below 2^-32 of the sum). s is a pair: the
quotient and its error, computed from an exact remainder. Products of pairs are split by T. J. Dekker (Numer. Math.
18, 1971), which needs roundings to happen where they are written: `plain_add` and the module's NoContraction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from transpiler.schedule import import_schedule

from .arithmetic import Arithmetic, Value
from .dtypes import FLOAT32, INT32, UINT32
from .opcodes import Glsl

LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440054690583e-4  # the high part times an exponent is exact
ATANH_TAIL = (2 / 3, 2 / 5, 2 / 7, 2 / 9)
SMALLEST_NORMAL = 2.0**-126
# Minimax 2^r on [-1/2, 1/2] is in schedules.vector_math (EXP2).

Pair = tuple[Value, Value]  # the sum of both; the second is a rounding error of the first


def horner(s: Arithmetic, coefficients: Sequence[float], x: Value) -> Value:
    """c[0] + x (c[1] + x (...))"""
    result = s.const(coefficients[-1], x.dtype)
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + s.const(coefficient, x.dtype)
    return result


def two_sum(s: Arithmetic, big: Value, small: Value) -> Pair:
    """big + small and its error, where |big| >= |small| or big is 0."""
    total = s.plain_add(big, small)
    return total, s.sub(small, s.sub(total, big))


def _split(s: Arithmetic, x: Value) -> Pair:
    """12 bits and the 12 that are left."""
    high = s.reinterpret(s.bitwise("and", s.reinterpret(x, UINT32), s.const(0xFFFFF000, UINT32)), FLOAT32)
    return high, s.sub(x, high)


def two_product(s: Arithmetic, x: Value, y: Value) -> Pair:
    """x y and its error."""
    product = s.mul(x, y)
    (xh, xl), (yh, yl) = _split(s, x), _split(s, y)
    error = s.sub(s.mul(xh, yh), product)
    for left, right in ((xh, yl), (xl, yh), (xl, yl)):
        error = s.plain_add(error, s.mul(left, right))
    return product, error


def constant_pair(s: Arithmetic, value: float) -> Pair:
    high = float(np.float32(value))
    return s.const(high, FLOAT32), s.const(value - high, FLOAT32)


def log_parts(s: Arithmetic, x: Value) -> tuple[Value, Pair]:
    """e (float32) and log m as a pair, for positive finite x."""
    tiny = x < s.const(SMALLEST_NORMAL, FLOAT32)
    x = s.select(tiny, s.mul(x, s.const(2.0**24, FLOAT32)), x)
    bits = s.reinterpret(x, INT32)
    # Counted from sqrt(1/2), so that the exponent of what is left is 0 from there on.
    root_half = 0x3F3504F3
    from_root = bits - s.const(root_half, INT32)
    e = s.shift_right(from_root, 23)
    mantissa = s.bitwise("and", from_root, s.const(0x7FFFFF, INT32)) + s.const(root_half, INT32)
    m = s.reinterpret(mantissa, FLOAT32)
    exponent = s.cast(e, FLOAT32)
    exponent = s.select(tiny, s.sub(exponent, s.const(24.0, FLOAT32)), exponent)
    one = s.const(1.0, FLOAT32)
    f = s.sub(m, one)  # exact
    sum_, sum_error = two_sum(s, one, m)
    # m may be the larger one: the error of 1 + m is then still exact, as both are within a factor of 2.
    quotient = s.divide(f, sum_)
    product, product_error = two_product(s, quotient, sum_)
    rest = s.sub(s.sub(s.sub(f, product), product_error), s.mul(quotient, sum_error))
    correction = s.divide(rest, sum_)
    z = s.mul(quotient, quotient)
    tail = s.mul(s.mul(quotient, z), horner(s, ATANH_TAIL, z))
    two = s.const(2.0, FLOAT32)
    return exponent, two_sum(s, s.mul(two, quotient), s.plain_add(s.mul(two, correction), tail))


def _outside(s: Arithmetic, x: Value, inside: Value) -> Value:
    """A logarithm's values at 0, at infinity, of negative numbers and of NaN."""
    zero, infinity = s.const(0.0, FLOAT32), s.const(math.inf, FLOAT32)
    result = s.select(x > zero, inside, s.const(math.nan, FLOAT32))
    result = s.select(s.compare("eq", x, zero), s.const(-math.inf, FLOAT32), result)
    return s.select(s.logical_or(s.compare("eq", x, infinity), s.is_nan(x)), x, result)


def log(s: Arithmetic, x: Value) -> Value:
    e, (high, low) = log_parts(s, x)
    low = s.plain_add(low, s.mul(e, s.const(LN2_LOW, FLOAT32)))
    start, error = two_sum(s, s.mul(e, s.const(LN2_HIGH, FLOAT32)), high)
    return _outside(s, x, s.plain_add(start, s.plain_add(error, low)))


def _log2_parts(s: Arithmetic, x: Value) -> Pair:
    """log2 of a positive finite x, to about 2^-40."""
    e, log_m = log_parts(s, x)
    factor = constant_pair(s, 1 / math.log(2))
    high, low = _multiply(s, log_m, factor)
    total, error = two_sum(s, e, high)
    return two_sum(s, total, s.plain_add(error, low))


def _multiply(s: Arithmetic, x: Pair, y: Pair) -> Pair:
    product, error = two_product(s, x[0], y[0])
    crossed = s.plain_add(s.mul(x[0], y[1]), s.mul(x[1], y[0]))
    return two_sum(s, product, s.plain_add(error, crossed))


def log2(s: Arithmetic, x: Value) -> Value:
    high, low = _log2_parts(s, x)
    return _outside(s, x, s.plain_add(high, low))


def log10(s: Arithmetic, x: Value) -> Value:
    high, low = _multiply(s, _log2_parts(s, x), constant_pair(s, math.log10(2)))
    return _outside(s, x, s.plain_add(high, low))


def log1p(s: Arithmetic, x: Value) -> Value:
    """log(u) + (x - (u - 1)) / u with u = 1 + x rounded: the first two terms around the rounded place."""
    one = s.const(1.0, FLOAT32)
    u = s.plain_add(one, x)
    bigger = s.magnitude(x) > one
    error = s.select(bigger, s.sub(one, s.sub(u, x)), s.sub(x, s.sub(u, one)))
    result = s.plain_add(log(s, u), s.divide(error, u))
    tiny = s.magnitude(x) < s.const(2.0**-25, FLOAT32)
    finite = s.logical_and(u > s.const(0.0, FLOAT32), u < s.const(math.inf, FLOAT32))
    return s.select(tiny, x, s.select(finite, result, log(s, u)))


def exp2_of_pair(s: Arithmetic, exponent: Pair) -> Value:
    """2^(high + low); below -150 it is 0, above 128 infinity."""
    high, low = exponent
    inside = s.logical_and(high > s.const(-160.0, FLOAT32), high < s.const(160.0, FLOAT32))
    limit = s.select(high > s.const(0.0, FLOAT32), s.const(160.0, FLOAT32), s.const(-160.0, FLOAT32))
    whole = s.select(inside, high, limit)
    nearest = s.glsl(Glsl.ROUND_EVEN, FLOAT32, whole)
    rest = s.plain_add(s.sub(whole, nearest), s.select(inside, low, s.const(0.0, FLOAT32)))
    n = s.cast(nearest, INT32)
    half = s.shift_right(n, 1)
    y = horner(s, import_schedule("vector_math").EXP2, rest)
    return s.mul(s.mul(y, power_of_two(s, half)), power_of_two(s, n - half))


def power_of_two(s: Arithmetic, n: Value) -> Value:
    return s.reinterpret(s.shift_left(n + s.const(127, INT32), 23), FLOAT32)


def exp2(s: Arithmetic, x: Value) -> Value:
    return s.select(s.is_nan(x), x, exp2_of_pair(s, (x, s.const(0.0, FLOAT32))))


def exp10(s: Arithmetic, x: Value) -> Value:
    limit = s.const(64.0, FLOAT32)
    clipped = s.minimum(s.maximum(x, s.negate(limit)), limit)
    exponent = _multiply(s, (clipped, s.const(0.0, FLOAT32)), constant_pair(s, math.log2(10)))
    return s.select(s.is_nan(x), x, exp2_of_pair(s, exponent))


def power(s: Arithmetic, x: Value, y: Value) -> Value:
    """2^(y log2 |x|), with C's signs and limits."""
    zero, one = s.const(0.0, FLOAT32), s.const(1.0, FLOAT32)
    infinity = s.const(math.inf, FLOAT32)
    base = s.magnitude(x)
    # |log2| of a float other than 1 is above 2^-25: beyond 2^40 an exponent only says 0 or infinity.
    limit = s.const(2.0**40, FLOAT32)
    clipped = s.minimum(s.maximum(y, s.negate(limit)), limit)
    high, low = _log2_parts(s, base)
    product, error = two_product(s, clipped, high)
    result = exp2_of_pair(s, (product, s.plain_add(error, s.mul(clipped, low))))
    at_zero, at_infinity = s.compare("eq", base, zero), s.compare("eq", base, infinity)
    grows = s.compare("ne", at_zero, y > zero)
    result = s.select(s.logical_or(at_zero, at_infinity), s.select(grows, infinity, zero), result)
    whole = s.compare("eq", s.glsl(Glsl.FLOOR, FLOAT32, y), y)
    half = s.mul(y, s.const(0.5, FLOAT32))
    odd = s.logical_and(whole, s.compare("ne", s.glsl(Glsl.FLOOR, FLOAT32, half), half))
    negative = s.compare("lt", s.reinterpret(x, INT32), s.const(0, INT32))  # -0 too
    result = s.select(s.logical_and(odd, negative), s.negate(result), result)
    defined = s.logical_or(whole, s.logical_or(x >= zero, at_infinity))
    result = s.select(defined, result, s.const(math.nan, FLOAT32))
    result = s.select(s.logical_or(s.is_nan(x), s.is_nan(y)), s.const(math.nan, FLOAT32), result)
    return s.select(s.logical_or(s.compare("eq", y, zero), s.compare("eq", x, one)), one, result)
