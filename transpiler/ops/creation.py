"""Tensors from nothing: a filled tensor and a ramp, and ATen's factory functions as compositions of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transpiler.dims import Dim, SymExpr
from transpiler.ir import Array, TensorType, Value
from transpiler.ops.base import Expr, ImportContext, Injective, Load, OpError, Sample, Scalar, aten
from transpiler.ops.dtypes import numpy_dtype, out_type, plain, static
from transpiler.ops.shape import BroadcastTo
from transpiler.ops.shape_edges import Tril, Triu


class Full(Injective, name="full"):
    """A tensor of `shape` whose every element is `value`; a symbolic `value` is a size at run time."""

    value: bool | int | float | SymExpr
    shape: tuple[Dim, ...]
    dtype: str

    def infer(self) -> TensorType:
        return TensorType(self.dtype, self.shape)

    def reference(self) -> Array:
        (value,) = static([self.value]) if isinstance(self.value, SymExpr) else (self.value,)
        return np.full(static(self.shape), value).astype(numpy_dtype(self.dtype))

    def host(self) -> str | None:
        if isinstance(self.value, SymExpr) or not all(isinstance(dim, int) for dim in self.shape):
            return None
        value = repr(self.value) if np.isfinite(self.value) else f'float("{self.value}")'
        if self.dtype == "bfloat16":
            return f'cast(np.full({tuple(self.shape)}, {value}, "float32"), "bfloat16")'
        return f'np.full({tuple(self.shape)}, {value}, "{self.dtype}")'

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        if isinstance(self.value, SymExpr):
            return s.cast(s.size(self.value), self.dtype)
        return s.const(self.value, self.dtype)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample("float32", cls(-0.5, (3, 5), "float32"), (), exact=True)
        yield Sample("nan", cls(float("nan"), (2,), "float32"), (), exact=True)
        yield Sample("negative_infinity", cls(float("-inf"), (1, 7), "float32"), (), exact=True)
        yield Sample("int64_rank0", cls(-(2**40), (), "int64"), (), exact=True)
        yield Sample("bool", cls(True, (4,), "bool"), (), exact=True)
        yield Sample("empty", cls(1.0, (0, 3), "float32"), (), exact=True)


class Arange(Injective, name="arange"):
    """`start + step * i` for i in 0..size-1; shape (size,)."""

    moves = False
    start: int | float | SymExpr
    step: int | float | SymExpr
    size: Dim
    dtype: str

    def infer(self) -> TensorType:
        if self.dtype == "bool":
            raise OpError("arange: no ramp of bool")
        return TensorType(self.dtype, (self.size,))

    def reference(self) -> Array:
        start, step = (static([v])[0] if isinstance(v, SymExpr) else v for v in (self.start, self.step))
        (size,) = static([self.size])
        return (start + step * np.arange(size)).astype(numpy_dtype(self.dtype))

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        def number(value: int | float | SymExpr) -> Expr:
            if isinstance(value, SymExpr):
                return s.cast(s.size(value), work)
            return s.const(value, work)

        fractional = isinstance(self.start, float) or isinstance(self.step, float)
        work = self.dtype if self.dtype in ("float32", "float64") else "float32" if fractional else "int64"
        return s.cast(number(self.start) + s.cast(index[0], work) * number(self.step), self.dtype)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample("int64", cls(0, 1, 17, "int64"), (), exact=True)
        yield Sample("int32_down", cls(5, -3, 6, "int32"), (), exact=True)
        yield Sample("float32", cls(-1.0, 0.25, 9, "float32"), ())
        yield Sample("float32_of_ints", cls(1, 2, 9, "float32"), ())
        yield Sample("empty", cls(0, 1, 0, "int64"), (), exact=True)


@aten("full.default", "full.names", "full_like.default", "fill.Scalar", "fill.Tensor")
def _full(context: ImportContext, shape: Any, fill_value: Any = None, value: Any = None, **_: Any) -> Any:
    return filled(context, value if fill_value is None else fill_value)


@aten("new_full.default")
def _new_full(context: ImportContext, x: Value, size: Any, fill_value: Any, **_: Any) -> Any:
    return filled(context, fill_value)


@aten(
    "zeros.default", "zeros.names", "zeros_like.default", "new_zeros.default", "zero.default",
    "empty.memory_format",
    "empty_like.default", "empty_permuted.default", "empty_strided.default", "new_empty.default",
    "new_empty_strided.default",
)  # fmt: skip
def _zeros(context: ImportContext, *_: Any, **__: Any) -> Any:
    """Uninitialised memory is zeros: the result is the same in every run."""
    return filled(context, 0)


@aten("ones.default", "ones.names", "ones_like.default", "new_ones.default")
def _ones(context: ImportContext, *_: Any, **__: Any) -> Any:
    return filled(context, 1)


@aten("scalar_tensor.default")
def _scalar_tensor(context: ImportContext, value: Any, **_: Any) -> Any:
    return filled(context, value)


def filled(context: ImportContext, value: Any) -> Any:
    """The node's output, every element `value` (a number, a size, or a rank-0 tensor)."""
    out = out_type(context)
    if isinstance(value, Value):
        return context.emit(BroadcastTo(out.shape), context.cast(value, out.dtype))
    return context.emit(Full(plain(value, out.dtype), out.shape, out.dtype))


@aten("arange.default")
def _arange_end(context: ImportContext, end: Any, **_: Any) -> Any:
    return _ramp(context, 0, 1)


@aten("arange.start", "arange.start_step")
def _arange(context: ImportContext, start: Any, end: Any, step: Any = 1, **_: Any) -> Any:
    return _ramp(context, start, step)


def _ramp(context: ImportContext, start: Any, step: Any) -> Any:
    out = out_type(context)
    if not out.is_float:
        start, step = (int(v) if isinstance(v, float) and v.is_integer() else v for v in (start, step))
    return context.emit(Arange(start, step, out.shape[0], out.dtype))


@aten("linspace.default")
def _linspace(context: ImportContext, start: Any, end: Any, steps: Any, **_: Any) -> Any:
    out = out_type(context)
    if not isinstance(steps, int) or not out.is_float:
        raise context.unsupported("linspace needs a fixed number of steps and a float result")
    step = (end - start) / (steps - 1) if steps > 1 else 0.0
    return _ramp(context, float(start), step)


@aten("eye.default", "eye.m")
def _eye(context: ImportContext, *_: Any, **__: Any) -> Any:
    """The lower triangle of the upper triangle of ones."""
    return context.emit(Tril(0), context.emit(Triu(0), filled(context, 1)))
