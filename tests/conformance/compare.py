"""Whether a kernel's result is as good as it should be. Nothing here needs TVM."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from transpiler.ir import Array
from transpiler.ops.dtypes import HALF


def check(name: str, got: Array, single: Array, double: Array) -> list[str]:
    if got.dtype != single.dtype or got.shape != single.shape:
        return [f"{name}: {got.dtype}{got.shape}, expected {single.dtype}{single.shape}"]
    if not _is_float(got):
        return [] if np.array_equal(got, single) else [f"{name}: {got.ravel()[:8]} expected {single.ravel()[:8]}"]
    kinds = np.where(np.isnan(single), 2, np.where(np.isinf(single), np.sign(single), 0))
    own = np.where(np.isnan(got), 2, np.where(np.isinf(got), np.sign(got), 0))
    if not np.array_equal(kinds, own):
        return [f"{name}: NaN or infinities differ: {got.ravel()[:8]} expected {single.ravel()[:8]}"]
    finite = (kinds == 0) & np.isfinite(double)
    if not finite.any():
        return []
    with np.errstate(all="ignore"):
        double = double.astype(np.float64)
        error = np.abs(got[finite].astype(np.float64) - double[finite]).max()
        base = np.abs(single[finite].astype(np.float64) - double[finite]).max()
        facts = ml_dtypes.finfo(got.dtype)
        eps = float(facts.eps) * (2 if str(got.dtype) in HALF else 128)
        tolerance = 4 * base + eps * max(np.abs(double[finite]).max(), float(facts.tiny))
    return [] if error <= tolerance else [f"{name}: off by {error:.3g}, tolerance {tolerance:.3g}"]


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or str(array.dtype) in HALF
