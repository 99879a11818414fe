"""torch's symbolic sizes (sympy expressions) as `transpiler.dims` expressions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import sympy
import torch
from torch.utils._sympy import functions as torch_functions

from transpiler.dims import (
    Dim,
    SymbolRange,
    dim_max,
    dim_min,
    evaluate,
    floordiv,
    free_symbols,
    is_static,
    mod,
    symbol,
)
from transpiler.errors import TranspileError
from transpiler.ir import TensorType
from transpiler.ops.complex_pairs import PART_DTYPES


def to_dim(size: Any, names: Mapping[str, str]) -> Dim:
    """An int, a SymInt or a sympy expression as a size; `names` renames torch's symbols.

    Raises:
        TranspileError: "unsupported-size" for an expression that is not one of + - * // % min max over
        symbols.
    """
    if isinstance(size, int):
        return size
    if isinstance(size, torch.SymInt):
        size = size.node.expr
    try:
        return _convert(sympy.sympify(size), names)
    except _UnknownError:
        if any(str(item).startswith("u") for item in getattr(size, "free_symbols", ())):
            message = "A shape depends on the data, not only on the shapes of the inputs"
            raise TranspileError("unsupported-size", message) from None
        raise TranspileError("unsupported-size", f"Unsupported symbolic size: {size}") from None


class _UnknownError(Exception):
    pass


def _convert(expression: sympy.Expr, names: Mapping[str, str]) -> Dim:
    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol:
        name = str(expression)
        if name.startswith("u") and name not in names:  # unbacked: known only once the data is
            raise _UnknownError
        return symbol(names.get(name, name))

    def parts() -> list[Dim]:
        return [_convert(item, names) for item in expression.args]

    kind = type(expression).__name__
    if isinstance(expression, sympy.Add):
        return _sum(parts())
    if isinstance(expression, sympy.Mul) and not any(
        item.is_Rational and not item.is_Integer for item in expression.args
    ):
        return _product(parts())
    if isinstance(expression, sympy.Pow) or kind == "PowByNatural":
        base, exponent = expression.args
        if exponent.is_Integer and 0 <= int(exponent) <= 8:
            return _product([_convert(base, names)] * int(exponent))
    if kind in ("FloorDiv", "CleanDiv"):
        return floordiv(*parts())
    if kind in ("Mod", "PythonMod"):
        return mod(*parts())
    if isinstance(expression, torch_functions.ModularIndexing):
        base, divisor, modulus = parts()
        return mod(floordiv(base, divisor), modulus)
    if isinstance(expression, sympy.Max) or kind == "Max":
        return reduce(dim_max, parts())
    if isinstance(expression, sympy.Min) or kind == "Min":
        return reduce(dim_min, parts())
    if isinstance(expression, sympy.floor):
        numerator, denominator = sympy.together(expression.args[0]).as_numer_denom()
        return floordiv(_convert(numerator, names), _convert(denominator, names))
    if kind in ("Identity", "TruncToInt") and len(expression.args) == 1:
        return _convert(expression.args[0], names)
    raise _UnknownError


def _sum(parts: list[Dim]) -> Dim:
    total: Dim = 0
    for part in parts:
        total = total + part
    return total


def _product(parts: list[Dim]) -> Dim:
    total: Dim = 1
    for part in parts:
        total = total * part
    return total


def symbol_ranges(constraints: Mapping[Any, Any], names: Mapping[str, str]) -> dict[str, SymbolRange]:
    """torch's value ranges by our symbol names, sorted; an infinite bound is None. No size is 0: loops over nothing are
    compiled away, never run. Symbols that `names` calls alike are one, within all their bounds."""
    ranges: dict[str, SymbolRange] = {}
    for key, bounds in constraints.items():
        if not getattr(key, "is_Symbol", False) or str(key).startswith(("u", "zuf")):
            continue
        high = int(bounds.upper) if bounds.upper.is_Integer and int(bounds.upper) < 2**62 else None
        name = names.get(str(key), str(key))
        held = ranges.get(name, SymbolRange(1))
        highs = [item for item in (held.high, high) if item is not None]
        ranges[name] = SymbolRange(max(held.low, int(bounds.lower)), min(highs, default=None))
    return dict(sorted(ranges.items()))


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` -> `float32`."""
    return str(dtype).removeprefix("torch.")


def tensor_type(value: torch.Tensor, names: Mapping[str, str]) -> TensorType:
    """The type of a (fake) tensor; of its parts if it is complex.

    Raises:
        TranspileError: a size cannot be expressed.
    """
    dtype = dtype_name(value.dtype)
    return TensorType(PART_DTYPES.get(dtype, dtype), tuple(to_dim(size, names) for size in value.shape))


def same_type(ours: TensorType, theirs: TensorType, ranges: Mapping[str, SymbolRange]) -> bool:
    """Whether two types are equal; sizes that are written differently are compared at points of the
    ranges."""
    if ours == theirs:
        return True
    if ours.dtype != theirs.dtype or ours.rank != theirs.rank:
        return False
    return all(_same_size(a, b, ranges) for a, b in zip(ours.shape, theirs.shape, strict=True))


def _same_size(a: Dim, b: Dim, ranges: Mapping[str, SymbolRange]) -> bool:
    if a == b:
        return True
    if is_static(a) and is_static(b):
        return False
    names = sorted(free_symbols(a) | free_symbols(b))
    for step in range(24):
        point = {}
        for index, name in enumerate(names):
            bounds = ranges.get(name, SymbolRange())
            low = max(bounds.low, 2)
            span = (bounds.high if bounds.high is not None else low + 96) - low + 1
            point[name] = low + (step * (7 + 4 * index) + index) % max(span, 1)
        try:
            if evaluate(a, point) != evaluate(b, point):
                return False
        except ZeroDivisionError:
            continue
    return True
