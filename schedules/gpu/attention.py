"""What the attention of all GPUs shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from transpiler.dims import Dim, floordiv
from transpiler.ir import Value
from transpiler.ops.attention import MASKING_KEYS, Attention
from transpiler.strides import View

from ..scalar import Tir
from ..sizes import Extent, extent, is_fixed
from ..vectors import held

Expr = Any


def reciprocal(op: Attention, rank: int, mask: bool, keys: Extent, largest: Expr, total: Expr, dtype: str) -> Expr:
    """1 / total, or 0 for a row that attends to nothing; `largest` is its largest score that is not NaN."""
    s = Tir()
    zero = tirx.const(0.0, dtype)
    empty = s.eq(total, zero)
    if op.may_mask_nan(rank, mask) and not (is_fixed(keys) and keys >= MASKING_KEYS):
        nothing = s.eq(largest, tirx.const(-math.inf, dtype))
        nothing = nothing if is_fixed(keys) else s.logical_and(keys < MASKING_KEYS, nothing)
        empty = s.logical_or(empty, nothing)
    return held(s.select(empty, zero, tirx.const(1.0, dtype) / total))


def broadcast_offset(index: Sequence[Expr], shape: Sequence[Dim]) -> Expr:
    """Row-major offset in a tensor of `shape` for an index of the shape that it is broadcast to."""
    offset: Expr = 0
    for position, size in zip(index[len(index) - len(shape) :], shape, strict=True):
        offset = offset * extent(size) + (0 if size == 1 else position)
    return offset


def own_index(index: Sequence[Expr], batch: Sequence[Dim], shape: Sequence[Dim], *, gqa: bool) -> list[Expr]:
    """The index of the matrix that a value of `shape` has for an index of the batch, but along sizes of 1, where there
    is but one. If `gqa`, neighbouring heads of the batch share one of the value's."""
    own = list(index[len(index) - len(shape) + 2 :])
    if gqa and shape[-3] != batch[-1]:
        own[-1] = tirx.floordiv(own[-1], extent(floordiv(batch[-1], shape[-3])))
    return own


def matrix_offset(index: Sequence[Expr], batch: Sequence[Dim], value: Value, view: View, *, gqa: bool) -> Expr:
    """Where a matrix of `value` begins in what `view` says that it lies in; see `own_index`."""
    places = zip(own_index(index, batch, value.shape, gqa=gqa), value.shape, view.steps, strict=False)
    return sum((position * extent(step) for position, size, step in places if size != 1), extent(view.offset))
