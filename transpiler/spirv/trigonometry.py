"""Sine, cosine and their inverses in float32.

An angle of any size is reduced by the method of M. Payne and R. Hanek (SIGNUM Newsletter 18, 1983): the mantissa,
24 bits, is multiplied by those 96 bits of 2/pi that decide the quadrant and the 62 bits behind it, in integers.
On [-pi/4, pi/4] the Taylor series serve: their remainders are below 2^-28.
"""

from __future__ import annotations

import math

from .arithmetic import Arithmetic, Value
from .dtypes import BOOL, FLOAT32, INT32, UINT32
from .logarithm import horner
from .opcodes import Glsl, Op

# 256 bits: 32 zeros, then the binary digits of 2/pi.
TWO_OVER_PI = (0x00000000, 0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041, 0xFE5163AB)
SIN_TAIL = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(1, 5))
COS_TAIL = tuple((-1.0) ** k / math.factorial(2 * k) for k in range(2, 6))
ATAN_TAIL = tuple((-1.0) ** k / (2 * k + 1) for k in range(1, 9))
PI_HALF_LOW = -4.37113883e-8  # pi/2 less its float32


def _multiply(s: Arithmetic, x: Value, y: Value) -> tuple[Value, Value]:
    """The low and the high word of a product of uint32."""
    word = s.module.scalar_type(UINT32)
    pair = s.module.pure(Op.U_MUL_EXTENDED, s.module.type(Op.TYPE_STRUCT, word, word), x.id, y.id)
    low, high = (s.module.pure(Op.COMPOSITE_EXTRACT, word, pair, part) for part in (0, 1))
    return Value(s, low, UINT32), Value(s, high, UINT32)


def _window(s: Arithmetic, offset: Value) -> list[Value]:
    """96 bits of TWO_OVER_PI from bit `offset` < 160, most significant word first."""
    first, bits = s.shift_right(offset, 5), s.bitwise("and", offset, s.const(31, UINT32))
    words = []
    for position in range(4):
        word = s.const(TWO_OVER_PI[position], UINT32)
        for start in range(1, 5):
            chosen = s.compare("eq", first, s.const(start, UINT32))
            word = s.select(chosen, s.const(TWO_OVER_PI[start + position], UINT32), word)
        words.append(word)
    aligned = s.compare("eq", bits, s.const(0, UINT32))
    behind = s.bitwise("and", s.const(32, UINT32) - bits, s.const(31, UINT32))
    zero = s.const(0, UINT32)
    return [
        s.bitwise("or", s.shift_left(words[i], bits), s.select(aligned, zero, s.shift_right(words[i + 1], behind)))
        for i in range(3)
    ]


def _reduced(s: Arithmetic, x: Value) -> tuple[Value, Value]:
    """The quadrant (uint32, modulo 4) and the angle within [-pi/4, pi/4] of a finite |x|."""
    bits = s.reinterpret(x, UINT32)
    exponent = s.shift_right(bits, 23)
    mantissa = s.bitwise("or", s.bitwise("and", bits, s.const(0x7FFFFF, UINT32)), s.const(0x800000, UINT32))
    # x = mantissa 2^E with E = exponent - 150; the window starts at bit E + 30, where a bit counts 4 in the product.
    small = s.compare("lt", exponent, s.const(126, UINT32))
    offset = s.select(small, s.const(6, UINT32), exponent - s.const(120, UINT32))
    high, middle, low = _window(s, offset)
    _, carry = _multiply(s, mantissa, low)
    p1, carry2 = _multiply(s, mantissa, middle)
    p2, _ = _multiply(s, mantissa, high)
    sum1 = p1 + carry
    overflow = s.cast(s.compare("lt", sum1, p1), UINT32)
    top = p2 + carry2 + overflow
    quadrant = s.shift_right(top, 30)
    fraction = s.bitwise("or", s.shift_left(top, 2), s.shift_right(sum1, 30))
    rest = s.shift_left(sum1, 2)
    upper = s.compare("lt", s.reinterpret(fraction, INT32), s.const(0, INT32))
    quadrant = s.bitwise("and", quadrant + s.cast(upper, UINT32), s.const(3, UINT32))
    fraction = s.select(upper, s.bitwise_not(fraction), fraction)
    rest = s.select(upper, s.bitwise_not(rest), rest)
    turns = s.cast(rest, FLOAT32) * s.const(2.0**-64, FLOAT32) + s.cast(fraction, FLOAT32) * s.const(2.0**-32, FLOAT32)
    angle = s.mul(turns, s.const(math.pi / 2, FLOAT32))
    angle = s.select(upper, s.negate(angle), angle)
    inside = x < s.const(0.785, FLOAT32)
    return s.select(inside, s.const(0, UINT32), quadrant), s.select(inside, x, angle)


