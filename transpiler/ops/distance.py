"""Distances between rows: cdist and pdist as norms of differences."""

from __future__ import annotations

from typing import Any

import numpy as np

from transpiler.ir import Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, aten, broadcast_shapes
from transpiler.ops.creation import Full
from transpiler.ops.dtypes import out_type
from transpiler.ops.statistics import norm


@aten("_cdist_forward.default", "cdist.default")
def _cdist(context: ImportContext, x1: Value, x2: Value, p: float = 2.0, compute_mode: int | None = None) -> Any:
    """x1[..., P, M], x2[..., R, M] -> [..., P, R].

    Always from the differences: the form by a matrix product, which PyTorch takes for many rows, loses digits.
    """
    out = out_type(context)
    if 0 in out.shape or x1.shape[-1] == 0:
        return context.emit(Full(0.0, out.shape, out.dtype))
    rows = compose.reshape(context, x1, (*x1.shape[:-1], 1, x1.shape[-1]))
    columns = compose.reshape(context, x2, (*x2.shape[:-2], 1, *x2.shape[-2:]))
    batch = broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    difference = compose.sub(context, rows, columns)
    assert difference.shape[:-3] == batch
    return norm(context, difference, p, -1, False)


@aten("_pdist_forward.default", "pdist.default")
def _pdist(context: ImportContext, x: Value, p: float = 2.0) -> Any:
    """The distances of rows i < j of x[N, M], in the order of the upper triangle."""
    out = out_type(context)
    if not isinstance(x.shape[0], int):
        raise context.unsupported("pdist of a symbolic number of rows")
    if 0 in out.shape or x.shape[1] == 0:
        return context.emit(Full(0.0, out.shape, out.dtype))
    first, second = (places.astype(np.int64) for places in np.triu_indices(x.shape[0], 1))
    a = compose.take(context, x, context.array(first), 0)
    b = compose.take(context, x, context.array(second), 0)
    return norm(context, compose.sub(context, a, b), p, -1, False)
