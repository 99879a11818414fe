"""Embedding tables: `take` along axis 0, and bags of rows."""

from __future__ import annotations

from typing import Any

from transpiler.ir import Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, aten
from transpiler.ops.compare import Ge, Gt
from transpiler.ops.creation import Arange
from transpiler.ops.elementwise import Div, Maximum
from transpiler.ops.logic import LogicalAnd
from transpiler.ops.scatter import Scatter, ScatterAdd, ScatterMax
from transpiler.ops.statistics import norm


@aten("embedding.default")
def _embedding(context: ImportContext, weight: Value, indices: Value, *_training: Any, **_training_by_name: Any) -> Any:
    """(weight[V, D], indices[...]) -> [..., D]; the options concern gradients."""
    return compose.take(context, weight, indices, 0, wraps=False)


@aten("embedding_renorm.default")
def _embedding_renorm(context: ImportContext, weight: Value, indices: Value, max_norm: float, norm_type: float) -> Any:
    """`weight` whose rows at `indices` are scaled down to the norm `max_norm`."""
    length = norm(context, weight, norm_type, 1, True)
    limit = context.scalar(max_norm, weight.dtype)
    factor = compose.emit(context, Div(), limit, compose.add(context, length, context.scalar(1e-7, weight.dtype)))
    count = compose.product(indices.shape)
    picks = compose.reshape(context, indices, (count,))
    unused = compose.full(context, False, weight.shape[:1], "bool")
    used = compose.emit(context, Scatter(0), unused, picks, compose.full(context, True, (count,), "bool"))
    long = compose.emit(context, Gt(), length, limit)
    scaled = compose.emit(context, LogicalAnd(), long, compose.reshape(context, used, (weight.shape[0], 1)))
    return compose.where(context, scaled, compose.mul(context, weight, factor), weight)


@aten("embedding_bag.padding_idx")
def _embedding_bag_padded(context: ImportContext, weight: Value, *arguments: Any, **named: Any) -> Any:
    """A negative padding index counts from the end of the table; in the other overloads it means none."""
    if len(arguments) > 7:
        named["padding_idx"] = arguments[7]
    padding = named.pop("padding_idx", None)
    rows = weight.shape[0]
    if padding is not None and padding < 0:
        if not isinstance(rows, int):
            raise context.unsupported("a padding index from the end of a table of varying size")
        padding += rows
    return _embedding_bag(context, weight, *arguments[:7], **named, padding_idx=padding)


@aten("embedding_bag.default", "_embedding_bag.default", "_embedding_bag_forward_only.default")
def _embedding_bag(
    context: ImportContext, weight: Value, indices: Value, offsets: Value, scale_grad_by_freq: bool = False,
    mode: int = 0, sparse: bool = False, per_sample_weights: Value | None = None, include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:  # fmt: skip
    """Rows of weight[V, D] at indices[N], reduced bag by bag; bag b starts at offsets[b]. Empty bags are 0.

    Every position finds its bag by counting the bags that start at or before it. The three further results of the
    operator, which serve its gradient, are left out.
    """
    out, *_ = context.out_types()
    bags, width = out.shape
    count = indices.shape[0]
    if count == 0:
        return compose.full(context, 0.0, out.shape, out.dtype), None, None, None
    place = compose.reshape(context, compose.emit(context, Arange(0, 1, count, "int64")), (count, 1))
    starts = compose.reshape(context, context.cast(offsets, "int64"), (1, offsets.shape[0]))
    begun = context.cast(compose.emit(context, Ge(), place, starts), "int64")
    bag = compose.sub(context, compose.reduce_sum(context, begun, (1,)), context.scalar(1, "int64"))
    picks = compose.broadcast_to(context, compose.reshape(context, bag, (count, 1)), (count, width))

    rows = compose.take(context, weight, indices, 0, wraps=False)
    if per_sample_weights is not None:
        rows = compose.mul(context, rows, compose.reshape(context, per_sample_weights, (count, 1)))
    start = float("-inf") if mode == 2 else 0.0
    ones = compose.full(context, 1.0, (count, width), out.dtype)
    if padding_idx is not None and padding_idx >= 0:
        padding = compose.equal(context, indices, context.scalar(padding_idx, indices.dtype))
        padding = compose.reshape(context, padding, (count, 1))
        rows = compose.where(context, padding, context.scalar(start, out.dtype), rows)
        ones = compose.where(context, padding, context.scalar(0.0, out.dtype), ones)

    # The last offset, if it is given, begins a bag that is dropped.
    every = (offsets.shape[0], width)
    scatter = ScatterMax(0) if mode == 2 else ScatterAdd(0)
    total = compose.emit(context, scatter, compose.full(context, start, every, out.dtype), picks, rows)
    if mode:
        sizes = compose.emit(context, ScatterAdd(0), compose.full(context, 0.0, every, out.dtype), picks, ones)
        zero, one = context.scalar(0.0, out.dtype), context.scalar(1.0, out.dtype)
        if mode == 1:
            total = compose.emit(context, Div(), total, compose.emit(context, Maximum(), sizes, one))
        else:
            total = compose.where(context, compose.equal(context, sizes, zero), zero, total)
    return compose.slice_axis(context, total, 0, 0, bags), None, None, None
