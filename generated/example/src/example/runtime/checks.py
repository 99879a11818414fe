"""When an array equals PyTorch's: the tolerance, what is compared, and messages that say what is wrong where.

Per float output, with y64 PyTorch's result in float64 and `torch` its result in the model's own precision:

    max|y - y64|  <=  FACTOR_TORCH * max|torch - y64|  +  factor_eps(dtype) * eps * max|y64|

so an output may be a few times as inexact as PyTorch itself, plus a few roundings. A package of lower precision is
compared in the same way, with `torch` PyTorch's result rounded where the precision allows it, and eps that of the
smaller type. Integers and bools must be
equal. Where PyTorch gives NaN or an infinity in both precisions, so must the output; positions where its two
precisions disagree (one overflows, a tie of an argmax) say nothing and are excluded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

FACTOR_TORCH = 4
FACTOR_EPS = 128
# Half floats are summed in float32, so that few roundings are their own; 128 of bfloat16 would allow anything.
FACTOR_EPS_HALF = 4

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Below the smallest normal number the spacing of floats no longer shrinks with the value.
_TINY = {
    "float64": 2.0**-1022,
    "float32": 2.0**-126,
    "tf32": 2.0**-126,
    "float16": 2.0**-14,
    "bfloat16": 2.0**-126,
}
_COARSE = ("float16", "bfloat16", "tf32")


@dataclass(frozen=True)
class Expected:
    """What PyTorch computed for one tensor.

    `torch` and `float64` are flat: every element, or those at `positions` of a tensor too large to keep.
    `norms` are the 2-norms of consecutive equal parts of the whole y64 (NaN where a part holds positions that
    are not compared as numbers), so that elements outside the sample are checked too. `excluded` counts
    positions left out, `requested` is how many positions were asked for: with it they are drawn again instead
    of stored. `precision` is what float32 may have been rounded to on the way, "" if to nothing.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    torch: Array
    float64: Array
    tolerance: float
    excluded: int
    positions: Array | None = None
    norms: Array | None = None
    requested: int | None = None
    precision: str = ""


@dataclass(frozen=True)
class Comparison:
    """The largest absolute error among the compared elements, and what is wrong ("" if nothing).

    Besides, relative to the tensor: the largest error by the largest magnitude, and the 2-norm of the errors by that of
    the values.
    """

    max_error: float
    message: str
    max_relative: float = 0.0
    rms_relative: float = 0.0


def is_float(dtype: str) -> bool:
    return dtype in EPS


def unit(dtype: str, precision: str = "") -> str:
    """The type whose roundings count: the smaller of a tensor's own and what it was computed in."""
    return precision if precision in _COARSE and dtype == "float32" else dtype


def factor_eps(dtype: str) -> int:
    """How many roundings of the largest value are allowed."""
    return FACTOR_EPS_HALF if dtype in _COARSE else FACTOR_EPS


def meaningful_ratio(dtype: str) -> int:
    """How many tolerances some value of a useful output exceeds."""
    return 4 if dtype in _COARSE else 100


def comparable(torch: Array, float64: Array) -> Array:
    """True where both are finite (floats) or equal (integers, bools): what can be compared as numbers."""
    if torch.dtype.kind == "f":
        return np.asarray(np.isfinite(torch) & np.isfinite(float64))
    return np.asarray(torch == float64)


def same_kind(torch: Array, float64: Array) -> Array:
    """True where both are NaN, or both the same infinity."""
    if torch.dtype.kind != "f":
        return np.zeros(torch.shape, bool)
    both_nan = np.isnan(torch) & np.isnan(float64)
    return np.asarray(both_nan | (np.isinf(torch) & (torch == float64)))


def tolerance_of(torch: Array, float64: Array, dtype: str, precision: str = "") -> float:
    """The tolerance of a tensor, over positions where both references are finite; 0 for integers, bools."""
    if not is_float(dtype):
        return 0.0
    use = comparable(torch, float64)
    if not use.any():
        return 0.0
    exact = float64[use].astype(np.float64)
    error = float(np.max(np.abs(torch[use].astype(np.float64) - exact)))
    kind = unit(dtype, precision)
    scale = max(float(np.max(np.abs(exact))), _TINY[kind])
    return FACTOR_TORCH * error + factor_eps(kind) * EPS[kind] * scale


def part_norms(values: Array, usable: Array | None, parts: int) -> Array:
    """2-norms of consecutive parts of the flat `values`; NaN where a part has an element not `usable`."""
    flat = values.reshape(-1).astype(np.float64)
    if usable is not None:
        flat = np.where(usable.reshape(-1), flat, np.nan)
    return np.asarray([np.sqrt(np.sum(part * part)) for part in np.array_split(flat, parts)])


