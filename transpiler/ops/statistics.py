"""Importers of ATen's reductions: sums, extremes, variances and norms as compositions of `reduce.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transpiler.dims import product
from transpiler.ir import Value
from transpiler.ops.base import ImportContext, Op, aten, normalize_axis
from transpiler.ops.compare import Cast, Eq, Ne, Where
from transpiler.ops.creation import Full
from transpiler.ops.dtypes import HALF, out_type
from transpiler.ops.elementwise import Add, Div, Mul, Sub
from transpiler.ops.elementwise_unary import Abs, Clamp, Exp, Log, Sqrt
from transpiler.ops.power import Pow
from transpiler.ops.promotion import operand
from transpiler.ops.reduce import (
    Argmax,
    Argmin,
    AxisReduce,
    ReduceAll,
    ReduceAny,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    ReduceProd,
    ReduceSum,
)
from transpiler.ops.shape import as_tuple
from transpiler.ops.views import reshape


def axes_of(x: Value, dim: int | Sequence[int] | None) -> tuple[int, ...]:
    """Sorted axes; None and the empty list mean all."""
    rank = len(x.shape)
    if dim is None or dim == []:
        return tuple(range(rank))
    return tuple(sorted({normalize_axis(axis, rank) for axis in as_tuple(dim)})) if rank else ()


def work_dtype(dtype: str) -> str:
    """16-bit floats are accumulated in float32."""
    return "float32" if dtype in HALF else dtype


def _accumulate(context: ImportContext, op: type[AxisReduce], x: Value, dim: Any, keepdim: bool) -> Any:
    """Reduce in the result's dtype, 16-bit floats in float32."""
    dtype = out_type(context).dtype
    total = context.emit(op(axes_of(x, dim), keepdim), context.cast(x, work_dtype(dtype)))
    return context.cast(total, dtype)


@aten("sum.default")
def _sum(context: ImportContext, x: Value, dtype: Any = None) -> Any:
    return _accumulate(context, ReduceSum, x, None, False)


