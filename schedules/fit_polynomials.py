"""Fits the polynomials of `vector_math` and prints its tables: `python -m schedules.fit_polynomials` (needs
mpmath).

Lawson's algorithm (C. L. Lawson, 1961; as in J. R. Rice and K. H. Usow, Math. Comp. 22, 1968): a weighted
least-squares fit is repeated while every point's weight is multiplied by its error, which drives the fit to
the minimax one. The points are Chebyshev nodes; the error is relative to the function that the polynomial
becomes part of, so that it counts in units of the last place. Coefficients are printed as float32; the error
is that of the exact ones, in ulp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

NODES = 400
ROUNDS = 30
ULP = 2.0**-24


def fit(
    function: Callable[[Any], Any], weight: Callable[[Any], Any], low: float, high: float, degree: int
) -> tuple[np.ndarray[Any, Any], float]:
    """Coefficients c[0] + c[1] x + ... and the largest weighted error on [low, high]."""
    import mpmath

    middle, radius = (mpmath.mpf(low) + high) / 2, (mpmath.mpf(high) - low) / 2
    nodes = [middle + radius * mpmath.cos(mpmath.pi * (2 * i + 1) / (2 * NODES)) for i in range(NODES)]
    x = np.array([float(node) for node in nodes])
    factor = np.array([float(weight(node)) for node in nodes])
    target = np.array([float(function(node)) for node in nodes]) * factor
    matrix = x[:, None] ** np.arange(degree + 1) * factor[:, None]
    scale = np.abs(matrix).max(0)
    lawson = np.full(NODES, 1 / NODES)
    coefficients = np.zeros(degree + 1)
    error = np.zeros(NODES)
    for _ in range(ROUNDS):
        root = np.sqrt(lawson)
        coefficients = np.linalg.lstsq(matrix / scale * root[:, None], target * root, rcond=None)[0] / scale
        error = np.abs(matrix @ coefficients - target)
        lawson = lawson * (error + 1e-30)
        lawson /= lawson.sum()
    return coefficients, float(error.max())


def main() -> None:
    import mpmath as mp

    mp.mp.dps = 40
    half_ln2 = float(mp.log(2)) / 2

    def exp_tail(r: Any) -> Any:
        """(exp(r) - 1 - r) / r^2"""
        return (mp.exp(r) - 1 - r) / r**2 if abs(r) > 1e-6 else mp.mpf(1) / 2 + r / 6

    def tanh_tail(z: Any) -> Any:
        """(tanh(x) / x - 1) / x^2 in z = x^2"""
        x = mp.sqrt(z)
        return (mp.tanh(x) / x - 1) / z if z > 1e-10 else mp.mpf(-1) / 3 + 2 * z / 15

    def erf_over_x(z: Any) -> Any:
        """erf(x) / x in z = x^2"""
        return mp.erf(mp.sqrt(z)) / mp.sqrt(z)

    def cdf_exponent(t: Any) -> Any:
        """-log2(erfc(t / sqrt 2)) / t: the error of the power, which is at most 1, is weighted"""
        return -mp.log(mp.erfc(t / mp.sqrt(2)), 2) / t

    tables: list[tuple[str, Callable[[Any], Any], Callable[[Any], Any], float, float, int]] = [
        ("EXP", exp_tail, lambda r: r * r / mp.exp(r), -half_ln2, half_ln2, 4),
        ("EXP2", lambda r: mp.mpf(2) ** r, lambda r: mp.mpf(2) ** -r, -0.5, 0.5, 6),
        ("TANH", tanh_tail, lambda z: z * mp.sqrt(z) / mp.tanh(mp.sqrt(z)), 1e-9, 0.625**2, 5),
        ("ERF_SMALL", erf_over_x, lambda z: mp.sqrt(z) / mp.erf(mp.sqrt(z)), 1e-12, 1.0, 7),
        ("NORMAL_CDF", cdf_exponent, lambda t: t * mp.log(2) * mp.erfc(t / mp.sqrt(2)), 1e-9, 6.0, 7),
        ("ERF_LARGE", lambda x: -mp.log(mp.erfc(x)), lambda x: mp.erfc(x) / mp.erf(x), 1.0, 4.0, 8),
    ]
    for name, function, weight, low, high, degree in tables:
        coefficients, error = fit(function, weight, low, high, degree)
        numbers = ", ".join(str(np.float32(value)) for value in coefficients)
        print(f"{name} = ({numbers})  # {error / ULP:.3f} ulp")


if __name__ == "__main__":
    main()
