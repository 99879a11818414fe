"""float32 functions as straight-line arithmetic that vectorises to any width.

LLVM turns a vector `exp` into sixteen libm calls and has no `erf` at all, so the transcendental functions
that models spend time in are polynomials here. The coefficients are minimax fits (Lawson's reweighted least
squares on Chebyshev nodes, weighted for relative error) made by `schedules/fit_polynomials.py`; the bounds
(`ULPS`) are measured over the whole float32 range by tests/unit/test_vector_math.py:

| function | range of the polynomial |
|---|---|
| exp | r in [-ln2/2, ln2/2], degree 6, two-step scaling for denormal results |
| exp_nonpositive | the same for x <= 0; 0 below -87 |
| tanh | odd, |x| < 0.625, degree 11; beyond, with e = exp(-2|x|): (1-e)/(1+e) |
| sigmoid | e = exp(-|x|): 1/(1+e), for x < 0 e/(1+e) |
| erf | odd, |x| < 1, degree 15; beyond: 1 - exp(-P(|x|)) |
| normal_cdf | h = 2^(-|x| P(|x|)) / 2: 1 - h, for x < 0 h; P of degree 7 |

NaN propagates and infinities give the limits. Each function takes the builder's `Tir` for its operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .scalar import Tir

Expr = Any

# Largest errors, in units of the last place of float32; exp_nonpositive has exp's.
ULPS = {"exp": 1, "tanh": 2, "sigmoid": 3, "erf": 3}
# Largest absolute errors, of functions that are small where nobody asks for their digits: the Gaussian distribution
# is multiplied by its argument and added to terms of that size.
ABSOLUTE = {"normal_cdf": 2.0**-23}

EXP = (0.49999994, 0.16666521, 0.04166839, 0.008368711, 0.0013814605)
EXP2 = (1.0, 0.6931472, 0.24022646, 0.055503286, 0.009618489, 0.0013399931, 0.00015345795)
TANH = (-0.3333333, 0.13333206, -0.053946763, 0.021700697, -0.008177384, 0.0021429495)
ERF_SMALL = (
    1.1283792,
    -0.37612638,
    0.11283782,
    -0.0268654,
    0.0052209455,
    -0.0008482828,
    0.00011256944,
    -9.641505e-06,
)
ERF_LARGE = (
    -0.0002020711, 1.1296494, 0.63306564, 0.10860668, -0.025348991,
    0.004270668, -0.0004603674, 2.475583e-05, -2.1219952e-07,
)  # fmt: skip

NORMAL_CDF = (
    1.1511052, 0.4592082, 0.05249618, -0.007063421, 0.0001369374, 0.00018617998, -3.937766e-05, 2.834911e-06,
)  # fmt: skip

LOG2_E = 1.4426950408889634
# ln 2 in two parts: the high one has few enough bits that n * LN2_HIGH is exact for |n| < 2^9.
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4
# Adding 1.5 * 2^23 to |x| < 2^22 leaves round(x) in the low mantissa bits.
ROUND_MAGIC = 12582912.0
ROUND_MAGIC_BITS = 0x4B400000


def horner(s: Tir, coefficients: Sequence[float], x: Expr) -> Expr:
    """c[0] + x*(c[1] + x*(...)), one fused multiply-add per coefficient."""
    result = s.const(coefficients[-1], "float32")
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + s.const(coefficient, "float32")
    return result


def exp(s: Tir, x: Expr) -> Expr:
    """exp(x) = 2^n * exp(r), n = round(x / ln 2), r = x - n ln 2."""
    # Comparisons written so that NaN takes the last branch and stays NaN.
    low, high = s.const(-104.0, "float32"), s.const(89.0, "float32")
    y, n = _exp_parts(s, s.bind(s.select(x < low, low, s.select(x > high, high, x))))
    # 2^n in two factors, so that results below 2^-126 round once and those above 2^128 become infinity.
    half = s.bind(s.shift_right(n, 1))
    return y * _power_of_two(s, half) * _power_of_two(s, n - half)


def exp_nonpositive(s: Tir, x: Expr) -> Expr:
    """exp(x) for x <= 0, and 0 for x < -87: what softmax needs.

    Denormal numbers never appear, neither as result nor on the way; an operation on them takes some 150
    cycles on many CPUs, which a mask full of -inf would pay everywhere.
    """
    low = s.const(-87.0, "float32")
    y, n = _exp_parts(s, s.bind(s.select(x < low, low, x)))
    return s.select(x < low, s.const(0.0, "float32"), y * _power_of_two(s, n))


def _exp_parts(s: Tir, x: Expr) -> tuple[Expr, Expr]:
    """exp(r) and n (int32)."""
    n = _nearest(s, s.bind(x * s.const(LOG2_E, "float32") + s.const(ROUND_MAGIC, "float32")))
    multiple = s.bind(s.cast(n, "float32"))
    r = s.bind((x - multiple * s.const(LN2_HIGH, "float32")) - multiple * s.const(LN2_LOW, "float32"))
    return s.bind(horner(s, EXP, r) * (r * r) + r + s.const(1.0, "float32")), n


def _nearest(s: Tir, shifted: Expr) -> Expr:
    """The integer nearest to `shifted` less the magic number, from the bits: TVM's simplifier cancels
    (x + magic) - magic on vectors.
    """
    return s.bind(s.reinterpret(shifted, "int32") - s.const(ROUND_MAGIC_BITS, "int32"))


def _power_of_two(s: Tir, n: Expr, more: int = 0) -> Expr:
    """2^(n + more), of a normal number's range."""
    return s.reinterpret(s.shift_left(n + s.const(127 + more, "int32"), 23), "float32")


