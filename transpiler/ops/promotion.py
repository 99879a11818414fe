"""PyTorch's type promotion, and turning ATen arguments into operands of one dtype."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transpiler.dims import SymExpr
from transpiler.ir import Value
from transpiler.ops.base import ImportContext, Op, OpError, aten
from transpiler.ops.creation import Full
from transpiler.ops.dtypes import HALF, category, out_type, promote_dtypes

Number = bool | int | float | SymExpr


def promote(*items: Value | Number) -> str:
    """`torch.result_type`: a rank-0 tensor or a Python number lifts the category only, not the width.

    Source: aten/src/ATen/native/TypeProperties.cpp, `result_type`.
    """
    levels: dict[str, str | None] = {"wrapped": None, "scalar": None, "tensor": None}
    for item in items:
        if isinstance(item, Value):
            level, dtype = "tensor" if item.shape else "scalar", item.dtype
        else:
            level = "wrapped"
            dtype = "bool" if isinstance(item, bool) else "float32" if isinstance(item, float) else "int64"
        known = levels[level]
        levels[level] = dtype if known is None else promote_dtypes(known, dtype)
    result: str | None = None
    for dtype_or_none in levels.values():
        result = _combine(dtype_or_none, result)
    if result is None:
        raise OpError("no operands to promote")
    return result


def _combine(higher: str | None, lower: str | None) -> str | None:
    if higher is None or lower is None:
        return higher or lower
    return higher if category(higher) >= category(lower) else promote_dtypes(higher, lower)


def operand(context: ImportContext, item: Value | Number, dtype: str) -> Value:
    """A tensor cast to `dtype`, or a number as a rank-0 constant of it."""
    if isinstance(item, Value):
        return context.cast(item, dtype)
    if isinstance(item, SymExpr):
        return context.cast(_value(context.emit(Full(item, (), "int64"))), dtype)
    return context.scalar(item, dtype)


def operands(context: ImportContext, items: Iterable[Value | Number], dtype: str) -> list[Value]:
    return [operand(context, item, dtype) for item in items]


def in_dtype(context: ImportContext, op: Op, dtype: str, *items: Value | Number) -> Value:
    """Apply `op` to the items cast to `dtype`.

    With a Python number among them, 16-bit floats are computed in float32: the number is not rounded first. (PyTorch
    does round it for some operators: see `rounded`.)
    """
    wide = "float32" if dtype in HALF and any(isinstance(item, int | float) for item in items) else dtype
    return context.cast(_value(context.emit(op, *operands(context, items, wide))), dtype)


def rounded(context: ImportContext, op: Op, dtype: str, *items: Value | Number) -> Value:
    """Apply `op` to the items cast to `dtype`, Python numbers too."""
    return _value(context.emit(op, *operands(context, items, dtype)))


def aten_unary(op: type[Op], *overloads: str) -> None:
    """Importers of a float function of one tensor: others are cast to the result's float type first."""

    def convert(context: ImportContext, x: Value) -> Any:
        return context.emit(op(), context.cast(x, out_type(context).dtype))

    aten(*overloads)(convert)


def aten_binary(op: type[Op], *overloads: str) -> None:
    """Importers of a function of two tensors or numbers, computed in the result's dtype."""

    def convert(context: ImportContext, a: Value | Number, b: Value | Number) -> Any:
        return rounded(context, op(), out_type(context).dtype, a, b)

    aten(*overloads)(convert)


def _value(result: Any) -> Value:
    assert isinstance(result, Value)
    return result
