"""What the special functions mean, in numpy and float64: integrals, defining series, recurrences.

Plain and independent of the approximations in `templates/runtime/cpu/special*.c`. "DLMF" is the NIST Digital Library of
Mathematical Functions, https://dlmf.nist.gov. The functions that PyTorch computes with a visible error are in
cephes_numpy.py. Functions take and return flat float64 arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from transpiler.ir import Array
from transpiler.ops.cephes_numpy import airy_ai, bessel_j, bessel_y

Function = Callable[..., Array]
# Beyond it the asymptotic series are exact to the last digit.
FAR = 25.0


def of_math(function: Callable[[float], float]) -> Function:
    return lambda x: np.fromiter(map(function, x.tolist()), np.float64, x.size)


def _quadrature(panels: int) -> tuple[Array, Array]:
    """Points and weights of a composite Gauss-Legendre rule on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(16)
    left = np.arange(panels)[:, None] / panels
    return (left + (points + 1) / (2 * panels)).ravel(), np.tile(weights / (2 * panels), panels)


def _integral(integrand: Callable[[Array], Array], end: Array | float, panels: int) -> Array:
    """From 0 to `end`; the integrand takes points of shape (1 or n, points)."""
    points, weights = _quadrature(panels)
    reach = np.asarray(end, np.float64).reshape(-1, 1)
    return np.asarray((integrand(reach * points) * weights).sum(1) * reach[:, 0])


def _hankel(order: float, x: Array) -> list[Array]:
    """a[k] / x^k of the asymptotic series, DLMF 10.17.1."""
    terms = [np.ones_like(x)]
    for k in range(1, 30):
        terms.append(terms[-1] * (4 * order**2 - (2 * k - 1) ** 2) / (8 * k * x))
    return terms


def _split(x: Array, near: Function, far: Function) -> Array:
    """`near` below FAR, `far` from there on; NaN where x is not positive. Some rows at a time, for the memory."""
    result = np.full(x.shape, np.nan)
    for function, chosen in ((near, (x > 0) & (x < FAR)), (far, x >= FAR)):
        places = np.flatnonzero(chosen)
        for start in range(0, places.size, 512):
            part = places[start : start + 512]
            result[part] = function(x[part])
    return result


def _reach(x: Array) -> Array:
    """Where exp(-x sinh t) is nothing."""
    return np.arcsinh(750 / x)


def bessel_ie(order: int) -> Function:
    """exp(-|x|) I(x): DLMF 10.32.3 and 10.40.1."""

    def near(x: Array) -> Array:
        return _integral(lambda t: np.exp(x[:, None] * (np.cos(t) - 1)) * np.cos(order * t), math.pi, 32) / math.pi

    def far(x: Array) -> Array:
        total = sum((-1) ** k * term for k, term in enumerate(_hankel(order, x)))
        return np.asarray(total / math.sqrt(2 * math.pi) / np.sqrt(x))

    def function(x: Array) -> Array:
        size = np.abs(x)
        value = np.where(size == 0, 1.0 - order, _split(size, near, far))
        return np.where(np.isnan(x), np.nan, value * np.sign(x) if order else value)

    return function


def bessel_i(order: int) -> Function:
    return lambda x: np.exp(np.abs(x)) * bessel_ie(order)(x)


def scaled_k(order: float, x: Array) -> Array:
    """exp(x) K(x) of x > 0: DLMF 10.32.9 and 10.40.2."""

    def near(x: Array) -> Array:
        return _integral(lambda t: np.exp(-x[:, None] * 2 * np.sinh(t / 2) ** 2) * np.cosh(order * t), _reach(x), 128)

    return _split(x, near, lambda x: sum(_hankel(order, x)) * np.sqrt(math.pi / 2) / np.sqrt(x))


def bessel_ke(order: int) -> Function:
    return lambda x: np.where(x == 0, np.inf, scaled_k(order, x))


def bessel_k(order: int) -> Function:
    return lambda x: np.where(x == 0, np.inf, scaled_k(order, x) * np.exp(-x))


def spherical_bessel_j0(x: Array) -> Array:
    return np.where(np.isinf(x), 0, np.sinc(np.where(np.isinf(x), 0, x) / math.pi))


def erfcx(x: Array) -> Array:
    """2 / sqrt(pi) times the integral of exp(-t^2 - 2 x t) over t > 0 (DLMF 7.7.1), below 0 by symmetry."""
    size = np.abs(x)[:, None]
    scale = 1 / np.maximum(1, size)
    value = _integral(lambda t: np.exp(-((t * scale) ** 2) - 2 * size * t * scale), 30.0, 32) * scale[:, 0]
    value = value * 2 / math.sqrt(math.pi)
    value = np.where(np.isinf(x), 0.0, value)
    return np.where(x < 0, 2 * np.exp(x * x) - value, value)


