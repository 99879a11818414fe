"""Arguments and helpers that the tables of overloads share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from tests.conformance.eager import compare
from transpiler.ops.dtypes import corner_pairs, draw

Case = tuple[Any, ...]

F, G = draw("f", "float32", 3, 1, 5), draw("g", "float32", 4, 5)
ROW = draw("row", "float32", 5)
HALF, BRAIN = draw("half", "float16", 4, 5), draw("brain", "bfloat16", 4, 5)
DOUBLE = draw("double", "float64", 4, 5)
K, J = draw("i", "int64", 3, 1, 5, low=-9, high=10), draw("j", "int64", 4, 5, low=1, high=7)
I32, U8, I8 = draw("i32", "int32", 4, 5), draw("u8", "uint8", 4, 5), draw("i8", "int8", 4, 5)
B, C = draw("b", "bool", 3, 1, 5), draw("c", "bool", 4, 5)
SCALAR_F, SCALAR_I = np.array(2.5, np.float32), np.array(3, np.int64)
X = draw("x", "float32", 3, 4, 5)
N = draw("n", "int64", 3, 4, 5)
# PyTorch's vectorised fmod gives NaN for huge ratios, its scalar one and C's do not: they are left out.
FINITE_RATIOS = tuple(np.where(np.abs(array) < 1e-10, np.float32(0.25), array) for array in corner_pairs())
EMPTY = draw("empty", "float32", 0, 5)
NANS = draw("nans", "float32", 3, 7)
NANS[0, 2], NANS[1, 0], NANS[2, 5], NANS[2, 6] = np.nan, np.inf, -np.inf, np.nan


class Named:
    """Keyword arguments of a case."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


def cases(table: Iterable[Case]) -> list[Any]:
    return [pytest.param(case, id=f"{case[0]}-{number}") for number, case in enumerate(table)]


def check(case: Case, **tolerance: float) -> None:
    overload, *arguments = case
    named = arguments.pop().arguments if arguments and isinstance(arguments[-1], Named) else {}
    compare(overload, *arguments, **named, **tolerance)
