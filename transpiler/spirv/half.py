"""float16 without 16-bit types: held as the float32 of the same value, its bits made and read by integers."""

from __future__ import annotations

from .arithmetic import Arithmetic, Value
from .dtypes import FLOAT16, FLOAT32, UINT32

_SIGN, _INFINITY, _HALF_INFINITY = 0x80000000, 0x7F800000, 0x7C00
# The exponents differ in their bias: 127 and 15.
_BIAS = 112


def unpack_half(s: Arithmetic, bits: Value) -> Value:
    """float16 from its bits, the low 16 of a uint32 whose others are 0."""

    def number(value: int) -> Value:
        return s.const(value, UINT32)

    exponent = s.bitwise("and", bits, number(_HALF_INFINITY))
    magnitude = s.shift_left(s.bitwise("and", bits, number(0x7FFF)), 13)
    normal = magnitude + number(_BIAS << 23)
    infinite = s.bitwise("or", magnitude, number(_INFINITY))
    # Of a denormal number: so many times 2^-24, which is exact.
    count = s.cast(s.bitwise("and", bits, number(0x3FF)), FLOAT32)
    small = s.reinterpret(count * s.const(2.0**-24, FLOAT32), UINT32)
    result = s.select(s.compare("eq", exponent, number(_HALF_INFINITY)), infinite, normal)
    result = s.select(s.compare("eq", exponent, number(0)), small, result)
    sign = s.shift_left(s.bitwise("and", bits, number(0x8000)), 16)
    return Value(s, s.reinterpret(s.bitwise("or", result, sign), FLOAT32).id, FLOAT16)


def pack_half(s: Arithmetic, x: Value) -> Value:
    """The bits of the float16 nearest to a float32, ties to even, in a uint32."""

    def number(value: int) -> Value:
        return s.const(value, UINT32)

    bits = s.reinterpret(Value(s, x.id, FLOAT32), UINT32)
    magnitude = s.bitwise("and", bits, number(_SIGN - 1))
    odd = s.bitwise("and", s.shift_right(magnitude, 13), number(1))
    rounded = s.shift_right(magnitude + number(0xFFF) + odd, 13)
    normal = rounded - number(_BIAS << 10)
    # Below 2^-14 the neighbours are 2^-24 apart, as those of 0.5 are: its sum rounds there.
    low = s.reinterpret(magnitude, FLOAT32)
    moved = s.reinterpret(s.plain_add(low, s.const(0.5, FLOAT32)), UINT32)
    small = moved - number(0x3F000000)
    result = s.select(s.compare("lt", magnitude, number((_BIAS + 1) << 23)), small, normal)
    # 65520 and more round to infinity.
    result = s.select(s.compare("ge", magnitude, number(0x477FF000)), number(_HALF_INFINITY), result)
    result = s.select(s.compare("gt", magnitude, number(_INFINITY)), number(_HALF_INFINITY | 0x200), result)
    return s.bitwise("or", result, s.shift_right(s.bitwise("and", bits, number(_SIGN)), 16))


def rounded_to_half(s: Arithmetic, x: Value) -> Value:
    """A float32 as float16."""
    return unpack_half(s, pack_half(s, x))
