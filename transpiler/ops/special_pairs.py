"""Special functions of two numbers: zeta, the incomplete gamma functions, orthogonal polynomials. See `special.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from transpiler.ir import Array
from transpiler.ops.base import Expr, Sample, Scalar
from transpiler.ops.dtypes import corner_pairs, draw
from transpiler.ops.elementwise import Binary
from transpiler.ops.promotion import aten_binary
from transpiler.ops.special import in_double
from transpiler.ops.special_numpy import special_function


class SpecialPair(Binary):
    """Base of the functions of two floats; the op's name is the function's."""

    categories = (2,)
    cost = 60
    # Where samples of the second argument are drawn from; `low` and `high` are for the first.
    second: ClassVar[tuple[float, float]]
    # Huge degrees and arguments take as long here as they do in PyTorch: samples have none.
    largest: ClassVar[float] = 1e4

    def reference(self, a: Array, b: Array) -> Array:
        return special_function(self.name, a, b).astype(a.dtype)

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return in_double(s, self.name, a, b)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for label, left, right in (
            ("same_shape", (3, 17), (3, 17)),
            ("broadcast", (5, 1, 7), (3, 1)),
            ("rank0", (), (9,)),
        ):
            a = draw(f"{cls.name} a", "float32", *left, low=cls.low, high=cls.high)
            yield Sample(
                label, cls(), (a, draw(f"{cls.name} b", "float32", *right, low=cls.second[0], high=cls.second[1]))
            )
        a, b = corner_pairs()
        usual = np.isnan(b) | (np.abs(b) < cls.largest)
        yield Sample("corners", cls(), (a, np.where(usual, b, np.float32(2)).astype(np.float32)))


class Zeta(SpecialPair, name="zeta"):
    """The Hurwitz zeta function: the sum of (b + k)^-a over k = 0, 1, ..."""

    low, high = 1.1, 9
    second = (0.1, 9)


class Igamma(SpecialPair, name="igamma"):
    """P(a, b), the regularized lower incomplete gamma function: from 0 at b = 0 to 1."""

    low, high = 0.1, 30
    second = (0, 40)


class Igammac(SpecialPair, name="igammac"):
    """Q(a, b) = 1 - P(a, b), the regularized upper incomplete gamma function."""

    low, high = 0.1, 30
    second = (0, 40)


class _Polynomial(SpecialPair):
    """Base of the polynomials of a; b, truncated, is the degree."""

    low, high = -1.5, 1.5
    second = (-1, 12)


class _Shifted(_Polynomial):
    """Base of the polynomials of 2 a - 1."""

    low, high = 0, 1


class ChebyshevT(_Polynomial, name="chebyshev_t"):
    """The Chebyshev polynomial of the first kind, of a; b, truncated, is the degree."""


class ChebyshevU(_Polynomial, name="chebyshev_u"):
    """The Chebyshev polynomial of the second kind, of a; b, truncated, is the degree."""


class ChebyshevV(_Polynomial, name="chebyshev_v"):
    """The Chebyshev polynomial of the third kind, of a; b, truncated, is the degree."""


class ChebyshevW(_Polynomial, name="chebyshev_w"):
    """The Chebyshev polynomial of the fourth kind, of a; b, truncated, is the degree."""


class ShiftedChebyshevT(_Shifted, name="shifted_chebyshev_t"):
    """The Chebyshev polynomial of the first kind of 2 a - 1; b, truncated, is the degree."""


class ShiftedChebyshevU(_Shifted, name="shifted_chebyshev_u"):
    """The Chebyshev polynomial of the second kind of 2 a - 1; b, truncated, is the degree."""


class ShiftedChebyshevV(_Shifted, name="shifted_chebyshev_v"):
    """The Chebyshev polynomial of the third kind of 2 a - 1; b, truncated, is the degree."""


class ShiftedChebyshevW(_Shifted, name="shifted_chebyshev_w"):
    """The Chebyshev polynomial of the fourth kind of 2 a - 1; b, truncated, is the degree."""


class LaguerreL(_Polynomial, name="laguerre_l"):
    """The Laguerre polynomial of a; b, truncated, is the degree."""


class LegendreP(_Polynomial, name="legendre_p"):
    """The Legendre polynomial of a; b, truncated, is the degree."""


class _Hermite(_Polynomial):
    """Base: NaN above a degree that depends on the dtype, as PyTorch has it."""

    def reference(self, a: Array, b: Array) -> Array:
        return special_function(self.name, a, b, np.array(_highest_degree(str(a.dtype)))).astype(a.dtype)

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        wide = [s.cast(item, "float64") for item in (a, b)]
        limit = s.const(_highest_degree(s.dtype(a)), "float64")
        return s.cast(s.call(self.name, *wide, limit), s.dtype(a))


def _highest_degree(dtype: str) -> float:
    return 512.0 if dtype == "float64" else 128.0


class HermiteH(_Hermite, name="hermite_h"):
    """The physicists' Hermite polynomial of a; b, truncated, is the degree."""


class HermiteHe(_Hermite, name="hermite_he"):
    """The probabilists' Hermite polynomial of a; b, truncated, is the degree."""


aten_binary(Zeta, "special_zeta.default", "special_zeta.other_scalar", "special_zeta.self_scalar")
aten_binary(Igamma, "igamma.default")
aten_binary(Igammac, "igammac.default")
for _op, _name in {
    ChebyshevT: "chebyshev_polynomial_t",
    ChebyshevU: "chebyshev_polynomial_u",
    ChebyshevV: "chebyshev_polynomial_v",
    ChebyshevW: "chebyshev_polynomial_w",
    ShiftedChebyshevT: "shifted_chebyshev_polynomial_t",
    ShiftedChebyshevU: "shifted_chebyshev_polynomial_u",
    ShiftedChebyshevV: "shifted_chebyshev_polynomial_v",
    ShiftedChebyshevW: "shifted_chebyshev_polynomial_w",
    LaguerreL: "laguerre_polynomial_l",
    LegendreP: "legendre_polynomial_p",
    HermiteH: "hermite_polynomial_h",
    HermiteHe: "hermite_polynomial_he",
}.items():
    aten_binary(_op, *(f"special_{_name}.{_which}" for _which in ("default", "x_scalar", "n_scalar")))