@aten("sum.dim_IntList")
def _sum_dim(context: ImportContext, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    return _accumulate(context, ReduceSum, x, dim, keepdim)


@aten("mean.default")
def _mean(context: ImportContext, x: Value, dtype: Any = None) -> Any:
    return _accumulate(context, ReduceMean, x, None, False)


@aten("mean.dim")
def _mean_dim(context: ImportContext, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    return _accumulate(context, ReduceMean, x, dim, keepdim)


@aten("prod.default")
def _prod(context: ImportContext, x: Value, dtype: Any = None) -> Any:
    return _accumulate(context, ReduceProd, x, None, False)


@aten("prod.dim_int")
def _prod_dim(context: ImportContext, x: Value, dim: int, keepdim: bool = False, dtype: Any = None) -> Any:
    return _accumulate(context, ReduceProd, x, dim, keepdim)


def _truth(op: type[AxisReduce], name: str) -> None:
    def convert(context: ImportContext, x: Value, dim: Any = None, keepdim: bool = False) -> Any:
        result = context.cast(x, "bool")
        if dim != []:  # an empty list means no axis here, where sums take it for all
            result = context.emit(op(axes_of(x, dim), keepdim), result)
        return context.cast(result, out_type(context).dtype)

    aten(f"{name}.default", f"{name}.dim", f"{name}.dims")(convert)


_truth(ReduceAny, "any")
_truth(ReduceAll, "all")


def _extreme(
    context: ImportContext, op: type[AxisReduce], truth: type[AxisReduce], x: Value, dim: Any, keepdim: bool
) -> Any:
    """The largest of bools is "any", the smallest "all"."""
    chosen = truth if x.dtype == "bool" else op
    return context.emit(chosen(axes_of(x, dim), keepdim), x)


def _arg(context: ImportContext, op: type[Argmax] | type[Argmin], x: Value, dim: int | None, keepdim: bool) -> Any:
    """A position; in the flattened tensor if no axis is given."""
    shape = (
        tuple([1] * len(x.shape) if keepdim else [])
        if dim is None
        else ReduceAny(axes_of(x, dim), keepdim).infer(x.type.with_dtype("bool")).shape
    )
    if x.dtype == "bool":
        x = context.cast(x, "int32")
    if dim is None or not x.shape:
        found = context.emit(op(0), reshape(context, x, (product(x.shape),)))
    else:
        found = context.emit(op(normalize_axis(dim, len(x.shape)), keepdim), x)
    return reshape(context, found, shape)


def _extremes(name: str, op: type[AxisReduce], truth: type[AxisReduce], arg: type[Argmax] | type[Argmin]) -> None:
    """max / min: `amax.default`, `max.default`, `max.dim` (values, positions) and `argmax.default`."""

    def all_axes(context: ImportContext, x: Value) -> Any:
        return _extreme(context, op, truth, x, None, False)

    def some_axes(context: ImportContext, x: Value, dim: Any = None, keepdim: bool = False) -> Any:
        return _extreme(context, op, truth, x, dim, keepdim)

    def with_position(context: ImportContext, x: Value, dim: int, keepdim: bool = False) -> Any:
        return _extreme(context, op, truth, x, dim, keepdim), _arg(context, arg, x, dim, keepdim)

    def position(context: ImportContext, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
        return _arg(context, arg, x, dim, keepdim)

    aten(f"{name}.default")(all_axes)
    aten(f"a{name}.default")(some_axes)
    aten(f"{name}.dim")(with_position)
    aten(f"arg{name}.default")(position)


_extremes("max", ReduceMax, ReduceAny, Argmax)
_extremes("min", ReduceMin, ReduceAll, Argmin)


@aten("aminmax.default")
def _aminmax(context: ImportContext, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
    low = _extreme(context, ReduceMin, ReduceAll, x, dim, keepdim)
    return low, _extreme(context, ReduceMax, ReduceAny, x, dim, keepdim)


def _variance(context: ImportContext, x: Value, dim: Any, correction: Any, keepdim: bool) -> tuple[Any, Any]:
    """Variance and mean in float64, as PyTorch's CPU kernels accumulate them: the mean first, then the squares of the
    deviations from it.

    The divisor is max(count - correction, 0), as PyTorch has it.
    """
    x = context.cast(x, "float64")
    axes = axes_of(x, dim)
    mean = context.emit(ReduceMean(axes, True), x)
    deviation = context.emit(Sub(), x, mean)
    squares = context.emit(ReduceSum(axes, keepdim), context.emit(Mul(), deviation, deviation))
    count = product(x.shape[axis] for axis in axes)
    if isinstance(count, int):
        divisor = context.scalar(float(max(count - correction, 0)), x.dtype)
    else:
        size = operand(context, count, x.dtype)
        less = context.emit(Sub(), size, context.scalar(float(correction), x.dtype))
        divisor = context.emit(Clamp(0.0, None), less)
    return context.emit(Div(), squares, divisor), reshape(context, mean, squares.shape)


def _spread(name: str, root: bool, with_mean: bool) -> None:
    """var / std and var_mean / std_mean, in their three overloads."""

    def finish(context: ImportContext, x: Value, dim: Any, correction: Any, keepdim: bool) -> Any:
        variance, mean = _variance(context, x, dim, 1 if correction is None else correction, keepdim)
        spread = context.cast(context.emit(Sqrt(), variance) if root else variance, x.dtype)
        return (spread, context.cast(mean, x.dtype)) if with_mean else spread

    def corrected(
        context: ImportContext, x: Value, dim: Any = None, correction: Any = None, keepdim: bool = False
    ) -> Any:
        return finish(context, x, dim, correction, keepdim)

    def unbiased_dim(context: ImportContext, x: Value, dim: Any, unbiased: bool = True, keepdim: bool = False) -> Any:
        return finish(context, x, dim, int(unbiased), keepdim)

    def unbiased_all(context: ImportContext, x: Value, unbiased: bool = True) -> Any:
        return finish(context, x, None, int(unbiased), False)

    aten(f"{name}.correction")(corrected)
    aten(f"{name}.dim")(unbiased_dim)
    aten(f"{name}.default")(unbiased_all)


for _name, _root, _with_mean in (
    ("var", False, False), ("std", True, False), ("var_mean", False, True), ("std_mean", True, True),
):  # fmt: skip
    _spread(_name, _root, _with_mean)


@aten("logsumexp.default")
def _logsumexp(context: ImportContext, x: Value, dim: Any, keepdim: bool = False) -> Any:
    """log(sum(exp(x - m))) + m with m the maximum, or 0 where that is infinite."""
    out = out_type(context)
    x = context.cast(x, work_dtype(out.dtype))
    axes = axes_of(x, dim)
    if any(x.shape[axis] == 0 for axis in axes):
        return context.emit(Full(float("-inf"), out.shape, out.dtype))
    peak = context.emit(ReduceMax(axes, True), x)
    infinite = context.emit(Eq(), context.emit(Abs(), peak), context.scalar(float("inf"), x.dtype))
    peak = context.emit(Where(), infinite, context.scalar(0.0, x.dtype), peak)
    total = context.emit(ReduceSum(axes, keepdim), context.emit(Exp(), context.emit(Sub(), x, peak)))
    result = context.emit(Add(), context.emit(Log(), total), reshape(context, peak, total.shape))
    return context.cast(result, out.dtype)


def norm(context: ImportContext, x: Value, p: float, dim: Any, keepdim: bool) -> Any:
    """The p-norm over axes, in the result's dtype; p may be 0 (how many are not 0) or infinite."""
    out = out_type(context)
    x = context.cast(x, work_dtype(out.dtype))
    axes = axes_of(x, dim)
    total: Op = ReduceSum(axes, keepdim)
    if p == 0:
        zero = context.scalar(0.0, x.dtype)
        result = context.emit(total, context.emit(Cast(x.dtype), context.emit(Ne(), x, zero)))
    elif p in (float("inf"), float("-inf")):
        extreme = ReduceMax(axes, keepdim) if p > 0 else ReduceMin(axes, keepdim)
        result = context.emit(extreme, context.emit(Abs(), x))
    elif p == 1:
        result = context.emit(total, context.emit(Abs(), x))
    elif p == 2:
        result = context.emit(Sqrt(), context.emit(total, context.emit(Mul(), x, x)))
    else:
        powers = context.emit(Pow(), context.emit(Abs(), x), context.scalar(float(p), x.dtype))
        root = context.scalar(1.0 / p, x.dtype)
        result = context.emit(Pow(), context.emit(total, powers), root)
    return context.cast(result, out.dtype)


@aten("linalg_vector_norm.default")
def _vector_norm(
    context: ImportContext,
    x: Value,
    ord: float = 2,
    dim: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> Any:
    return norm(context, x, ord, dim, keepdim)


@aten("norm.Scalar", "norm.ScalarOpt_dtype")
def _norm(context: ImportContext, x: Value, p: float = 2, dtype: Any = None) -> Any:
    return norm(context, x, p, None, False)


@aten("norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype")
def _norm_dim(
    context: ImportContext, x: Value, p: float | None, dim: Any, keepdim: bool = False, dtype: Any = None
) -> Any:
    return norm(context, x, 2 if p is None else p, dim, keepdim)