def _exp_normal(s: Tir, x: Expr) -> Expr:
    """exp(x) for -87 <= x <= 88."""
    y, n = _exp_parts(s, x)
    return y * _power_of_two(s, n)


def sigmoid(s: Tir, x: Expr) -> Expr:
    """exp(-|x|) cannot overflow, so that results down to the denormals come out."""
    zero, one, low = (s.const(value, "float32") for value in (0.0, 1.0, -104.0))
    z = s.bind(s.negative_magnitude(x))
    y, n = _exp_parts(s, s.bind(s.select(z < low, low, z)))
    # Scaled down in the second step, so that denormal results round once.
    e = s.bind(y * _power_of_two(s, n, 64) * s.const(2.0**-64, "float32"))
    return s.select(x < zero, e, one) / (one + e)


def tanh(s: Tir, x: Expr) -> Expr:
    one, two, low = (s.const(value, "float32") for value in (1.0, 2.0, -87.0))
    magnitude = s.bind(s.magnitude(x))
    square = s.bind(x * x)
    small = magnitude + magnitude * square * horner(s, TANH, square)
    z = s.bind(two * s.negative_magnitude(x))
    e = s.bind(_exp_normal(s, s.bind(s.select(z < low, low, z))))
    large = s.bind((one - e) / (one + e))
    return s.copy_sign(s.select(magnitude < s.const(0.625, "float32"), small, large), x)


def erf(s: Tir, x: Expr) -> Expr:
    one, four = s.const(1.0, "float32"), s.const(4.0, "float32")
    magnitude = s.bind(s.magnitude(x))
    clipped = s.bind(s.select(magnitude > four, four, magnitude))
    small = x * horner(s, ERF_SMALL, s.bind(x * x))
    large = s.bind(one - _exp_normal(s, s.bind(s.const(0.0, "float32") - horner(s, ERF_LARGE, clipped))))
    return s.select(magnitude < one, small, s.copy_sign(large, x))


def normal_cdf(s: Tir, x: Expr) -> Expr:
    """The distribution function of the normal distribution, (1 + erf(x / sqrt(2))) / 2; exactly 0 below -13.

    Its tail is h = 2^-t P(t) / 2 at t = |x|. Rounding in the exponent counts little where h is large and the exponent
    small, and where the exponent is large h is small: so one polynomial is enough, without the branches of `erf`.
    """
    zero, one, low = (s.const(value, "float32") for value in (0.0, 1.0, -125.0))
    t = s.bind(s.magnitude(x))
    exponent = s.bind(s.negative_magnitude(x) * horner(s, NORMAL_CDF, t))
    clipped = s.bind(s.select(exponent < low, low, exponent))
    n = _nearest(s, s.bind(clipped + s.const(ROUND_MAGIC, "float32")))
    r = s.bind(clipped - s.cast(n, "float32"))
    h = s.bind(s.select(exponent < low, zero, horner(s, EXP2, r) * _power_of_two(s, n, -1)))
    return s.select(x < zero, h, one - h)
