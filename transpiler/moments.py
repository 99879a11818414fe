"""Comparing random outputs: the mean and the mean square of many runs, and how far apart two such sets may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

RUNS = 32
# Standard errors that two means may be apart: by chance once in about ten million comparisons.
DEVIATIONS = 6.0

# Per output: [mean, its standard error, mean square, its standard error]; None if a run had a value that is not finite.
Moments = list[float] | None


def moments(run: Callable[[int], Sequence[Array]], runs: int = RUNS) -> list[Moments]:
    """The moments of every output of `run(seed)` over seeds 0, 1, ..., runs - 1."""
    rows = [[_summary(array) for array in run(seed)] for seed in range(runs)]
    return [_over_runs(np.asarray(column)) for column in zip(*rows, strict=True)]


def _summary(array: Array) -> tuple[float, float]:
    values = array.astype(np.float64)
    return (float(values.mean()), float(np.square(values).mean())) if values.size else (0.0, 0.0)


def _over_runs(rows: Array) -> Moments:
    if not np.isfinite(rows).all():
        return None
    errors = rows.std(axis=0, ddof=1) / math.sqrt(len(rows))
    means = rows.mean(axis=0)
    return [float(means[0]), float(errors[0]), float(means[1]), float(errors[1])]


def difference(expected: Moments, got: Moments) -> str:
    """What is wrong with `got`, "" if nothing."""
    if expected is None or got is None:
        return "" if expected is got else "one is finite, the other is not"
    for name, at in (("mean", 0), ("mean square", 2)):
        spread = math.hypot(expected[at + 1], got[at + 1])
        allowed = DEVIATIONS * spread + 1e-5 * abs(expected[at])
        if not abs(expected[at] - got[at]) <= allowed:
            return f"the {name} is {got[at]:.6g}, PyTorch's {expected[at]:.6g}, allowed difference {allowed:.3g}"
    return ""
