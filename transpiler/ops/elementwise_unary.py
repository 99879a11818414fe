"""Functions of one element. `rounding.py` has those that round."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from transpiler.ir import Array, Value
from transpiler.ops.base import Elementwise, Expr, ImportContext, OpError, Sample, Scalar, aten
from transpiler.ops.dtypes import CORNERS, category, draw, out_type
from transpiler.ops.promotion import aten_unary


class Unary(Elementwise):
    """Base of the ops here. `categories` are the ones accepted: 1 integer, 2 float."""

    categories: ClassVar[tuple[int, ...]] = (2,)
    # The range that samples are drawn from.
    low: ClassVar[float] = -6.0
    high: ClassVar[float] = 7.0

    def result_dtype(self, *dtypes: str) -> str:
        (dtype,) = dtypes
        if category(dtype) not in self.categories:
            raise OpError(f"{self.name} does not take {dtype}")
        return dtype

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        def data(dtype: str, *shape: int) -> Array:
            return draw(cls.name, dtype, *shape, low=cls.low, high=cls.high)

        if 2 in cls.categories:
            yield Sample("float32", cls(), (data("float32", 3, 5, 7),))
            yield Sample("odd", cls(), (data("float32", 67),))
            yield Sample("rank0", cls(), (data("float32"),))
            yield Sample("empty", cls(), (data("float32", 0, 3),))
            yield Sample("corners", cls(), (CORNERS,))
        if 1 in cls.categories:
            yield Sample("int64", cls(), (data("int64", 3, 11),), exact=True)
            yield Sample("int32", cls(), (data("int32", 19),), exact=True)


class Function(Unary):
    """A float function that numpy has as `numpy` and a target as `target`."""

    numpy: ClassVar[str]
    target: ClassVar[str]
    cost: ClassVar[int] = 12

    def reference(self, x: Array) -> Array:
        result: Array = getattr(np, self.numpy)(x)
        return result

    def host(self, x: str) -> str:
        return f"np.{self.numpy}({x})"

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return s.call(self.target, x)


class Exp(Function, name="exp"):
    """e ** x."""

    numpy, target = "exp", "exp"


class Exp2(Function, name="exp2"):
    """2 ** x."""

    numpy, target = "exp2", "exp2"


class Expm1(Function, name="expm1"):
    """e ** x - 1, accurate near 0."""

    numpy, target = "expm1", "expm1"


class Log(Function, name="log"):
    """The natural logarithm; NaN below 0."""

    numpy, target = "log", "log"
    low = 0.1


class Log2(Function, name="log2"):
    """The logarithm to base 2."""

    numpy, target = "log2", "log2"
    low = 0.1


class Log10(Function, name="log10"):
    """The logarithm to base 10."""

    numpy, target = "log10", "log10"
    low = 0.1


class Log1p(Function, name="log1p"):
    """log(1 + x), accurate near 0."""

    numpy, target = "log1p", "log1p"
    low = -0.9


class Sqrt(Function, name="sqrt"):
    """The square root; NaN below 0."""

    numpy, target = "sqrt", "sqrt"
    cost = 4
    low = 0.0


class Sin(Function, name="sin"):
    """The sine of radians."""

    numpy, target = "sin", "sin"


class Cos(Function, name="cos"):
    """The cosine of radians."""

    numpy, target = "cos", "cos"


class Tan(Function, name="tan"):
    """The tangent of radians."""

    numpy, target = "tan", "tan"
    low, high = -1.4, 1.4


class Asin(Function, name="asin"):
    """The inverse sine, NaN outside [-1, 1]."""

    numpy, target = "arcsin", "asin"
    low, high = -1.0, 1.0


class Acos(Function, name="acos"):
    """The inverse cosine, NaN outside [-1, 1]."""

    numpy, target = "arccos", "acos"
    low, high = -1.0, 1.0


class Atan(Function, name="atan"):
    """The inverse tangent."""

    numpy, target = "arctan", "atan"


class Sinh(Function, name="sinh"):
    """The hyperbolic sine."""

    numpy, target = "sinh", "sinh"


class Cosh(Function, name="cosh"):
    """The hyperbolic cosine."""

    numpy, target = "cosh", "cosh"


class Asinh(Function, name="asinh"):
    """The inverse hyperbolic sine."""

    numpy, target = "arcsinh", "asinh"


class Acosh(Function, name="acosh"):
    """The inverse hyperbolic cosine, NaN below 1."""

    numpy, target = "arccosh", "acosh"
    low = 1.0


class Atanh(Function, name="atanh"):
    """The inverse hyperbolic tangent."""

    numpy, target = "arctanh", "atanh"
    low, high = -0.9, 0.9


class Neg(Unary, name="neg"):
    """-x; integers wrap."""

    categories = (1, 2)

    def reference(self, x: Array) -> Array:
        return np.negative(x)

    def host(self, x: str) -> str:
        return f"(-{x})"

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        # Not 0 - x: that loses the sign of zero.
        dtype = s.dtype(x)
        return x * s.const(-1, dtype) if category(dtype) == 2 else s.wrapping(operator.sub, s.const(0, dtype), x)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from super().samples()
        yield Sample("uint8_wraps", cls(), (np.array([0, 1, 255], np.uint8),), exact=True)


class Abs(Unary, name="abs"):
    """|x|; the smallest integer stays itself."""

    categories = (1, 2)

    def reference(self, x: Array) -> Array:
        return np.abs(x)

    def host(self, x: str) -> str:
        return f"np.abs({x})"

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        if category(s.dtype(x)) == 2:
            return s.call("abs", x)
        if s.dtype(x) == "uint8":
            return x
        zero = s.const(0, s.dtype(x))
        return s.select(x < zero, s.wrapping(operator.sub, zero, x), x)


class Sign(Unary, name="sign"):
    """-1, 0 or 1; 0 for NaN, as PyTorch does."""

    categories = (1, 2)

    def reference(self, x: Array) -> Array:
        return np.asarray((x > 0).astype(x.dtype) - (x < 0).astype(x.dtype))

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        dtype = s.dtype(x)
        zero, one = s.const(0, dtype), s.const(1, dtype)
        positive = s.select(x > zero, one, zero)
        return positive if dtype == "uint8" else s.select(x < zero, zero - one, positive)


class Rsqrt(Unary, name="rsqrt"):
    """1 / sqrt(x)."""

    cost = 5
    low = 0.1

    def reference(self, x: Array) -> Array:
        return 1 / np.sqrt(x)

    def host(self, x: str) -> str:
        return f"(1 / np.sqrt({x}))"

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return s.call("rsqrt", x)


class Reciprocal(Unary, name="reciprocal"):
    """1 / x."""

    def reference(self, x: Array) -> Array:
        return 1 / x

    def host(self, x: str) -> str:
        return f"(1 / {x})"

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return s.divide(s.const(1, s.dtype(x)), x)


class Erf(Unary, name="erf"):
    """The error function."""

    cost = 15

    def reference(self, x: Array) -> Array:
        return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x.astype(np.float64))).astype(x.dtype)

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        return s.call("erf", x)


class Clamp(Unary, name="clamp"):
    """min(max(x, low), high); NaN stays NaN; `high` wins where low > high."""

    categories = (1, 2)
    min: float | int | None = None
    max: float | int | None = None

    def reference(self, x: Array) -> Array:
        if self.min is not None:
            x = np.where(x < self.min, np.array(self.min, x.dtype), x)
        if self.max is not None:
            x = np.where(x > self.max, np.array(self.max, x.dtype), x)
        return x

    def scalar(self, s: Scalar, x: Expr) -> Expr:
        dtype = s.dtype(x)
        if self.min is not None:
            low = s.const(self.min, dtype)
            x = s.select(x < low, low, x)
        if self.max is not None:
            high = s.const(self.max, dtype)
            x = s.select(x > high, high, x)
        return x

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = draw("clamp", "float32", 5, 13)
        yield Sample("both", cls(-1.5, 2.5), (x,), exact=True)
        yield Sample("low", cls(0.0, None), (x,), exact=True)
        yield Sample("high", cls(None, 6.0), (CORNERS,), exact=True)
        yield Sample("crossed", cls(2.0, -1.0), (x,), exact=True)
        yield Sample("int64", cls(-2, 3), (draw("clamp", "int64", 17),), exact=True)


for _op, _overloads in {
    Exp: ("exp.default",),
    Exp2: ("exp2.default",),
    Expm1: ("expm1.default",),
    Log: ("log.default",),
    Log2: ("log2.default",),
    Log10: ("log10.default",),
    Log1p: ("log1p.default",),
    Sqrt: ("sqrt.default",),
    Sin: ("sin.default",),
    Cos: ("cos.default",),
    Tan: ("tan.default",),
    Asin: ("asin.default", "arcsin.default"),
    Acos: ("acos.default", "arccos.default"),
    Atan: ("atan.default", "arctan.default"),
    Sinh: ("sinh.default",),
    Cosh: ("cosh.default",),
    Asinh: ("asinh.default", "arcsinh.default"),
    Acosh: ("acosh.default", "arccosh.default"),
    Atanh: ("atanh.default", "arctanh.default"),
    Rsqrt: ("rsqrt.default",),
    Reciprocal: ("reciprocal.default",),
    Erf: ("erf.default", "special_erf.default"),
}.items():
    aten_unary(_op, *_overloads)


@aten("neg.default", "negative.default")
def _neg(context: ImportContext, x: Value) -> Any:
    return context.emit(Neg(), x)


@aten("abs.default", "absolute.default")
def _abs(context: ImportContext, x: Value) -> Any:
    return x if x.dtype == "bool" else context.emit(Abs(), x)


@aten("sign.default", "sgn.default")
def _sign(context: ImportContext, x: Value) -> Any:
    return x if x.dtype == "bool" else context.emit(Sign(), x)


@aten("clamp.default", "clip.default")
def _clamp(context: ImportContext, x: Value, min: Any = None, max: Any = None) -> Any:
    dtype = out_type(context).dtype
    if category(dtype) == 1:
        min, max = (None if bound is None else int(bound) for bound in (min, max))
    return context.emit(Clamp(min, max), context.cast(x, dtype))


@aten("clamp_min.default")
def _clamp_min(context: ImportContext, x: Value, min: Any) -> Any:
    return _clamp(context, x, min)


@aten("clamp_max.default")
def _clamp_max(context: ImportContext, x: Value, max: Any) -> Any:
    return _clamp(context, x, None, max)
