"""Facts about dtypes, and the small helpers that every op file needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from transpiler.dims import Dim, SymExpr
from transpiler.ir import Array, TensorType
from transpiler.ops.base import ImportContext, rng

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTS = ("uint8", "int8", "int16", "int32", "int64")
_WIDTH = {"uint8": 8, "int8": 8, "int16": 16, "int32": 32, "int64": 64}
# Low-precision sums, and arithmetic with a Python number, are computed in float32 as PyTorch's `opmath` does.
HALF = ("float16", "bfloat16")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of an IR dtype name."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def category(dtype: str) -> int:
    """0 bool, 1 integer, 2 float."""
    return 0 if dtype == "bool" else 1 if dtype in INTS else 2


def promote_dtypes(a: str, b: str) -> str:
    """`torch.promote_types`: the smallest dtype that holds both.

    Source: c10/core/ScalarType.cpp (float16 with bfloat16 is float32, uint8 with int8 is int16).
    """
    if a == b:
        return a
    if category(a) != category(b):
        return a if category(a) > category(b) else b
    if category(a) == 2:
        return "float32" if {a, b} == set(HALF) else max(a, b, key=FLOATS.index)
    if _WIDTH[a] != _WIDTH[b]:
        return max(a, b, key=_WIDTH.__getitem__)
    return "int16"


def static(shape: Sequence[Dim]) -> tuple[int, ...]:
    """The sizes as ints, for references. Raises IRError if one is symbolic."""
    return TensorType("int64", tuple(shape)).static_shape()


def out_type(context: ImportContext) -> TensorType:
    """The type PyTorch gives the (first) output."""
    return context.out_types()[0]


def plain(value: Any, dtype: str) -> Any:
    """A number as the Python type of a dtype's category; a symbolic size stays. Negative ones wrap in uint8."""
    if isinstance(value, SymExpr):
        return value
    if dtype == "uint8":
        return int(value) % 256
    return (bool, int, float)[category(dtype)](value)


def lowest(dtype: str) -> float | int:
    """The identity of max: -inf, or the smallest integer."""
    return float("-inf") if category(dtype) == 2 else int(np.iinfo(dtype).min)


def highest(dtype: str) -> float | int:
    """The identity of min: inf, or the largest integer."""
    return float("inf") if category(dtype) == 2 else int(np.iinfo(dtype).max)


def draw(seed: str, dtype: str, *shape: int, low: float = -4, high: float = 5) -> Array:
    """Sample data: floats are uniform in [low, high), integers inclusive of neither extreme of the dtype."""
    generator = rng(f"{seed} {dtype} {shape}")
    if dtype == "bool":
        return generator.random(shape) < 0.5
    if category(dtype) == 2:
        return np.asarray(generator.uniform(low, high, shape)).astype(numpy_dtype(dtype))
    return generator.integers(max(int(low), 0) if dtype == "uint8" else int(low), int(high), shape).astype(dtype)


# Where float functions go wrong: zeros, NaN, infinities, a denormal, a large and a small number.
CORNERS = np.array([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-40, 3.5, -2.5, 0.5, 1e30, -1e-20], np.float32)


def corner_pairs() -> tuple[Array, Array]:
    """Every corner value against every other: two arrays of shape (n, n)."""
    left, right = np.meshgrid(CORNERS, CORNERS, indexing="ij")
    return left.copy(), right.copy()
