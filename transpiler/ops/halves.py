"""Half floats as a place to keep float32 values: what reads them computes in float32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from transpiler.ir import Array
from transpiler.ops.base import Elementwise, Expr, OpError, Sample, Scalar
from transpiler.ops.dtypes import CORNERS, HALF, numpy_dtype


class Widen(Elementwise, name="widen"):
    """float32 of a half float: exact, and computed where it is read.

    Only the precision pass writes it, before ops of which it knows that the target's schedules read half floats. It is
    never stored and never a kernel: a product whose operand it is has half floats in memory.
    """

    moves = True

    def result_dtype(self, *dtypes: str) -> str:
        if len(dtypes) != 1 or dtypes[0] not in HALF:
            raise OpError(f"widen: float16 or bfloat16 expected, got {', '.join(dtypes)}")
        return "float32"

    def reference(self, x: Array) -> Array:
        return x.astype(np.float32)

    def host(self, x: str) -> str:
        return f'cast({x}, "float32")'

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return s.cast(x, "float32")

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for dtype in HALF:
            with np.errstate(over="ignore"):
                corners = CORNERS.astype(numpy_dtype(dtype))
            yield Sample(dtype, cls(), (corners,), exact=True)
