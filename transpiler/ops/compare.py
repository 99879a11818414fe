"""Comparison, selection, questions about floats, and the change of dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from transpiler.ir import Array, TensorType, Value
from transpiler.ops.base import (
    Elementwise,
    Expr,
    ImportContext,
    OpError,
    Sample,
    Scalar,
    aten,
    broadcast_shapes,
)
from transpiler.ops.creation import Full
from transpiler.ops.dtypes import CORNERS, category, corner_pairs, draw, numpy_dtype, out_type
from transpiler.ops.elementwise_unary import Unary
from transpiler.ops.promotion import Number, operands, promote


class Compare(Elementwise):
    """Base of the comparisons of two tensors of one dtype: bool, false with NaN except for `ne`."""

    def infer(self, *types: TensorType) -> TensorType:
        return super().infer(*types).with_dtype("bool")

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        if s.dtype(a) == "bool":
            return self.order(s, s.cast(a, "int32"), s.cast(b, "int32"))
        return self.order(s, a, b)

    def order(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        """The comparison of two numbers."""
        raise NotImplementedError(self.name)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for dtype in ("float32", "int64", "int32", "bool"):
            a, b = draw(f"{cls.name} a", dtype, 3, 1, 17), draw(f"{cls.name} b", dtype, 5, 17)
            yield Sample(dtype, cls(), (a, b), exact=True)
        yield Sample("corners", cls(), corner_pairs(), exact=True)
        yield Sample("rank0", cls(), (np.array(1.0, np.float32), np.array(1.0, np.float32)), exact=True)


class Eq(Compare, name="eq"):
    """a == b."""

    def reference(self, a: Array, b: Array) -> Array:
        return np.asarray(a == b)

    def order(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.eq(a, b)


class Ne(Compare, name="ne"):
    """a != b."""

    def reference(self, a: Array, b: Array) -> Array:
        return np.asarray(a != b)

    def order(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.ne(a, b)


class Lt(Compare, name="lt"):
    """a < b."""

    def reference(self, a: Array, b: Array) -> Array:
        return np.asarray(a < b)

    def order(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return a < b


class Le(Compare, name="le"):
    """a <= b."""

    def reference(self, a: Array, b: Array) -> Array:
        return np.asarray(a <= b)

    def order(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return a <= b


class Gt(Compare, name="gt"):
    """a > b."""

    def reference(self, a: Array, b: Array) -> Array:
        return np.asarray(a > b)

    def order(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return a > b


class Ge(Compare, name="ge"):
    """a >= b."""

    def reference(self, a: Array, b: Array) -> Array:
        return np.asarray(a >= b)

    def order(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return a >= b


class Question(Unary):
    """Base of the questions about a float: the result is bool."""

    def result_dtype(self, *dtypes: str) -> str:
        super().result_dtype(*dtypes)
        return "bool"


class IsNan(Question, name="isnan"):
    """Is it NaN? bool."""

    def reference(self, x: Array) -> Array:
        return np.isnan(x)

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return s.call("isnan", x)


class IsInf(Question, name="isinf"):
    """Is it an infinity? bool."""

    def reference(self, x: Array) -> Array:
        return np.isinf(x)

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return s.call("isinf", x)


class IsFinite(Question, name="isfinite"):
    """Is it neither NaN nor an infinity? bool."""

    def reference(self, x: Array) -> Array:
        return np.isfinite(x)

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return s.logical_not(s.logical_or(s.call("isnan", x), s.call("isinf", x)))


class Where(Elementwise, name="where"):
    """`a` where the bool `condition` holds, else `b`; shapes (…), (…), (…) broadcast."""

    moves = True

    def infer(self, *types: TensorType) -> TensorType:
        condition, a, b = types
        if condition.dtype != "bool" or a.dtype != b.dtype:
            raise OpError(f"where takes bool, T, T, got {condition.dtype}, {a.dtype}, {b.dtype}")
        return TensorType(a.dtype, broadcast_shapes(condition.shape, a.shape, b.shape))

    def reference(self, condition: Array, a: Array, b: Array) -> Array:
        return np.where(condition, a, b)

    def host(self, condition: str, a: str, b: str) -> str:
        return f"np.where({condition}, {a}, {b})"

    def scalar(self, s: Scalar, condition: Expr, a: Expr, b: Expr) -> Expr:
        return s.select(condition, a, b)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        condition = draw("where condition", "bool", 3, 1, 7)
        for dtype in ("float32", "int64", "bool"):
            yield Sample(dtype, cls(), (condition, draw("where a", dtype, 5, 7), draw("where b", dtype, 1)), exact=True)
        nan = np.array(np.nan, np.float32)
        yield Sample("nan_not_taken", cls(), (condition, draw("where a", "float32", 5, 7), nan), exact=True)


class Cast(Elementwise, name="cast"):
    """To `dtype`: floats to ints by truncation, to bool by != 0; out of range as PyTorch on a CPU."""

    moves = True  # half floats are converted as they are
    dtype: str

    def result_dtype(self, *dtypes: str) -> str:
        return self.dtype

    def reference(self, x: Array) -> Array:
        return x.astype(numpy_dtype(self.dtype))

    def host(self, x: str) -> str | None:
        return f'cast({x}, "{self.dtype}")'

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return s.cast(x, self.dtype)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = draw("cast", "float32", 3, 13)
        for dtype in ("int64", "int32", "int8", "bool", "float16", "bfloat16", "float64"):
            yield Sample(f"float32_{dtype}", cls(dtype), (x,), exact=True)
        yield Sample("corners_bool", cls("bool"), (CORNERS,), exact=True)
        yield Sample("corners_float16", cls("float16"), (CORNERS,), exact=True)
        yield Sample("int64_float32", cls("float32"), (np.array([2**40 + 1, -3, 0]),), exact=True)
        yield Sample("int64_int32", cls("int32"), (np.array([2**40 + 1, -3, 0]),), exact=True)
        yield Sample("bool_float32", cls("float32"), (draw("cast", "bool", 9),), exact=True)
        yield Sample("bool_int64", cls("int64"), (draw("cast", "bool", 2, 9),), exact=True)


def _comparison(op: type[Elementwise], *overloads: str) -> None:
    """The two operands are promoted between themselves."""

    def convert(context: ImportContext, a: Value | Number, b: Value | Number) -> Any:
        return context.emit(op(), *operands(context, (a, b), promote(a, b)))

    aten(*overloads)(convert)


for _name, _op in {"eq": Eq, "ne": Ne, "lt": Lt, "le": Le, "gt": Gt, "ge": Ge}.items():
    _comparison(_op, f"{_name}.Tensor", f"{_name}.Scalar")


@aten("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(context: ImportContext, condition: Value, a: Value | Number, b: Value | Number) -> Any:
    condition = context.cast(condition, "bool")
    return context.emit(Where(), condition, *operands(context, (a, b), out_type(context).dtype))


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(context: ImportContext, x: Value, mask: Value, value: Value | Number) -> Any:
    return context.emit(Where(), mask, *operands(context, (value, x), x.dtype))


@aten(
    "_to_copy.default", "to.dtype", "to.dtype_layout", "to.device", "to.other", "type_as.default"
)  # fmt: skip
def _to(context: ImportContext, x: Value, *_: Any, **__: Any) -> Any:
    return context.cast(x, out_type(context).dtype)


def _question(op: type[Elementwise], otherwise: bool, overload: str) -> None:
    """Integers and bools are finite."""

    def convert(context: ImportContext, x: Value) -> Any:
        if category(x.dtype) == 2:
            return context.emit(op(), x)
        return context.emit(Full(otherwise, x.shape, "bool"))

    aten(overload)(convert)


_question(IsNan, False, "isnan.default")
_question(IsInf, False, "isinf.default")
_question(IsFinite, True, "isfinite.default")
