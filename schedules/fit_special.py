"""Fits the Chebyshev series of `templates/runtime/cpu/special_tables.h` and writes it (needs mpmath).

    python -m schedules.fit_special > templates/runtime/cpu/special_tables.h

A series interpolates its function at Chebyshev nodes, in 40 digits; terms below 1e-17 of the largest are cut. The
intervals and variables are those that C. W. Clenshaw, "Chebyshev series for mathematical functions" (National Physical
Laboratory, Mathematical Tables 5, 1962) introduced for Bessel functions; the coefficients are computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

NODES = 64


def chebyshev(function: Callable[[Any], Any], low: float, high: float) -> list[Any]:
    """c with function(x) = c[0]/2 + c[1] T1(y) + c[2] T2(y) + ..., y = x mapped to [-1, 1]."""
    import mpmath as mp

    middle, radius = (mp.mpf(high) + low) / 2, (mp.mpf(high) - low) / 2
    angles = [mp.pi * (2 * k + 1) / (2 * NODES) for k in range(NODES)]
    values = [function(middle + radius * mp.cos(angle)) for angle in angles]
    series = [
        2 * mp.fsum(value * mp.cos(j * angle) for value, angle in zip(values, angles, strict=True)) / NODES
        for j in range(NODES)
    ]
    largest = max(map(abs, series))
    last = max(j for j in range(NODES) if abs(series[j]) > 1e-17 * largest)
    assert last < NODES - 4, "more nodes are needed"
    return series[: last + 1]


def tables() -> Iterator[tuple[str, str, list[Any]]]:
    """Name, what it approximates, coefficients."""
    import mpmath as mp

    for order in (0, 1):
        yield from _bessel(order)
    yield (
        "ERFCX",
        "exp(x^2) erfc(x), x in [0, 50], in 4 / (4 + x)",
        chebyshev(lambda y: mp.exp((4 / y - 4) ** 2) * mp.erfc(4 / y - 4), 4 / 54, 1),
    )


def _bessel(order: int) -> Iterator[tuple[str, str, list[Any]]]:
    import mpmath as mp

    def k_small(x: Any) -> Any:
        """K without its singular part, times x**order; x > 0."""
        if order == 0:
            return mp.besselk(0, x) + mp.log(x / 2) * mp.besseli(0, x)
        return x * (mp.besselk(1, x) - mp.log(x / 2) * mp.besseli(1, x))

    yield (
        f"I{order}_SMALL",
        f"exp(-x) I{order}(x){' / x' * order}, x in [0, 8]",
        chebyshev(lambda x: mp.exp(-x) * mp.besseli(order, x) / x**order, 0, 8),
    )
    yield (
        f"I{order}_LARGE",
        f"sqrt(x) exp(-x) I{order}(x), x >= 8, in 8 / x",
        chebyshev(lambda t: mp.sqrt(8 / t) * mp.exp(-8 / t) * mp.besseli(order, 8 / t), 0, 1),
    )
    yield (
        f"K{order}_SMALL",
        f"K{order}(x) {'+-'[order]} log(x / 2) I{order}(x){', times x' * order}, x in [0, 2], in x^2",
        chebyshev(lambda z: k_small(mp.sqrt(z)), 0, 4),
    )
    yield (
        f"K{order}_LARGE",
        f"sqrt(x) exp(x) K{order}(x), x >= 2, in 2 / x",
        chebyshev(lambda t: mp.sqrt(2 / t) * mp.exp(2 / t) * mp.besselk(order, 2 / t), 0, 1),
    )


def main() -> None:
    import mpmath as mp

    mp.mp.dps = 40
    print("// Chebyshev series for special.c, written by schedules/fit_special.py; do not edit.")
    print("// f = c[0]/2 + c[1] T1 + c[2] T2 + ... on the interval of the variable.")
    for name, meaning, series in tables():
        print(f"\n// {meaning}")
        print(f"static const double {name}[] = {{")
        numbers = [f"{float(value):.17g}," for value in series]
        for start in range(0, len(numbers), 4):
            print("    " + " ".join(numbers[start : start + 4]))
        print("};")


if __name__ == "__main__":
    main()
