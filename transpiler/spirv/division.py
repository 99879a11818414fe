"""A float division that is rounded to nearest on every device.

Vulkan allows OpFDiv 2.5 units of the last place, and any error where the divisor is beyond 2^126: 6 / 3 may be less
than 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .arithmetic import MANTISSA_BITS, Arithmetic, Value
from .control import loop
from .dtypes import UINT32, DType


def quotient(s: Arithmetic, x: Value, y: Value) -> Value:
    """x / y of float32 or float64, ties to even, denormal numbers too: the long division of the mantissas in ints."""
    dtype = x.dtype
    width, fraction_bits = dtype.bits, MANTISSA_BITS[dtype.bits]
    uint, signed = DType("uint", width), DType("int", width)
    zero, one = s.const(0, uint), s.const(1, uint)
    infinity = s.const(((1 << (width - 1 - fraction_bits)) - 1) << fraction_bits, uint)
    low = s.const((1 << (width - 1)) - 1, uint)
    a, b = (s.bitwise("and", s.reinterpret(value, uint), low) for value in (x, y))

    def parts(bits: Value) -> tuple[Value, Value]:
        """Exponent and mantissa, whose implied bit is set, of denormal numbers too."""
        exponent = s.cast(s.shift_right(bits, fraction_bits), signed)
        mantissa = s.bitwise("and", bits, s.const((1 << fraction_bits) - 1, uint))
        normal = s.compare("gt", exponent, s.const(0, signed))
        mantissa = s.select(normal, mantissa + s.const(1 << fraction_bits, uint), mantissa)
        exponent = s.select(normal, exponent, s.const(1, signed))
        for step in (32, 16, 8, 4, 2, 1):
            if step <= fraction_bits:
                short = s.compare("lt", mantissa, s.const(1 << (fraction_bits + 1 - step), uint))
                mantissa = s.select(short, s.shift_left(mantissa, step), mantissa)
                exponent = s.select(short, exponent - s.const(step, signed), exponent)
        return exponent, mantissa

    (ea, ma), (eb, mb) = parts(a), parts(b)
    smaller = s.compare("lt", ma, mb)
    ma = s.select(smaller, s.shift_left(ma, 1), ma)
    bias = (1 << (width - 2 - fraction_bits)) - 1
    exponent = ea - eb + s.select(smaller, s.const(bias - 1, signed), s.const(bias, signed))

    def digit(_: Value, state: Sequence[Value]) -> list[Value]:
        rest, digits = s.shift_left(state[0], 1), s.shift_left(state[1], 1)
        fits = s.compare("ge", rest, mb)
        return [s.select(fits, rest - mb, rest), s.select(fits, digits + one, digits)]

    # All digits of the result and one more; `rest` says whether others follow.
    rest, digits = loop(s, s.const(fraction_bits + 1, UINT32), [ma - mb, one], digit)
    least = s.const(1, signed)
    held = s.maximum(exponent, least)
    surplus = s.minimum(held - exponent + least, s.const(fraction_bits + 3, signed))
    shift = s.cast(surplus, UINT32)
    kept = s.shift_right(digits, shift)
    lost = digits - s.shift_left(kept, shift)
    half = s.shift_left(one, shift - s.const(1, UINT32))
    odd = s.compare("ne", s.bitwise("and", kept, one), zero)
    tie = s.logical_and(s.compare("eq", lost, half), s.logical_or(odd, s.compare("ne", rest, zero)))
    up = s.select(s.logical_or(s.compare("gt", lost, half), tie), one, zero)
    bits = s.shift_left(s.cast(held - least, uint), fraction_bits) + kept + up
    bits = s.select(s.compare("gt", exponent, s.const(2 * bias, signed)), infinity, bits)

    is_zero, by_zero = s.compare("eq", a, zero), s.compare("eq", b, zero)
    endless, by_endless = s.compare("eq", a, infinity), s.compare("eq", b, infinity)
    bits = s.select(s.logical_or(is_zero, by_endless), zero, bits)
    bits = s.select(s.logical_or(endless, by_zero), infinity, bits)
    signs = s.bitwise("xor", s.reinterpret(x, uint), s.reinterpret(y, uint))
    result = s.copy_sign(s.reinterpret(bits, dtype), s.reinterpret(signs, dtype))
    undefined = s.logical_or(s.logical_and(is_zero, by_zero), s.logical_and(endless, by_endless))
    undefined = s.logical_or(undefined, s.logical_or(s.is_nan(x), s.is_nan(y)))
    return s.select(undefined, s.const(math.nan, dtype), result)