def compare(expected: Expected, got: Any, where: str = "") -> Comparison:
    """Compare one output with PyTorch's; `where` says which case it belongs to."""
    label = f"{expected.name!r}" + (f" of {where}" if where else "")
    if not isinstance(got, np.ndarray):
        return Comparison(float("inf"), f"{label}: expected a numpy array, got {type(got).__name__}")
    want_dtype = "float32" if expected.dtype == "bfloat16" else expected.dtype
    if got.dtype.name not in (want_dtype, expected.dtype):
        return Comparison(float("inf"), f"{label}: expected dtype {want_dtype}, got {got.dtype.name}")
    if got.shape != expected.shape:
        return Comparison(float("inf"), f"{label}: expected shape {expected.shape}, got {got.shape}")
    flat = np.ascontiguousarray(got).reshape(-1)
    if got.dtype.name == "bfloat16":
        flat = flat.astype(np.float32)
    taken = flat if expected.positions is None else flat[expected.positions]
    with np.errstate(all="ignore"):
        elements = _compare_elements(expected, taken, label)
        if elements.message or expected.norms is None:
            return elements
        message = _compare_norms(expected, flat, label)
        return Comparison(elements.max_error, message, elements.max_relative, elements.rms_relative)


def check(expected: Expected, got: Any, where: str = "") -> None:
    """Assert that an output equals PyTorch's."""
    comparison = compare(expected, got, where)
    assert not comparison.message, comparison.message


def _compare_elements(expected: Expected, got: Array, label: str) -> Comparison:
    as_numbers = comparable(expected.torch, expected.float64)
    as_kind = same_kind(expected.torch, expected.float64)
    if expected.torch.dtype.kind == "f":
        error = np.abs(got.astype(np.float64) - expected.float64.astype(np.float64))
        error = np.where(np.isfinite(got), error, np.inf)
        kind_ok = np.where(np.isnan(expected.torch), np.isnan(got), got == expected.torch)
    else:
        error = (got != expected.torch).astype(np.float64)
        kind_ok = np.ones(got.shape, bool)
    error = np.where(as_numbers, error, np.where(as_kind & ~kind_ok, np.inf, 0.0))
    worst_error = float(error.max(initial=0.0))
    relative = _relative(error[as_numbers], expected.float64[as_numbers])
    off = int(np.count_nonzero(error > expected.tolerance))
    if not off:
        return Comparison(worst_error, "", *relative)
    worst = int(np.argmax(error))
    flat = worst if expected.positions is None else int(expected.positions[worst])
    index = [int(i) for i in np.unravel_index(flat, expected.shape)] if expected.shape else []
    return Comparison(
        worst_error,
        f"{label}: {off} of {error.size} compared elements are off; worst at {index}: got {got[worst]!s}, "
        f"PyTorch {expected.torch[worst]!s}, in float64 {expected.float64[worst]!s}, "
        f"error {worst_error:.6g} > tolerance {expected.tolerance:.6g}",
        *relative,
    )


def _relative(error: Array, float64: Array) -> tuple[float, float]:
    """The largest error by the largest magnitude, and the 2-norm of the errors by that of the values."""
    values = np.abs(float64.astype(np.float64))
    largest = float(values.max(initial=0.0))
    if largest == 0 or not np.isfinite(error).all():
        return 0.0, 0.0
    errors, values = error / largest, values / largest
    return float(errors.max()), float(np.sqrt(np.sum(errors * errors) / np.sum(values * values)))


def _compare_norms(expected: Expected, got: Array, label: str) -> str:
    """|y - y64| <= t for each of n elements implies | ||y|| - ||y64|| | <= sqrt(n) * t."""
    assert expected.norms is not None
    parts = len(expected.norms)
    norms = part_norms(got, None, parts)
    sizes = np.asarray([len(part) for part in np.array_split(got, parts)])
    allowed = np.sqrt(sizes) * expected.tolerance + 1e-9 * np.abs(expected.norms)
    error = np.abs(norms - expected.norms)
    bad = ~np.isnan(expected.norms) & ~(error <= allowed)
    if not bad.any():
        return ""
    first = int(np.argmax(bad))
    return (
        f"{label}: the 2-norm of part {first} of {parts} (in flat order) is {norms[first]:.9g}, "
        f"in float64 {expected.norms[first]:.9g}, allowed difference {allowed[first]:.3g}; "
        f"{int(bad.sum())} parts are off"
    )


def expected_from_json(
    data: Mapping[str, Any], arrays: Mapping[str, Array], positions: Array | None
) -> Expected:
    """An `Expected` from its entry in cases.json and its arrays `<key>/torch`, `/float64` and `/norms`."""
    key = data["key"]
    return Expected(
        name=data["name"],
        dtype=data["dtype"],
        shape=tuple(data["shape"]),
        torch=arrays[f"{key}/torch"],
        float64=arrays[f"{key}/float64"],
        tolerance=data["tolerance"],
        excluded=data["excluded"],
        positions=positions,
        norms=arrays.get(f"{key}/norms"),
        requested=data["sample"],
        precision=data.get("precision", ""),
    )