def ndtr(x: Array) -> Array:
    return 0.5 * (1 + of_math(math.erf)(x / math.sqrt(2)))


def log_ndtr(x: Array) -> Array:
    low = np.where(np.isinf(x), x, np.log(0.5 * erfcx(-np.minimum(x, 0) / math.sqrt(2))) - x * x / 2)
    return np.where(x < -1, low, np.log1p(-0.5 * erfc(x / math.sqrt(2))))


def _erfc_inverse(q: Array) -> Array:
    """x >= 0 with erfc(x) = q: by halves, where the logarithms differ."""
    low, high = np.zeros_like(q), np.full_like(q, 28.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = erfc(middle) > q
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2


def erfinv(y: Array) -> Array:
    size = np.minimum(np.abs(y), 1)
    low, high = np.zeros_like(size), np.ones_like(size)
    for _ in range(60):
        middle = (low + high) / 2
        below = of_math(math.erf)(middle) < size
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    x = np.where(size < 1e-7, size * math.sqrt(math.pi) / 2, np.where(size < 0.7, high, _erfc_inverse(1 - size)))
    return np.where(np.abs(y) > 1, np.nan, np.where(size == 1, np.inf, x) * np.sign(y))


def ndtri(p: Array) -> Array:
    tail = np.clip(np.minimum(p, 1 - p), 0, 0.5)
    x = np.where(tail == 0, np.inf, _erfc_inverse(2 * tail)) * np.sign(p - 0.5) * math.sqrt(2)
    return np.where((p < 0) | (p > 1), np.nan, x)


def lgamma(x: Array) -> Array:
    def single(x: float) -> float:
        return math.inf if math.isinf(x) or (x <= 0 and x == math.floor(x)) else math.lgamma(x)

    return of_math(single)(x)


def digamma(x: Array) -> Array:
    """DLMF 5.5.2 up to 20, then 5.11.2; reflection, 5.5.4."""
    reflected = x < 0
    z = np.where(reflected, 1 - x, x)
    below = np.zeros_like(z)
    for _ in range(20):
        small = z < 20
        below, z = np.where(small, below - 1 / z, below), np.where(small, z + 1, z)
    square = 1 / z**2
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132))))
    value = below + np.log(z) - 0.5 / z - series
    value = np.where(reflected, value - math.pi / np.tan(math.pi * np.fmod(x, 1)), value)
    value = np.where(reflected & (x == np.floor(x)), np.nan, value)
    return np.where(x == 0, np.copysign(np.inf, -x), value)


def zeta(s: Array, q: Array) -> Array:
    """Hurwitz: the sum of (q + k)^-s over k >= 0, by Euler and Maclaurin's formula (DLMF 25.11.7)."""
    a, total = q.copy(), np.zeros(np.broadcast_shapes(s.shape, q.shape))
    steps = 12 + int(np.ceil(np.clip(-np.min(q, initial=0, where=np.isfinite(q)), 0, 1e4)))
    for _ in range(steps):
        total = total + np.power(a, -s)
        a = a + 1
    last, head = np.power(a, -s), total
    total = total + last * a / (s - 1) + last / 2
    rising = s / a
    factorial_over_bernoulli = (12, -720, 30240, -1209600, 47900160, -1307674368000 / 691, 74724249600)
    for k, divisor in enumerate(factorial_over_bernoulli):
        total = total + last * rising / divisor
        rising = rising * (s + 2 * k + 1) * (s + 2 * k + 2) / a**2
    total = np.where((last == 0) & (head != 0), head, total)
    total = np.where((q <= 0) & (s != np.floor(s)), np.nan, total)
    total = np.where((q <= 0) & (q == np.floor(q)), np.inf, total)
    return np.where(s == 1, np.inf, np.where(s < 1, np.nan, total))


def _trigamma(x: Array) -> Array:
    """Six steps of recurrence and three terms of DLMF 5.15.8, as PyTorch has it, which is exact to 2e-10."""
    z, total = np.where(x < 0.5, 1 - x, x), np.zeros_like(x)
    for _ in range(6):
        total, z = total + 1 / z**2, z + 1
    square = 1 / z**2
    total = total + (1 + 0.5 / z + square * (1 / 6 - square * (1 / 30 - square / 42))) / z
    return np.where(x < 0.5, (math.pi / np.sin(math.pi * x)) ** 2 - total, total)


def polygamma(n: Array, x: Array) -> Array:
    """DLMF 5.15.1. The order is the same everywhere."""
    order = int(n[0]) if n.size else 0
    if order == 0:
        return digamma(x)
    if order == 1:
        return _trigamma(x)
    return np.asarray((-1) ** (order + 1) * math.factorial(order) * zeta(np.full_like(x, order + 1), x))


