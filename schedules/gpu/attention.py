"""What the attention of all GPUs shares."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from transpiler.ops.attention import MASKING_KEYS, Attention

from ..scalar import Tir
from ..sizes import Extent, is_fixed
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
