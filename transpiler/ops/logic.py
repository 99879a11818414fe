"""Logic of bools and bits of integers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from transpiler.ir import Array, Value
from transpiler.ops.base import Elementwise, Expr, ImportContext, OpError, Sample, Scalar, aten
from transpiler.ops.dtypes import category, draw, out_type
from transpiler.ops.promotion import Number, operands


class Logical(Elementwise):
    """Base of the logic of two bools."""

    def result_dtype(self, *dtypes: str) -> str:
        if set(dtypes) != {"bool"}:
            raise OpError(f"{self.name} takes bool, got {', '.join(dtypes)}")
        return "bool"

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        a, b = draw(f"{cls.name} a", "bool", 3, 1, 17), draw(f"{cls.name} b", "bool", 5, 17)
        yield Sample("broadcast", cls(), (a, b), exact=True)
        yield Sample("rank0", cls(), (np.array(True), np.array(False)), exact=True)


class LogicalAnd(Logical, name="logical_and"):
    """Both."""

    def reference(self, a: Array, b: Array) -> Array:
        return a & b

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.logical_and(a, b)


class LogicalOr(Logical, name="logical_or"):
    """Either."""

    def reference(self, a: Array, b: Array) -> Array:
        return a | b

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.logical_or(a, b)


class LogicalXor(Logical, name="logical_xor"):
    """Exactly one."""

    def reference(self, a: Array, b: Array) -> Array:
        return a ^ b

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.ne(s.cast(a, "int32"), s.cast(b, "int32"))


class LogicalNot(Logical, name="logical_not"):
    """Not."""

    def reference(self, x: Array) -> Array:
        return ~x

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return s.logical_not(x)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample("odd", cls(), (draw("logical_not", "bool", 3, 7),), exact=True)


class Bitwise(Elementwise):
    """Base of the bit operations of two integers of one dtype."""

    operator: ClassVar[str]
    # The range that samples of the right operand are drawn from.
    right: ClassVar[tuple[int, int]] = (-9, 20)

    def result_dtype(self, *dtypes: str) -> str:
        dtype = super().result_dtype(*dtypes)
        if category(dtype) != 1:
            raise OpError(f"{self.name} takes integers, got {dtype}")
        return dtype

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        return s.bitwise(self.operator, a, b)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        low, high = cls.right
        for dtype in ("int64", "int32", "uint8"):
            a = draw(f"{cls.name} a", dtype, 3, 1, 17, low=-90, high=91)
            yield Sample(dtype, cls(), (a, draw(f"{cls.name} b", dtype, 5, 17, low=low, high=high)), exact=True)


class BitwiseAnd(Bitwise, name="bitwise_and"):
    """a & b."""

    operator = "&"

    def reference(self, a: Array, b: Array) -> Array:
        return a & b


class BitwiseOr(Bitwise, name="bitwise_or"):
    """a | b."""

    operator = "|"

    def reference(self, a: Array, b: Array) -> Array:
        return a | b


class BitwiseXor(Bitwise, name="bitwise_xor"):
    """a ^ b."""

    operator = "^"

    def reference(self, a: Array, b: Array) -> Array:
        return a ^ b


class LeftShift(Bitwise, name="left_shift"):
    """a * 2**b, wrapping; 0 where b is negative or at least the width, as PyTorch does."""

    operator = "<<"
    right = (-3, 70)

    def reference(self, a: Array, b: Array) -> Array:
        inside = (b >= 0) & (b < a.itemsize * 8)
        return np.where(inside, a << np.where(inside, b, 0), 0).astype(a.dtype)

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        zero, width = s.const(0, s.dtype(a)), s.const(_bits(s.dtype(a)), s.dtype(a))
        inside = s.logical_and(b >= zero, b < width)
        return s.select(inside, s.bitwise("<<", a, s.select(inside, b, zero)), zero)


class RightShift(Bitwise, name="right_shift"):
    """a // 2**b, rounding down; the sign alone where b is negative or at least the width, as PyTorch does."""

    operator = ">>"
    right = (-3, 70)

    def reference(self, a: Array, b: Array) -> Array:
        last = _last_shift(str(a.dtype))
        return (a >> np.where((b >= 0) & (b <= last), b, last)).astype(a.dtype)

    def scalar(self, s: Scalar, a: Expr, b: Expr) -> Expr:
        zero, last = s.const(0, s.dtype(a)), s.const(_last_shift(s.dtype(a)), s.dtype(a))
        return s.bitwise(">>", a, s.select(s.logical_and(b >= zero, b <= last), b, last))


def _bits(dtype: str) -> int:
    return int(np.iinfo(dtype).bits)


def _last_shift(dtype: str) -> int:
    """The largest shift that is computed; a larger one is this one."""
    return _bits(dtype) - 1


class BitwiseNot(Elementwise, name="bitwise_not"):
    """~x of integers."""

    def result_dtype(self, *dtypes: str) -> str:
        (dtype,) = dtypes
        if category(dtype) != 1:
            raise OpError(f"bitwise_not takes integers, got {dtype}")
        return dtype

    def reference(self, x: Array) -> Array:
        return ~x

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        ones = 255 if s.dtype(x) == "uint8" else -1
        return s.bitwise("^", x, s.const(ones, s.dtype(x)))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for dtype in ("int64", "int32", "uint8"):
            yield Sample(dtype, cls(), (draw("bitwise_not", dtype, 3, 11),), exact=True)


def _logical(op: type[Elementwise], *overloads: str) -> None:
    def convert(context: ImportContext, *items: Value) -> Any:
        return context.emit(op(), *operands(context, items, "bool"))

    aten(*overloads)(convert)


def _bitwise(op: type[Elementwise], logical: type[Elementwise] | None, *overloads: str) -> None:
    """Bits of bools are logic."""

    def convert(context: ImportContext, *items: Value | Number) -> Any:
        dtype = out_type(context).dtype
        chosen = logical if dtype == "bool" and logical else op
        return context.emit(chosen(), *operands(context, items, dtype))

    aten(*overloads)(convert)


_logical(LogicalAnd, "logical_and.default")
_logical(LogicalOr, "logical_or.default")
_logical(LogicalXor, "logical_xor.default")
_logical(LogicalNot, "logical_not.default")
_bitwise(BitwiseNot, LogicalNot, "bitwise_not.default")
for _name, _bits_op, _logic_op in (
    ("and", BitwiseAnd, LogicalAnd),
    ("or", BitwiseOr, LogicalOr),
    ("xor", BitwiseXor, LogicalXor),
):
    _bitwise(
        _bits_op, _logic_op,
        f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar", f"bitwise_{_name}.Scalar_Tensor",
        f"__{_name}__.Tensor", f"__{_name}__.Scalar",
    )  # fmt: skip
for _name, _shift in (("left", LeftShift), ("right", RightShift)):
    _bitwise(
        _shift, None,
        f"bitwise_{_name}_shift.Tensor", f"bitwise_{_name}_shift.Tensor_Scalar",
        f"bitwise_{_name}_shift.Scalar_Tensor", f"__{_name[0]}shift__.Tensor", f"__{_name[0]}shift__.Scalar",
    )  # fmt: skip
