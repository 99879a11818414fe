"""Winograd's transforms of one tile, as vectors of 16 channels (see transpiler/ops/winograd.py for the points).

Both are two passes of a one-dimensional transform, over columns and then over rows. A pass keeps the even and the odd
part of each pair of points, so that the values at +p and -p share their multiplications.

Factors are read from memory: LLVM keeps literals in registers over all loops, and the products' accumulators, which
need every register, went through the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from transpiler.ops.winograd import POINTS

from ..tir import LANES, Buffer, local, splat

Expr = Any


# A constant, in the form of what it multiplies.
Factor = Callable[[float], Expr]


class Factors:
    """Numbers to multiply by, stored in a buffer when this is made."""

    def __init__(self, buffer: Buffer, values: Sequence[float]) -> None:
        self._buffer, self._values = buffer, list(values)
        for place, value in enumerate(values):
            buffer.store(place, tirx.const(value, "float32"))

    def __call__(self, value: float) -> Expr:
        """A vector with `value` in all lanes."""
        return splat(self._buffer[self._values.index(value)])


def transform_factors(tile: int) -> set[float]:
    """What `input_line` and `output_line` multiply by."""
    squares = [p * p for p in POINTS[tile]]
    values = {p**power for p in POINTS[tile] for power in range(tile)} | set(_polynomial(squares))
    for p in POINTS[tile]:
        others = _polynomial([square for square in squares if square != p * p])
        values |= {*others, *(p * factor for factor in others)}
    return values - {0.0, 1.0}


def _scaled(value: Expr, factor: float, factors: Factor) -> Expr:
    return value if factor == 1.0 else value * factors(factor)


def _polynomial(roots: Sequence[float]) -> list[float]:
    """Coefficients of prod(t - root), lowest first."""
    result = [1.0]
    for root in roots:
        result = [low - root * high for low, high in zip([0.0, *result], [*result, 0.0], strict=True)]
    return result


def _sum(terms: Sequence[tuple[float, Expr]], factors: Factor) -> Expr:
    """The terms with factors other than 0; those of factor 1 first, so that the others are multiply-adds onto them."""
    ordered = sorted((term for term in terms if term[0] != 0.0), key=lambda term: term[0] != 1.0)
    (factor, value), *rest = ordered
    total = _scaled(value, factor, factors)
    for factor, value in rest:
        total = total + _scaled(value, factor, factors)
    return total


def input_line(tile: int, line: Sequence[Expr], factors: Factor) -> list[Expr]:
    """B^T d: `tile` + 2 values of a line of the map at the points 0, +p, -p, ..., infinity.

    Each is the line times a polynomial's coefficients: all points' roots but its own. A line of `tile` + 1 values has
    none at infinity.
    """
    squares = [p * p for p in POINTS[tile]]
    whole = _polynomial(squares)  # in t = x^2
    result = [_sum([(factor, line[2 * power]) for power, factor in enumerate(whole)], factors)]
    for p in POINTS[tile]:
        others = _polynomial([square for square in squares if square != p * p])
        even = [(factor, line[2 * power + 2]) for power, factor in enumerate(others)]
        odd = [(p * factor, line[2 * power + 1]) for power, factor in enumerate(others)]
        sums = [_sum(terms, factors) for terms in (even, odd)]
        result += [sums[0] + sums[1], sums[0] - sums[1]]
    if len(line) == tile + 2:
        result.append(_sum([(factor, line[2 * power + 1]) for power, factor in enumerate(whole)], factors))
    return result


def output_line(tile: int, line: Sequence[Expr], factors: Factor) -> list[Expr]:
    """A^T m: the `tile` outputs of a line of products at the points, with or without infinity."""
    zero, *pairs = line[: tile + 1]
    sums = [pairs[2 * i] + pairs[2 * i + 1] for i in range(len(POINTS[tile]))]
    differences = [pairs[2 * i] - pairs[2 * i + 1] for i in range(len(POINTS[tile]))]
    result = []
    for power in range(tile):
        parts = differences if power % 2 else sums
        terms = [(p**power, part) for p, part in zip(POINTS[tile], parts, strict=True)]
        if power == 0:
            terms.insert(0, (1.0, zero))
        if power == tile - 1:
            terms[:0] = [(1.0, infinity) for infinity in line[tile + 1 :]]
        result.append(_sum(terms, factors))
    return result


def strided_input_line(tile: int, line: Sequence[Expr], factors: Factor) -> list[Expr]:
    """The same at stride 2: the even places at the points, then the odd ones as they are."""
    return [*input_line(tile, line[0::2], factors), *line[1::2]]


def strided_output_line(tile: int, line: Sequence[Expr], factors: Factor) -> list[Expr]:
    """The outputs of both parts."""
    points, plain = line[: tile + 1], line[tile + 1 :]
    return [a + b for a, b in zip(output_line(tile, points, factors), plain, strict=True)]


class _Counted:
    """A number that counts the operations on it and its like."""

    def __init__(self) -> None:
        self.operations = 0

    def _operation(self, _other: _Counted) -> _Counted:
        self.operations += 1
        return self

    __add__ = __sub__ = __mul__ = _operation


def operations(transform: Callable[..., list[Any]], tile: int, lines: int, length: int) -> int:
    """Additions and multiplications of a one-dimensional transform of `lines` lines of `length` values."""
    value = _Counted()
    transform(tile, [value] * length, lambda _factor: value)
    return lines * value.operations


class Lines:
    """A square of vectors between the two passes: one buffer per line."""

    def __init__(self, lines: int, width: int) -> None:
        self._lines = [local(width * LANES) for _ in range(lines)]

    def store_column(self, column: int, values: Sequence[Expr]) -> None:
        for line, value in zip(self._lines, values, strict=True):
            line.store_vector(column * LANES, value)

    def line(self, number: int, width: int) -> list[Expr]:
        return [self._lines[number].vector(column * LANES) for column in range(width)]


def stored(values: Sequence[Expr]) -> Buffer:
    """The vectors side by side in one buffer."""
    buffer = local(len(values) * LANES)
    for position, value in enumerate(values):
        buffer.store_vector(position * LANES, value)
    return buffer