def _sine_and_cosine(s: Arithmetic, x: Value) -> tuple[Value, Value]:
    """Of |x|; infinities give NaN."""
    magnitude = s.magnitude(x)
    quadrant, r = _reduced(s, magnitude)
    z = r * r
    sine = r + s.mul(s.mul(r, z), horner(s, SIN_TAIL, z))
    half = s.mul(z, s.const(0.5, FLOAT32))
    one = s.const(1.0, FLOAT32)
    rounded = s.sub(one, half)
    error = s.sub(s.sub(one, rounded), half)
    cosine = s.plain_add(rounded, s.plain_add(error, s.mul(s.mul(z, z), horner(s, COS_TAIL, z))))
    bit = [s.compare("ne", s.bitwise("and", quadrant, s.const(mask, UINT32)), s.const(0, UINT32)) for mask in (1, 2)]
    swapped, lower = bit
    sin, cos = s.select(swapped, cosine, sine), s.select(swapped, sine, cosine)
    sin = s.select(lower, s.negate(sin), sin)
    cos = s.select(s.emit(Op.LOGICAL_NOT_EQUAL, BOOL, swapped, lower), s.negate(cos), cos)
    finite = magnitude < s.const(math.inf, FLOAT32)
    nan = s.const(math.nan, FLOAT32)
    return s.select(finite, sin, nan), s.select(finite, cos, nan)


def sin(s: Arithmetic, x: Value) -> Value:
    sine, _ = _sine_and_cosine(s, x)
    negative = s.compare("lt", s.reinterpret(x, INT32), s.const(0, INT32))
    return s.select(negative, s.negate(sine), sine)


def cos(s: Arithmetic, x: Value) -> Value:
    return _sine_and_cosine(s, x)[1]


def tan(s: Arithmetic, x: Value) -> Value:
    return s.divide(sin(s, x), cos(s, x))


def atan2(s: Arithmetic, y: Value, x: Value) -> Value:
    """The angle of (x, y), with C's signs and limits.

    Both are turned into the first eighth of the circle, and where the quotient is above tan(pi/8) by pi/4 back.
    """
    zero, one = s.const(0.0, FLOAT32), s.const(1.0, FLOAT32)
    infinity = s.const(math.inf, FLOAT32)
    ax, ay = s.magnitude(x), s.magnitude(y)
    both = s.logical_and(s.compare("eq", ax, infinity), s.compare("eq", ay, infinity))
    ax, ay = s.select(both, one, ax), s.select(both, one, ay)
    steep = ay > ax
    big, small = s.select(steep, ay, ax), s.select(steep, ax, ay)
    # Scaled so that no device divides by what it may take for 0 or gets a denormal reciprocal.
    huge, tiny = big > s.const(2.0**100, FLOAT32), big < s.const(2.0**-60, FLOAT32)
    factor = s.select(huge, s.const(2.0**-40, FLOAT32), s.select(tiny, s.const(2.0**60, FLOAT32), one))
    big, small = s.mul(big, factor), s.mul(small, factor)
    turned = small > s.mul(big, s.const(math.tan(math.pi / 8), FLOAT32))
    top, bottom = s.select(turned, s.sub(small, big), small), s.select(turned, s.plain_add(small, big), big)
    nothing = s.compare("eq", bottom, zero)
    t = s.divide(s.select(nothing, zero, top), s.select(nothing, one, bottom))
    z = s.mul(t, t)
    angle = t + s.mul(s.mul(t, z), horner(s, ATAN_TAIL, z))
    quarter = s.const(math.pi / 4, FLOAT32)
    angle = s.select(turned, s.plain_add(quarter, s.plain_add(angle, s.const(PI_HALF_LOW / 2, FLOAT32))), angle)
    right, low = s.const(math.pi / 2, FLOAT32), s.const(PI_HALF_LOW, FLOAT32)
    angle = s.select(steep, s.sub(right, s.sub(angle, low)), angle)
    negative = s.compare("lt", s.reinterpret(x, INT32), s.const(0, INT32))
    straight, straight_low = s.const(math.pi, FLOAT32), s.const(2 * PI_HALF_LOW, FLOAT32)
    angle = s.select(negative, s.sub(straight, s.sub(angle, straight_low)), angle)
    undefined = s.logical_or(s.is_nan(x), s.is_nan(y))
    return s.select(undefined, s.const(math.nan, FLOAT32), s.copy_sign(angle, y))


def atan(s: Arithmetic, x: Value) -> Value:
    return atan2(s, x, s.const(1.0, FLOAT32))


def _leg(s: Arithmetic, x: Value) -> Value:
    """sqrt(1 - x^2), without the cancellation near 1; NaN beyond."""
    one = s.const(1.0, FLOAT32)
    square = s.mul(s.sub(one, x), s.plain_add(one, x))
    negative = square < s.const(0.0, FLOAT32)
    return s.select(negative, s.const(math.nan, FLOAT32), s.glsl(Glsl.SQRT, FLOAT32, square))


def asin(s: Arithmetic, x: Value) -> Value:
    return atan2(s, x, _leg(s, x))


def acos(s: Arithmetic, x: Value) -> Value:
    return atan2(s, _leg(s, x), x)
