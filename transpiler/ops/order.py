"""Order statistics and searches, composed from sorting and comparing."""

from __future__ import annotations

from typing import Any

from transpiler.dims import product
from transpiler.ir import Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, aten, normalize_axis
from transpiler.ops.compare import Eq, Gt, IsNan
from transpiler.ops.dtypes import HALF, category, out_type
from transpiler.ops.elementwise import Maximum
from transpiler.ops.index import Gather
from transpiler.ops.logic import LogicalNot, LogicalOr, RightShift
from transpiler.ops.promotion import operand, promote
from transpiler.ops.reduce import Argmax, ReduceAny, ReduceSum
from transpiler.ops.scan import Sort
from transpiler.ops.search import SearchSorted


def _ordered(context: ImportContext, x: Value, axis: int) -> tuple[Value, Value]:
    """(sorted upwards with NaN last, positions)."""
    values, positions = context.emit(Sort(axis), x)
    return values, positions


def _pick(context: ImportContext, x: Value, axis: int, where: Value) -> Value:
    """x at the positions `where`, which have size 1 along `axis`."""
    return compose.emit(context, Gather(axis), x, where)


def _dropped(context: ImportContext, x: Value, axis: int, keepdim: bool) -> Value:
    return x if keepdim else compose.reshape(context, x, (*x.shape[:axis], *x.shape[axis + 1 :]))


def _count(context: ImportContext, truth: Value, axis: int) -> Value:
    """How many are true along `axis`, int64, the axis kept."""
    return compose.emit(context, ReduceSum((axis,), True), context.cast(truth, "int64"))


@aten("kthvalue.default")
def _kthvalue(context: ImportContext, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The k-th smallest; NaN counts as the largest."""
    if not x.shape:
        return x, context.scalar(0, "int64")
    axis = normalize_axis(dim, len(x.shape))
    found = (compose.slice_axis(context, part, axis, k - 1, k) for part in _ordered(context, x, axis))
    return tuple(_dropped(context, part, axis, keepdim) for part in found)


def _median(context: ImportContext, x: Value, axis: int, ignore_nan: bool) -> tuple[Value, Value]:
    """The lower of the middle elements and its position, the axis kept. A NaN wins unless it is ignored."""
    ordered, positions = _ordered(context, x, axis)
    size = x.shape[axis]
    if not isinstance(size, int):
        raise context.unsupported("the median along an axis of varying size")
    if category(x.dtype) != 2:
        middle = (size - 1) // 2
        picks = (compose.slice_axis(context, part, axis, middle, middle + 1) for part in (ordered, positions))
        values, places = picks
        return values, places
    nan = compose.emit(context, IsNan(), x)
    if ignore_nan:
        usable = _count(context, compose.emit(context, LogicalNot(), nan), axis)
        one = context.scalar(1, "int64")
        last = compose.emit(context, Maximum(), compose.sub(context, usable, one), context.scalar(0, "int64"))
        middle_at = compose.emit(context, RightShift(), last, one)
        return _pick(context, ordered, axis, middle_at), _pick(context, positions, axis, middle_at)
    middle = (size - 1) // 2
    first_nan = compose.emit(context, Argmax(axis, True), context.cast(nan, "int32"))
    any_nan = compose.emit(context, ReduceAny((axis,), True), nan)
    usual = compose.slice_axis(context, positions, axis, middle, middle + 1)
    places = compose.where(context, any_nan, first_nan, usual)
    return _pick(context, x, axis, places), places


def _medians(name: str, ignore_nan: bool) -> None:
    def along(context: ImportContext, x: Value, dim: int, keepdim: bool = False) -> Any:
        if not x.shape:
            return x, context.scalar(0, "int64")
        axis = normalize_axis(dim, len(x.shape))
        return tuple(_dropped(context, part, axis, keepdim) for part in _median(context, x, axis, ignore_nan))

    def of_all(context: ImportContext, x: Value) -> Any:
        out = out_type(context)
        if 0 in x.shape:
            if category(x.dtype) != 2:
                raise context.unsupported("the median of no integers")
            return context.scalar(float("nan"), out.dtype)
        flat = compose.reshape(context, x, (product(x.shape),))
        return compose.reshape(context, _median(context, flat, 0, ignore_nan)[0], ())

    aten(f"{name}.dim")(along)
    aten(f"{name}.default")(of_all)


_medians("median", False)
_medians("nanmedian", True)


@aten("mode.default")
def _mode(context: ImportContext, x: Value, dim: int = -1, keepdim: bool = False) -> Any:
    """The smallest of the most frequent values, and its last position. Every pair is compared: n^2 steps.

    NaN equals nothing, so a NaN is frequent once; it counts as the smallest.
    """
    if not x.shape:
        return x, context.scalar(0, "int64")
    axis = normalize_axis(dim, len(x.shape))
    ordered, positions = _ordered(context, x, axis)
    this = compose.reshape(context, ordered, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
    other = compose.reshape(context, ordered, (*x.shape[:axis], 1, *x.shape[axis:]))
    same = context.cast(compose.emit(context, Eq(), this, other), "int32")
    counts = compose.reduce_sum(context, same, (axis + 1,))
    first = compose.emit(context, Argmax(axis, True), counts)
    length = context.cast(_pick(context, counts, axis, first), "int64")
    one = context.scalar(1, "int64")
    last = compose.sub(context, compose.add(context, first, length), one)
    if category(x.dtype) == 2:
        nans = _count(context, compose.emit(context, IsNan(), x), axis)
        first_nan = compose.sub(context, operand(context, x.shape[axis], "int64"), nans)
        several = compose.emit(context, Gt(), length, one)
        none = compose.equal(context, nans, context.scalar(0, "int64"))
        last = compose.where(context, compose.emit(context, LogicalOr(), several, none), last, first_nan)
    return tuple(_dropped(context, _pick(context, part, axis, last), axis, keepdim) for part in (ordered, positions))


# --- searching ----------------------------------------------------------------------------------------------------


def _search(
    context: ImportContext, edges: Value, values: Value, right: bool, dtype: str, common: str | None = None
) -> Value:
    """Where values[..., M] would be inserted into edges[..., N]."""
    common = common or promote(edges, values)
    common = "float32" if common in HALF else "uint8" if common == "bool" else common
    found = compose.emit(
        context, SearchSorted(right), operand(context, edges, common), operand(context, values, common)
    )
    return context.cast(found, dtype)


def _searchsorted(
    context: ImportContext,
    edges: Value,
    values: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Value | None = None,
) -> Any:
    out = out_type(context)
    if sorter is not None:
        edges = _pick(context, edges, edges.type.rank - 1, sorter)
    common = None if isinstance(values, Value) else edges.dtype
    asked = values if isinstance(values, Value) else context.scalar(values, edges.dtype)
    if len(edges.shape) == 1:
        flat = compose.reshape(context, asked, (product(asked.shape),))
        found = _search(context, edges, flat, right or side == "right", out.dtype, common)
    else:
        found = _search(context, edges, asked, right or side == "right", out.dtype, common)
    return compose.reshape(context, found, out.shape)


aten("searchsorted.Tensor", "searchsorted.Scalar")(_searchsorted)


@aten("bucketize.Tensor", "bucketize.Scalar")
def _bucketize(
    context: ImportContext, values: Any, edges: Value, *, out_int32: bool = False, right: bool = False
) -> Any:
    return _searchsorted(context, edges, values, right=right)
