"""Importers of ATen overloads on complex numbers, in real arithmetic on their parts.

What acts on the parts alone is in `complex_pairs.PARTWISE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transpiler.dims import Dim
from transpiler.ir import Value
from transpiler.ops import compose
from transpiler.ops.base import ATEN, ImportContext
from transpiler.ops.compare import Eq, IsNan, Ne
from transpiler.ops.complex_pairs import PART_DTYPES, Pair, as_pair, on_complex
from transpiler.ops.dtypes import out_type
from transpiler.ops.elementwise import Atan2, Div, Maximum, Minimum
from transpiler.ops.elementwise_unary import Abs, Cos, Exp, Log, Neg, Sin, Sqrt
from transpiler.ops.linalg import Linear, matmul
from transpiler.ops.logic import LogicalAnd, LogicalOr
from transpiler.ops.views import padded

# --- making them and taking them apart -----------------------------------------------------------------------------


@on_complex("complex.default")
def _complex(context: ImportContext, real: Value, imag: Value) -> Pair:
    shape = out_type(context).shape
    return Pair(compose.broadcast_to(context, real, shape), compose.broadcast_to(context, imag, shape))


@on_complex("polar.default")
def _polar(context: ImportContext, absolute: Value, angle: Value) -> Pair:
    return Pair(*(compose.mul(context, absolute, compose.emit(context, op, angle)) for op in (Cos(), Sin())))


@on_complex("view_as_complex.default", "view_as_complex_copy.default")
def _view_as_complex(context: ImportContext, x: Value) -> Pair:
    axis = x.type.rank - 1
    return Pair(compose.select(context, x, axis, 0), compose.select(context, x, axis, 1))


@on_complex("view_as_real.default", "view_as_real_copy.default")
def _view_as_real(context: ImportContext, x: Pair) -> Value:
    return compose.stack(context, [x.real, x.imag], len(x.shape))


@on_complex("real.default")
def _take_real(context: ImportContext, x: Pair) -> Value:
    return x.real


@on_complex("imag.default")
def _take_imag(context: ImportContext, x: Pair) -> Value:
    return x.imag


@on_complex("_conj.default", "conj.default", "conj_physical.default", "_conj_physical.default", "_conj_copy.default")
def conjugate(context: ImportContext, x: Pair) -> Pair:
    return Pair(x.real, compose.emit(context, Neg(), x.imag))


@on_complex("resolve_conj.default")
def _resolve(context: ImportContext, x: Pair) -> Pair:
    return x


@on_complex("_to_copy.default", "to.dtype")
def _to_copy(context: ImportContext, x: Any, dtype: str | None = None, **_: Any) -> Any:
    """A complex number cast to a real dtype loses its imaginary part, as in PyTorch."""
    if dtype is None:
        return x
    if dtype in PART_DTYPES:
        return as_pair(context, x, PART_DTYPES[dtype])
    return context.cast(x.real, dtype)


def _filled(real: float, *overloads: str) -> None:
    def convert(context: ImportContext, *_: Any, **__: Any) -> Pair:
        out = out_type(context)
        return Pair(*(compose.full(context, value, out.shape, out.dtype) for value in (real, 0.0)))

    on_complex(*overloads)(convert)


_filled(0.0, "zeros.default", "zeros_like.default", "new_zeros.default")
_filled(1.0, "ones.default", "ones_like.default", "new_ones.default")


@on_complex("constant_pad_nd.default")
def _pad(context: ImportContext, x: Pair, pad: Sequence[Dim], value: Any = 0) -> Pair:
    number = complex(value)
    parts = ((x.real, number.real), (x.imag, number.imag))
    return Pair(*(padded(context, part, pad, "constant", fill) for part, fill in parts))


@on_complex("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(context: ImportContext, condition: Value, a: Any, b: Any) -> Pair:
    dtype = out_type(context).dtype
    x, y = as_pair(context, a, dtype), as_pair(context, b, dtype)
    parts = ((x.real, y.real), (x.imag, y.imag))
    return Pair(*(compose.where(context, condition, then, otherwise) for then, otherwise in parts))


# --- arithmetic ----------------------------------------------------------------------------------------------------


def _is_real(item: Any) -> bool:
    return not isinstance(item, Pair | complex)


def _real(context: ImportContext, item: Any, dtype: str) -> Value:
    return context.cast(item, dtype) if isinstance(item, Value) else context.scalar(float(item), dtype)


def _dtype(context: ImportContext) -> str:
    return out_type(context).dtype


def _signed_sum(context: ImportContext, a: Any, b: Any, alpha: Any, sign: int) -> Pair:
    out = out_type(context)
    left, right = as_pair(context, a, out.dtype), as_pair(context, b, out.dtype)
    if alpha != 1:
        right = times(context, right, as_pair(context, alpha, out.dtype))
    op = compose.add if sign > 0 else compose.sub
    return Pair(op(context, left.real, right.real), op(context, left.imag, right.imag))


@on_complex("add.Tensor", "add.Scalar")
def _add(context: ImportContext, a: Any, b: Any, alpha: Any = 1) -> Pair:
    return _signed_sum(context, a, b, alpha, 1)


@on_complex("sub.Tensor", "sub.Scalar")
def _sub(context: ImportContext, a: Any, b: Any, alpha: Any = 1) -> Pair:
    return _signed_sum(context, a, b, alpha, -1)


@on_complex("rsub.Scalar", "rsub.Tensor")
def _rsub(context: ImportContext, a: Any, b: Any, alpha: Any = 1) -> Pair:
    return _signed_sum(context, b, a, alpha, -1)


def times(context: ImportContext, a: Pair, b: Pair) -> Pair:
    def product(x: Value, y: Value) -> Value:
        return compose.mul(context, x, y)

    real = compose.sub(context, product(a.real, b.real), product(a.imag, b.imag))
    return Pair(real, compose.add(context, product(a.real, b.imag), product(a.imag, b.real)))


@on_complex("mul.Tensor", "mul.Scalar")
def _mul(context: ImportContext, a: Any, b: Any) -> Pair:
    dtype = _dtype(context)
    if _is_real(a):
        a, b = b, a
    if isinstance(a, Pair) and _is_real(b):
        factor = _real(context, b, dtype)
        return Pair(*(compose.mul(context, context.cast(part, dtype), factor) for part in (a.real, a.imag)))
    return times(context, as_pair(context, a, dtype), as_pair(context, b, dtype))


@on_complex("div.Tensor", "div.Scalar", "true_divide.Tensor")
def _div(context: ImportContext, a: Any, b: Any) -> Pair:
    dtype = _dtype(context)
    x = as_pair(context, a, dtype)
    if _is_real(b):
        divisor = _real(context, b, dtype)
        return Pair(*(compose.emit(context, Div(), part, divisor) for part in (x.real, x.imag)))
    return divided(context, x, as_pair(context, b, dtype))


def divided(context: ImportContext, a: Pair, b: Pair) -> Pair:
    """a / b, with b first divided by its larger part so that no square overflows (Smith, CACM 5(8), 1962); a zero
    divisor divides the parts of a.
    """
    size = compose.emit(context, Maximum(), *(compose.emit(context, Abs(), part) for part in (b.real, b.imag)))
    nothing = compose.equal(context, size, context.scalar(0.0, size.dtype))
    scale = compose.where(context, nothing, context.scalar(1.0, size.dtype), size)
    unit = Pair(*(compose.emit(context, Div(), part, scale) for part in (b.real, b.imag)))
    squares = [compose.mul(context, part, part) for part in (unit.real, unit.imag)]
    norm = compose.mul(context, compose.add(context, squares[0], squares[1]), scale)
    scaled = times(context, a, conjugate(context, unit))
    divisor = compose.where(context, nothing, size, norm)
    parts = zip((a.real, a.imag), (scaled.real, scaled.imag), strict=True)
    return Pair(*(compose.emit(context, Div(), compose.where(context, nothing, x, y), divisor) for x, y in parts))


@on_complex("reciprocal.default")
def _reciprocal(context: ImportContext, x: Pair) -> Pair:
    return divided(context, as_pair(context, 1.0, x.dtype), x)


@on_complex("square.default")
def _square(context: ImportContext, x: Pair) -> Pair:
    return times(context, x, x)


@on_complex("pow.Tensor_Scalar")
def _power(context: ImportContext, x: Pair, exponent: Any) -> Pair:
    if exponent not in (1, 2, 3):
        raise context.unsupported(f"a complex number to the power {exponent}; 1, 2 and 3 are supported")
    result = x
    for _step in range(int(exponent) - 1):
        result = times(context, result, x)
    return result


# --- functions -----------------------------------------------------------------------------------------------------


@on_complex("abs.default")
def magnitude(context: ImportContext, x: Pair) -> Value:
    """sqrt(re^2 + im^2) without overflow: large * sqrt(1 + (small / large)^2); infinite if a part is."""
    parts = [compose.emit(context, Abs(), part) for part in (x.real, x.imag)]
    large, small = (compose.emit(context, op, *parts) for op in (Maximum(), Minimum()))
    one, zero, infinity = (context.scalar(value, x.dtype) for value in (1.0, 0.0, float("inf")))
    safe = compose.where(context, compose.equal(context, large, zero), one, large)
    ratio = compose.emit(context, Div(), small, safe)
    root = compose.emit(context, Sqrt(), compose.add(context, compose.mul(context, ratio, ratio), one))
    infinite = compose.emit(context, LogicalOr(), *(compose.equal(context, part, infinity) for part in parts))
    return compose.where(context, infinite, infinity, compose.mul(context, large, root))


@on_complex("angle.default")
def _angle(context: ImportContext, x: Pair) -> Value:
    return compose.emit(context, Atan2(), x.imag, x.real)


@on_complex("exp.default")
def _exp(context: ImportContext, x: Pair) -> Pair:
    size = compose.emit(context, Exp(), x.real)
    return Pair(*(compose.mul(context, size, compose.emit(context, op, x.imag)) for op in (Cos(), Sin())))


@on_complex("log.default")
def _log(context: ImportContext, x: Pair) -> Pair:
    return Pair(compose.emit(context, Log(), magnitude(context, x)), compose.emit(context, Atan2(), x.imag, x.real))


@on_complex("eq.Tensor", "eq.Scalar")
def _eq(context: ImportContext, a: Any, b: Any) -> Value:
    return _compare(context, a, b, Eq(), LogicalAnd())


@on_complex("ne.Tensor", "ne.Scalar")
def _ne(context: ImportContext, a: Any, b: Any) -> Value:
    return _compare(context, a, b, Ne(), LogicalOr())


def _compare(context: ImportContext, a: Any, b: Any, op: Any, join: Any) -> Value:
    dtype = next(item.dtype for item in (a, b) if isinstance(item, Pair))
    x, y = as_pair(context, a, dtype), as_pair(context, b, dtype)
    parts = [compose.emit(context, op, *part) for part in ((x.real, y.real), (x.imag, y.imag))]
    return compose.emit(context, join, *parts)


@on_complex("isnan.default")
def _isnan(context: ImportContext, x: Pair) -> Value:
    return compose.emit(context, LogicalOr(), *(compose.emit(context, IsNan(), part) for part in (x.real, x.imag)))


# --- products ------------------------------------------------------------------------------------------------------


def bilinear(context: ImportContext, a: Any, b: Any, product: Callable[[Value, Value], Value]) -> Pair:
    """A product that is linear in both: (a + ib)(c + id); a real factor needs two real products, else four."""
    if isinstance(a, Pair) and isinstance(b, Pair):
        real = compose.sub(context, product(a.real, b.real), product(a.imag, b.imag))
        return Pair(real, compose.add(context, product(a.real, b.imag), product(a.imag, b.real)))
    if isinstance(a, Pair):
        return Pair(product(a.real, b), product(a.imag, b))
    return Pair(product(a, b.real), product(a, b.imag))


@on_complex("matmul.default", "mm.default", "bmm.default", "mv.default", "dot.default")
def _matmul(context: ImportContext, a: Any, b: Any) -> Pair:
    return bilinear(context, a, b, lambda x, y: matmul(context, x, y))


@on_complex("vdot.default")
def _vdot(context: ImportContext, a: Pair, b: Pair) -> Pair:
    return bilinear(context, conjugate(context, a), b, lambda x, y: matmul(context, x, y))


@on_complex("outer.default", "ger.default")
def _outer(context: ImportContext, a: Any, b: Any) -> Pair:
    def product(x: Value, y: Value) -> Value:
        return compose.mul(context, compose.reshape(context, x, (*x.shape, 1)), y)

    return bilinear(context, a, b, product)


@on_complex("linear.default")
def _linear(context: ImportContext, x: Any, weight: Any, bias: Any = None) -> Pair:
    y = bilinear(context, x, weight, lambda a, b: compose.emit(context, Linear(), a, b))
    if bias is None:
        return y
    shift = as_pair(context, bias, y.dtype)
    return Pair(compose.add(context, y.real, shift.real), compose.add(context, y.imag, shift.imag))


@on_complex("einsum.default")
def _einsum(context: ImportContext, equation: str, tensors: Sequence[Any], *, path: Any = None) -> Any:
    function = ATEN["einsum.default"]
    if len(tensors) == 1:
        parts = (tensors[0].real, tensors[0].imag)
        return Pair(*(function(context, equation, [part]) for part in parts))
    if len(tensors) != 2:
        raise context.unsupported("einsum of more than two tensors with complex ones among them")
    return bilinear(context, tensors[0], tensors[1], lambda x, y: function(context, equation, [x, y]))
