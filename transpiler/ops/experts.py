"""Mixtures of experts: rows that go through the matrix of their group, and the counts that say where groups end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transpiler.ir import Array, TensorType, Value
from transpiler.ops import compose
from transpiler.ops.base import Expr, ImportContext, Load, OpError, Reduce, Reduction, Sample, Scalar, aten, rng
from transpiler.ops.compare import Cast, Eq, Ge, Le, Where
from transpiler.ops.creation import Arange
from transpiler.ops.elementwise import Div, Minimum
from transpiler.ops.linalg import same_dtype
from transpiler.ops.logic import LogicalAnd
from transpiler.ops.wide import narrow, narrow_expr, wide_dtype, widen, widen_expr


class GroupedMatmul(Reduce, name="grouped_matmul"):
    """(x[S, K], weight[E, K, N], group[S]) -> [S, N]: row s is x[s] @ weight[group[s]], zeros if group[s] is E.

    `group` is int64 in 0..E.
    """

    def infer(self, *types: TensorType) -> TensorType:
        if len(types) != 3:
            raise OpError(f"grouped_matmul: 3 inputs expected, got {len(types)}")
        x, weight, group = types
        if x.rank != 2 or weight.rank != 3 or weight.shape[1] != x.shape[1] or group.shape != x.shape[:1]:
            raise OpError(f"grouped_matmul: x[S, K], weight[E, K, N] and group[S] expected, got {x}, {weight}, {group}")
        if group.dtype != "int64":
            raise OpError(f"grouped_matmul: int64 groups expected, got {group.dtype}")
        return TensorType(same_dtype(self, (x, weight)), (x.shape[0], weight.shape[2]))

    def reference(self, *inputs: Array) -> Array:
        x, weight = map(widen, inputs[:2])
        y = np.zeros((x.shape[0], weight.shape[2]), x.dtype)
        for index, matrix in enumerate(weight):
            rows = inputs[2] == index
            y[rows] = x[rows] @ matrix
        return narrow(y, inputs[0])

    def reduction(
        self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
    ) -> Reduction:
        x, weight, _ = types
        row, column = index
        group = inputs[2](row)
        beyond = s.cast(s.size(weight.shape[0]), "int64")
        # A row of no group reads the last matrix and drops the product, rather than a test per element.
        matrix = s.minimum(group, beyond - s.const(1, "int64"))
        zero = s.const(0, wide_dtype(x.dtype))
        return Reduction(
            extents=(x.shape[1],),
            init=(zero,),
            body=lambda r: (widen_expr(s, inputs[0](row, r[0])) * widen_expr(s, inputs[1](matrix, r[0], column)),),
            combine=lambda a, b: (a[0] + b[0],),
            finish=lambda a: narrow_expr(s, s.select(group < beyond, a[0], zero), x.dtype),
        )

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        # (rows, K, experts, N)
        for rows, k, experts, n in ((7, 5, 3, 4), (1, 1, 1, 1), (12, 32, 4, 48), (9, 17, 2, 33), (0, 3, 2, 3)):
            g = rng(f"grouped_matmul {rows} {k} {experts} {n}")
            x = g.standard_normal((rows, k), np.float32)
            weight = g.standard_normal((experts, k, n), np.float32) / np.float32(k**0.5)
            group = np.sort(g.integers(0, experts + 1, rows))
            yield Sample(f"{rows}x{k}_{experts}x{n}", cls(), (x, weight, group))


# --- importing from ATen ---------------------------------------------------------------------------------


@aten("transformers.grouped_mm_fallback.default")
def _grouped_mm(context: ImportContext, x: Value, weight: Value, ends: Value) -> Any:
    """`ends` are the cumulative counts of rows per group: a row's group is how many groups end at it or before."""
    (rows,) = x.shape[:1]
    row = compose.reshape(context, context.emit(Arange(0, 1, rows, "int64")), (rows, 1))
    ended = context.emit(Le(), context.cast(compose.reshape(context, ends, (1, *ends.shape)), "int64"), row)
    group = compose.reduce_sum(context, compose.emit(context, Cast("int64"), ended), (1,))
    return context.emit(GroupedMatmul(), x, weight, group)


@aten("histc.default")
def _histc(context: ImportContext, x: Value, bins: int = 100, min: float = 0, max: float = 0) -> Any:
    """Each element's bin compared with every bin. Source: aten/src/ATen/native/cpu/HistogramKernel.cpp."""
    if min >= max:
        raise context.unsupported("histc without min and max: the bins depend on the data")

    def const(value: float) -> Value:
        return context.scalar(value, x.dtype)

    flat = compose.reshape(context, x, (compose.product(x.shape), 1))
    distance = compose.mul(context, compose.sub(context, flat, const(min)), const(bins))
    width = float(np.dtype(x.dtype).type(max) - np.dtype(x.dtype).type(min))
    position = context.cast(compose.emit(context, Div(True), distance, const(width)), "int32")
    position = compose.emit(context, Minimum(), position, context.scalar(bins - 1, "int32"))
    inside = compose.emit(
        context, LogicalAnd(), context.emit(Ge(), flat, const(min)), context.emit(Le(), flat, const(max))
    )
    position = context.emit(Where(), inside, position, context.scalar(-1, "int32"))
    hit = context.emit(Eq(), position, context.emit(Arange(0, 1, bins, "int32")))
    return compose.reduce_sum(context, compose.emit(context, Cast(x.dtype), hit), (0,))
