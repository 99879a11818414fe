"""Inputs of sorts and the like."""

from __future__ import annotations

from typing import Any

import numpy as np

from transpiler.ir import Array


def many_ties(shape: tuple[int, ...], dtype: Any) -> Array:
    """Few different numbers, the limits of the dtype and what is no number among them."""
    g = np.random.default_rng()
    if dtype is np.bool_:
        return g.integers(0, 2, shape).astype(np.bool_)
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        values = np.array([info.min, info.max, info.max - 1, 0, 1, 2, 3], dtype)
        return np.where(g.random(shape) < 0.5, g.choice(values, shape), g.integers(0, 100, shape).astype(dtype))
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-7, -1e-7], dtype)
    return np.where(g.random(shape) < 0.3, g.choice(values, shape), g.standard_normal(shape).astype(dtype))
