"""exp and log of float64, by series that need no tables. The largest errors are 2 units of the last place."""

from __future__ import annotations

import math
from fractions import Fraction

from .arithmetic import Arithmetic, Value
from .dtypes import FLOAT64, INT64
from .logarithm import horner
from .opcodes import Glsl

ULPS = {"exp": 2, "log": 2, "sigmoid": 4}
# ln 2 in two parts; the high one has 32 bits, so that its product with an exponent is exact.
LN2 = Fraction(693147180559945309417232121458176568, 10**36)
LN2_HIGH = math.floor(LN2 * 2**32) / 2**32
LN2_LOW = float(LN2 - Fraction(LN2_HIGH))
EXP_TAIL = tuple(1 / math.factorial(k) for k in range(2, 14))
ATANH_TAIL = tuple(2 / (2 * k + 1) for k in range(1, 12))


def _power_of_two(s: Arithmetic, n: Value) -> Value:
    return s.reinterpret(s.shift_left(n + s.const(1023, INT64), 52), FLOAT64)


def exp(s: Arithmetic, x: Value) -> Value:
    """2^n e^r with n = round(x / ln 2); the Taylor series of e^r, whose remainder behind r^13 is below 2^-57."""
    low, high = s.const(-746.0, FLOAT64), s.const(710.0, FLOAT64)
    clipped = s.minimum(s.maximum(x, low), high)
    whole = s.glsl(Glsl.ROUND_EVEN, FLOAT64, s.mul(clipped, s.const(1 / math.log(2), FLOAT64)))
    r = s.sub(s.sub(clipped, s.mul(whole, s.const(LN2_HIGH, FLOAT64))), s.mul(whole, s.const(LN2_LOW, FLOAT64)))
    y = s.plain_add(s.const(1.0, FLOAT64), s.plain_add(r, s.mul(s.mul(r, r), horner(s, EXP_TAIL, r))))
    n = s.cast(whole, INT64)
    half = s.shift_right(n, 1)
    return s.select(s.is_nan(x), x, s.mul(s.mul(y, _power_of_two(s, half)), _power_of_two(s, n - half)))


def log(s: Arithmetic, x: Value) -> Value:
    """2 atanh((m - 1) / (m + 1)) + e ln 2, for m in [sqrt(1/2), sqrt 2); the series behind s^23 is below 2^-60."""
    tiny = x < s.const(2.0**-1022, FLOAT64)
    bits = s.reinterpret(s.select(tiny, s.mul(x, s.const(2.0**54, FLOAT64)), x), INT64)
    root_half = 0x3FE6A09E667F3BCD
    from_root = bits - s.const(root_half, INT64)
    e = s.shift_right(from_root, 52)
    m = s.reinterpret(s.bitwise("and", from_root, s.const((1 << 52) - 1, INT64)) + s.const(root_half, INT64), FLOAT64)
    exponent = s.cast(e, FLOAT64)
    exponent = s.select(tiny, s.sub(exponent, s.const(54.0, FLOAT64)), exponent)
    one = s.const(1.0, FLOAT64)
    f = s.sub(m, one)
    quotient = s.divide(f, s.plain_add(f, s.const(2.0, FLOAT64)))
    z = s.mul(quotient, quotient)
    # 2 q = f - q f, so that only small terms are rounded: log m = f - q (f - z P(z)).
    series = s.sub(f, s.mul(quotient, s.sub(f, s.mul(z, horner(s, ATANH_TAIL, z)))))
    low = s.mul(exponent, s.const(LN2_LOW, FLOAT64))
    inside = s.plain_add(s.mul(exponent, s.const(LN2_HIGH, FLOAT64)), s.plain_add(series, low))
    zero, infinity = s.const(0.0, FLOAT64), s.const(math.inf, FLOAT64)
    result = s.select(x > zero, inside, s.const(math.nan, FLOAT64))
    result = s.select(s.compare("eq", x, zero), s.negate(infinity), result)
    return s.select(s.logical_or(s.compare("eq", x, infinity), s.is_nan(x)), x, result)


def sigmoid(s: Arithmetic, x: Value) -> Value:
    one = s.const(1.0, FLOAT64)
    e = exp(s, s.negative_magnitude(x))
    return s.divide(s.select(x < s.const(0.0, FLOAT64), e, one), s.plain_add(one, e))