def igamma(a: Array, x: Array) -> Array:
    """P by its power series (DLMF 8.11.4); for huge arguments the normal distribution that it tends to."""
    a, x = np.broadcast_arrays(a, x)
    inside = (a > 0) & (x > 0) & np.isfinite(a) & np.isfinite(x)
    series = inside & (a < 1e5) & (x < 1e5)
    b, y = np.where(series, a, 1), np.where(series, x, 1)
    term, total = np.ones(b.shape), np.ones(b.shape)
    for k in range(1, int(3 * np.max(y, initial=0)) + 200):
        term = term * y / (b + k)
        total = total + term
        if np.all(term < 1e-18 * total):
            break
    far = 0.5 * erfc(((a - x) / np.sqrt(2 * np.maximum(a, 1))).ravel()).reshape(a.shape)
    value = np.where(series, np.exp(b * np.log(y) - y - lgamma((b + 1).ravel()).reshape(b.shape)) * total, far)
    value = np.where(np.isnan(a + x), np.nan, value)
    border = (
        ((x < 0) | (a < 0), np.nan), (a == 0, np.where(x > 0, 1.0, np.nan)), (x == 0, 0.0),
        (np.isinf(a) & np.isinf(x), np.nan), (np.isinf(a), 0.0), (np.isinf(x), 1.0),
    )  # fmt: skip
    return np.select([condition for condition, _ in border], [limit for _, limit in border], value)


def igammac(a: Array, x: Array) -> Array:
    return 1 - igamma(a, x)


def _recurrence(first: Function, following: Callable[..., Array]) -> Function:
    """p[0] = 1, p[1] = first(x), p[k + 1] = following(k, x, p[k], p[k - 1]); 0 for a negative degree."""

    def function(x: Array, degree: Array) -> Array:
        x, degree = np.broadcast_arrays(x, degree)
        known = (degree > -1) & (degree < 2**63)
        n = np.where(known, np.trunc(degree), -1)
        before, now = np.ones_like(x), first(x)
        result = np.where(n == 0, 1.0, np.where(n == 1, now, 0.0))
        for k in range(1, int(np.max(n, initial=0))):
            before, now = now, following(k, x, now, before)
            result = np.where(n == k + 1, now, result)
        return result

    return function


def _hermite(first: Function, following: Callable[..., Array]) -> Function:
    """NaN above a degree of `limit`."""
    plain = _recurrence(first, following)
    return lambda x, n, limit: np.where(n >= limit + 1, np.nan, plain(x, np.minimum(n, limit)))


def _chebyshev(first: Function, shifted: bool) -> Function:
    plain = _recurrence(first, lambda k, x, p, q: 2 * x * p - q)
    return (lambda x, n: plain(2 * x - 1, n)) if shifted else plain


def special_function(name: str, *x: Array) -> Array:
    """The function called `name`, element by element of arrays that broadcast."""
    wide = np.broadcast_arrays(*(np.asarray(item, np.float64) for item in x))
    return FUNCTIONS[name](*(item.ravel() for item in wide)).reshape(wide[0].shape)


erfc = of_math(math.erfc)
FUNCTIONS: dict[str, Function] = {
    **{f"bessel_{kind}{order}": make(order)
       for kind, make in (("j", bessel_j), ("y", bessel_y), ("i", bessel_i), ("k", bessel_k)) for order in (0, 1)},
    **{f"bessel_{kind}{order}e": make(order)
       for kind, make in (("i", bessel_ie), ("k", bessel_ke)) for order in (0, 1)},
    "spherical_bessel_j0": spherical_bessel_j0, "airy_ai": airy_ai,
    "erfc": erfc, "erfcx": erfcx, "erfinv": erfinv, "ndtr": ndtr, "log_ndtr": log_ndtr, "ndtri": ndtri,
    "lgamma": lgamma, "digamma": digamma, "polygamma": polygamma, "zeta": zeta, "igamma": igamma, "igammac": igammac,
    **{f"{prefix}chebyshev_{kind}": _chebyshev(first, bool(prefix))
       for prefix in ("", "shifted_")
       for kind, first in (("t", lambda x: x), ("u", lambda x: 2 * x), ("v", lambda x: 2 * x - 1),
                           ("w", lambda x: 2 * x + 1))},
    "hermite_h": _hermite(lambda x: 2 * x, lambda k, x, p, q: 2 * x * p - 2 * k * q),
    "hermite_he": _hermite(lambda x: x, lambda k, x, p, q: x * p - k * q),
    "laguerre_l": _recurrence(lambda x: 1 - x, lambda k, x, p, q: ((2 * k + 1 - x) * p - k * q) / (k + 1)),
    "legendre_p": _recurrence(lambda x: x, lambda k, x, p, q: ((2 * k + 1) * x * p - k * q) / (k + 1)),
}  # fmt: skip
