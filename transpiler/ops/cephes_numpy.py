"""Bessel functions of the first and second kind and Airy's Ai as PyTorch computes them, in numpy and float64.

PyTorch takes the rational approximations of the Cephes library without the leading 1 of their monic denominators, which
is off by 3e-6 at worst. A package promises PyTorch's numbers, so its formulas are the meaning here and not the
functions' definitions. Source of the formulas: aten/src/ATen/native/Math.h; the coefficients have one home,
`templates/runtime/cpu/special_cephes.h`. Functions take and return flat float64 arrays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from transpiler.ir import Array
from transpiler.resources import tree


@cache
def _tables() -> Mapping[str, tuple[float, ...]]:
    text = (tree("templates") / "runtime" / "cpu" / "special_cephes.h").read_text()
    found = re.findall(r"double (\w+)\[\] = \{([^}]*)\}", text)
    return {name: tuple(float(number) for number in body.split(",") if number.strip()) for name, body in found}


def _ratio(numerator: str, denominator: str, x: Array) -> Array:
    return np.asarray(np.polyval(_tables()[numerator], x) / np.polyval(_tables()[denominator], x))


def _wave(order: int, x: Array, second: bool) -> Array:
    """J or Y of x > 5."""
    z, t = 25 / (x * x), x - (0.25 + 0.5 * order) * math.pi
    p, q = _ratio(f"J{order}_PP", f"J{order}_PQ", z), 5 / x * _ratio(f"J{order}_QP", f"J{order}_QQ", z)
    wave = p * np.sin(t) + q * np.cos(t) if second else p * np.cos(t) - q * np.sin(t)
    return np.asarray(wave * math.sqrt(2 / math.pi) / np.sqrt(x))


def _first_kind(order: int, x: Array) -> Array:
    size, z = np.abs(x), x * x
    near = _ratio(f"J{order}_RP", f"J{order}_RQ", z)
    if order == 0:
        near = np.where(size < 1e-5, 1 - z / 4, near * (z - 5.78318596294678452118) * (z - 30.4712623436620863991))
        return np.where(size > 5, _wave(0, size, False), near)
    near = near * x * (z - 14.6819706421238932572) * (z - 49.2184563216946036703)
    return np.where(size > 5, np.sign(x) * _wave(1, size, False), near)


def _second_kind(order: int, x: Array) -> Array:
    near = _ratio(f"Y{order}_YP", f"Y{order}_YQ", x * x) * (x if order else 1)
    near = near + 2 / math.pi * (_first_kind(order, x) * np.log(x) - (1 / x if order else 0))
    return np.where(x > 0, np.where(x > 5, _wave(order, x, True), near), np.where(x == 0, -np.inf, np.nan))


def bessel_j(order: int) -> Callable[[Array], Array]:
    return lambda x: _first_kind(order, x)


def bessel_y(order: int) -> Callable[[Array], Array]:
    return lambda x: _second_kind(order, x)


def airy_ai(x: Array) -> Array:
    """Beyond 2.09 asymptotic forms with fitted factors, in between the Maclaurin series (DLMF 9.4.1)."""
    size = np.abs(x)
    zeta, scale = size * np.sqrt(size) / 1.5, 1 / np.sqrt(math.pi * np.sqrt(size))
    decay = np.where(x > 103.892, 0, 0.5 * scale * np.exp(-zeta) * _ratio("AIRY_N", "AIRY_D", 1 / zeta))
    t, z = zeta + 0.25 * math.pi, 1 / (zeta * zeta)
    sine = np.sin(t) * (1 + z * _ratio("AIRY_FN", "AIRY_FD", z))
    waves = scale * (sine - np.cos(t) * _ratio("AIRY_GN", "AIRY_GD", z) / zeta)
    f, g, a, b = np.ones_like(x), x.copy(), np.ones_like(x), x.copy()
    for k in range(3, 60, 3):
        a, b = a * x**3 / (k * (k - 1)), b * x**3 / (k * (k + 1))
        f, g = f + a, g + b
    near = 0.35502805388781723926 * f - 0.25881940379280679841 * g
    return np.where(np.isinf(x), np.nan, np.where(size < 2.09, near, np.where(x > 0, decay, waves)))
