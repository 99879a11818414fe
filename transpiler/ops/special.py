"""Special functions: one double at a time by C functions of the runtime, `templates/runtime/cpu/special*.c`.

Every dtype is computed in float64 and rounded once. `special_numpy.py` says what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from transpiler.ir import Array, Value
from transpiler.ops.base import Elementwise, Expr, ImportContext, Sample, Scalar, aten
from transpiler.ops.dtypes import draw, out_type
from transpiler.ops.elementwise import Add
from transpiler.ops.elementwise_unary import Unary
from transpiler.ops.promotion import aten_unary
from transpiler.ops.special_numpy import special_function


def in_double(s: Scalar, function: str, *x: Expr) -> Expr:
    """The runtime's function of float64 on the elements `x`, in the dtype of the last."""
    return s.cast(s.call(function, *(s.cast(item, "float64") for item in x)), s.dtype(x[-1]))


class Special(Unary):
    """Base of the functions of one float; the op's name is the function's."""

    cost = 60

    def reference(self, x: Array) -> Array:
        return special_function(self.name, x).astype(x.dtype)

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return in_double(s, self.name, x)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from super().samples()
        yield Sample("float64_corners", cls(), (np.array([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf]),))


class _Bessel(Special):
    """Base of the Bessel functions, which oscillate or grow away from 0."""

    low, high = -12.0, 12.0


class _BesselSecond(_Bessel):
    """Base of those with a pole at 0: NaN below it."""

    low, high = 0.1, 12


class BesselJ0(_Bessel, name="bessel_j0"):
    """The Bessel function of the first kind of order 0; NaN at infinity, as PyTorch has it."""


class BesselJ1(_Bessel, name="bessel_j1"):
    """The Bessel function of the first kind of order 1."""


class BesselY0(_BesselSecond, name="bessel_y0"):
    """The Bessel function of the second kind of order 0; NaN below 0."""


class BesselY1(_BesselSecond, name="bessel_y1"):
    """The Bessel function of the second kind of order 1; NaN below 0."""


class BesselI0(_Bessel, name="bessel_i0"):
    """The modified Bessel function of the first kind of order 0."""


class BesselI1(_Bessel, name="bessel_i1"):
    """The modified Bessel function of the first kind of order 1."""


class BesselI0e(_Bessel, name="bessel_i0e"):
    """exp(-|x|) times the modified Bessel function of the first kind of order 0."""


class BesselI1e(_Bessel, name="bessel_i1e"):
    """exp(-|x|) times the modified Bessel function of the first kind of order 1."""


class BesselK0(_BesselSecond, name="bessel_k0"):
    """The modified Bessel function of the second kind of order 0; NaN below 0."""


class BesselK1(_BesselSecond, name="bessel_k1"):
    """The modified Bessel function of the second kind of order 1; NaN below 0."""


class BesselK0e(_BesselSecond, name="bessel_k0e"):
    """exp(x) times the modified Bessel function of the second kind of order 0."""


class BesselK1e(_BesselSecond, name="bessel_k1e"):
    """exp(x) times the modified Bessel function of the second kind of order 1."""


class SphericalBesselJ0(_Bessel, name="spherical_bessel_j0"):
    """sin(x) / x; 1 at 0, 0 at infinity."""


class AiryAi(Special, name="airy_ai"):
    """The Airy function Ai; NaN at infinity, as PyTorch has it."""

    low, high = -12, 8


class Erfc(Special, name="erfc"):
    """1 - erf(x), accurate where it is small."""

    low, high = -6, 7


class Erfcx(Special, name="erfcx"):
    """exp(x^2) erfc(x)."""

    low, high = -3, 60


class Erfinv(Special, name="erfinv"):
    """The inverse of erf; NaN outside [-1, 1]."""

    low, high = -1, 1


class Ndtr(Special, name="ndtr"):
    """The normal distribution: its area below x."""

    low, high = -6, 7


class LogNdtr(Special, name="log_ndtr"):
    """log(ndtr(x)), accurate where ndtr underflows."""

    low, high = -20, 7


class Ndtri(Special, name="ndtri"):
    """The inverse of ndtr; NaN outside [0, 1]."""

    low, high = 0, 1


class Lgamma(Special, name="lgamma"):
    """log(|Gamma(x)|)."""

    low, high = -6, 12


class Digamma(Special, name="digamma"):
    """The derivative of lgamma; NaN at negative integers."""

    low, high = -6, 12


class Polygamma(Special, name="polygamma"):
    """The derivative of digamma of order `n`."""

    n: int = 1
    low, high = -6, 12

    def reference(self, x: Array) -> Array:
        return special_function(self.name, np.array(float(self.n)), x).astype(x.dtype)

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return in_double(s, self.name, s.const(float(self.n), "float64"), x)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from super().samples()
        for n in (0, 2, 3):
            yield Sample(f"order_{n}", cls(n), (draw("polygamma", "float32", 33, low=0.1, high=12),))


_UNARY: dict[type[Elementwise], tuple[str, ...]] = {
    BesselJ0: ("special_bessel_j0.default",),
    BesselJ1: ("special_bessel_j1.default",),
    BesselY0: ("special_bessel_y0.default",),
    BesselY1: ("special_bessel_y1.default",),
    BesselI0: (
        "i0.default",
        "special_modified_bessel_i0.default",
    ),
    BesselI1: (
        "special_i1.default",
        "special_modified_bessel_i1.default",
    ),
    BesselI0e: ("special_i0e.default",),
    BesselI1e: ("special_i1e.default",),
    BesselK0: ("special_modified_bessel_k0.default",),
    BesselK1: ("special_modified_bessel_k1.default",),
    BesselK0e: ("special_scaled_modified_bessel_k0.default",),
    BesselK1e: ("special_scaled_modified_bessel_k1.default",),
    SphericalBesselJ0: ("special_spherical_bessel_j0.default",),
    AiryAi: ("special_airy_ai.default",),
    Erfc: ("erfc.default",),
    Erfcx: ("special_erfcx.default",),
    Erfinv: ("erfinv.default",),
    Ndtr: ("special_ndtr.default",),
    LogNdtr: ("special_log_ndtr.default",),
    Ndtri: ("special_ndtri.default",),
    Lgamma: ("lgamma.default",),
    Digamma: ("digamma.default",),
}
for _op, _overloads in _UNARY.items():
    aten_unary(_op, *_overloads)


@aten("polygamma.default", "special_polygamma.default")
def _polygamma(context: ImportContext, n: int, x: Value) -> Any:
    return context.emit(Polygamma(n), context.cast(x, out_type(context).dtype))


@aten("mvlgamma.default", "special_multigammaln.default")
def _mvlgamma(context: ImportContext, x: Value, p: int) -> Any:
    """log(pi) p (p - 1) / 4 plus the sum of lgamma(x - j / 2) over j < p."""
    x = context.cast(x, out_type(context).dtype)
    total = context.scalar(p * (p - 1) / 4 * math.log(math.pi), x.dtype)
    for j in range(p - 1, -1, -1):
        shifted = context.emit(Add(), x, context.scalar(-j / 2, x.dtype))
        total = context.emit(Add(), total, context.emit(Lgamma(), shifted))
    return total
