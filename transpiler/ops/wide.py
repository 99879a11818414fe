"""Arithmetic dtype: half floats are computed in float32, as PyTorch's CPU kernels do, and rounded once."""

from __future__ import annotations

import numpy as np

from transpiler.ir import Array
from transpiler.ops.base import Expr, Scalar
from transpiler.ops.dtypes import HALF


def wide_dtype(dtype: str) -> str:
    """float32 for a half float, any other dtype itself."""
    return "float32" if dtype in HALF else dtype


def widen(x: Array) -> Array:
    """`x` in the dtype it is computed in."""
    return x.astype(np.float32) if str(x.dtype) in HALF else x


def narrow(x: Array, like: Array) -> Array:
    """A result computed on widened inputs, in the dtype of `like`."""
    return x.astype(like.dtype, copy=False)


def widen_expr(s: Scalar, x: Expr) -> Expr:
    """`widen` on a target expression."""
    dtype = s.dtype(x)
    return s.cast(x, wide_dtype(dtype)) if dtype in HALF else x


def narrow_expr(s: Scalar, x: Expr, dtype: str) -> Expr:
    """`narrow` on a target expression."""
    return s.cast(x, dtype) if dtype in HALF else x
