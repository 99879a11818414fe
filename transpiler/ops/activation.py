"""Activation functions: element-wise, computed in float32 for half floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from transpiler.ir import Array, Value
from transpiler.ops import compose
from transpiler.ops.base import Elementwise, Expr, ImportContext, OpError, Sample, Scalar, aten, rng
from transpiler.ops.wide import narrow, narrow_expr, widen, widen_expr

_SQRT_HALF = math.sqrt(0.5)
_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
# Klambauer et al., arXiv:1706.02515, as PyTorch rounds them.
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946


class Activation(Elementwise):
    """y[i] = f(x[i]); `value` is f in numpy, `formula` on target expressions, both on widened operands."""

    def value(self, *x: Array) -> Array:
        raise NotImplementedError(self.name)

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        raise NotImplementedError(self.name)

    def reference(self, *inputs: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return narrow(self.value(*map(widen, inputs)), inputs[0])

    def scalar(self, s: Scalar, *x: Expr) -> Expr:
        return narrow_expr(s, self.formula(s, *(widen_expr(s, item) for item in x)), s.dtype(x[0]))

    @classmethod
    def variants(cls) -> Iterator[Activation]:
        """The ops to sample: every attribute away from its default."""
        yield cls()

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for op in cls.variants():
            label = "_".join(map(str, op.attributes().values())) or "plain"
            yield Sample(f"{label}_corners", op, (_corners("float32"),))
            yield Sample(f"{label}_float64", op, (_corners("float64"),))
            yield Sample(f"{label}_map", op, (3 * rng(cls.name + label).standard_normal((2, 5, 7, 9), np.float32),))
            yield Sample(f"{label}_empty", op, (np.empty((3, 0), np.float32),))


def _corners(dtype: str) -> Array:
    """Both zeros, the kinks of the piecewise functions and their neighbours, saturation, NaN."""
    kinks = [0.0, 0.5, 1.0, 2.0, 3.0, 6.0]
    points = [p + d for p in kinks for d in (-1e-3, 0.0, 1e-3)] + [1e-6, 11.0, 19.5, 20.5, 60.0, 100.0]
    return np.array([*points, *(-p for p in points), math.nan], dtype)


def _zero(s: Scalar, x: Expr) -> Expr:
    return s.const(0, s.dtype(x))


class Relu(Activation, name="relu"):
    """max(x, 0); NaN stays NaN. Ints and floats."""

    def value(self, *x: Array) -> Array:
        return np.where(x[0] < 0, x[0].dtype.type(0), x[0])

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        return s.select(x[0] < _zero(s, x[0]), _zero(s, x[0]), x[0])

    def host(self, *names: str) -> str:
        return f"np.maximum({names[0]}, 0)"

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from super().samples()
        yield Sample("int64", cls(), (np.arange(-5, 6),), exact=True)
        yield Sample("float16", cls(), (np.linspace(-2, 2, 9).astype(np.float16),), exact=True)


class LeakyRelu(Activation, name="leaky_relu"):
    """x where x > 0, else slope * x."""

    slope: float = 0.01

    def value(self, *x: Array) -> Array:
        return np.where(x[0] > 0, x[0], x[0] * x[0].dtype.type(self.slope))

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        dtype = s.dtype(x[0])
        # A product with 0 would be folded to 0, of NaN and infinities too.
        scaled = x[0] * s.const(self.slope, dtype) if self.slope else s.divide(x[0], s.const(math.inf, dtype))
        return s.select(x[0] > _zero(s, x[0]), x[0], scaled)

    @classmethod
    def variants(cls) -> Iterator[Activation]:
        yield from (cls(), cls(0.2), cls(-1.5), cls(0.0))


class PRelu(Activation, name="prelu"):
    """(x, weight): x where x > 0, else weight * x, broadcast (He et al., arXiv:1502.01852)."""

    def value(self, *x: Array) -> Array:
        return np.where(x[0] > 0, x[0], x[1] * x[0])

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        return s.select(x[0] > _zero(s, x[0]), x[0], x[1] * x[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        g = rng("prelu")
        x = g.standard_normal((2, 5, 3, 7), np.float32)
        yield Sample("channels", cls(), (x, g.standard_normal((1, 5, 1, 1), np.float32)))
        yield Sample("shared", cls(), (x, np.full((1,), 0.25, np.float32)))


class Elu(Activation, name="elu"):
    """scale * x where x >= 0, else alpha * scale * expm1(input_scale * x) (arXiv:1511.07289)."""

    alpha: float = 1.0
    scale: float = 1.0
    input_scale: float = 1.0

    def value(self, *x: Array) -> Array:
        t = x[0].dtype.type
        negative = np.expm1(x[0] * t(self.input_scale)) * t(self.alpha * self.scale)
        return np.asarray(np.where(x[0] < 0, negative, x[0] * t(self.scale)))

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        def const(value: float) -> Expr:
            return s.const(value, s.dtype(x[0]))

        negative = s.call("expm1", x[0] * const(self.input_scale)) * const(self.alpha * self.scale)
        return s.select(x[0] < const(0), negative, x[0] * const(self.scale))

    @classmethod
    def variants(cls) -> Iterator[Activation]:
        yield from (cls(), cls(0.7), cls(_SELU_ALPHA, _SELU_SCALE), cls(2.0, 1.0, 0.5))


class Sigmoid(Activation, name="sigmoid"):
    """1 / (1 + exp(-x))."""

    def value(self, *x: Array) -> Array:
        return _sigmoid(x[0])

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        return s.call("sigmoid", x[0])

    def host(self, *names: str) -> str:
        return f"1 / (1 + np.exp(-{names[0]}))"


class Tanh(Activation, name="tanh"):
    """Hyperbolic tangent."""

    def value(self, *x: Array) -> Array:
        return np.asarray(np.tanh(x[0]))

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        return s.call("tanh", x[0])

    def host(self, *names: str) -> str:
        return f"np.tanh({names[0]})"


class Silu(Activation, name="silu"):
    """x * sigmoid(x), also called swish (arXiv:1702.03118)."""

    def value(self, *x: Array) -> Array:
        return x[0] * _sigmoid(x[0])

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        return x[0] * s.call("sigmoid", x[0])


class Gelu(Activation, name="gelu"):
    """x * Phi(x), Phi the normal distribution's CDF (Hendrycks, Gimpel, arXiv:1606.08415).

    `approximate` "none": Phi by erf; "tanh": 0.5 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))).
    """

    approximate: str = "none"

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise OpError(f"gelu: approximate is 'none' or 'tanh', got {self.approximate!r}")

    def value(self, *x: Array) -> Array:
        t = x[0].dtype.type
        if self.approximate == "tanh":
            inner = t(_SQRT_2_OVER_PI) * (x[0] + t(0.044715) * x[0] * x[0] * x[0])
            return np.asarray(t(0.5) * x[0] * (t(1) + np.tanh(inner)))
        return np.asarray(t(0.5) * x[0] * (t(1) + _erf(x[0] * t(_SQRT_HALF)).astype(x[0].dtype)))

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        def const(value: float) -> Expr:
            return s.const(value, s.dtype(x[0]))

        if self.approximate == "tanh":
            inner = const(_SQRT_2_OVER_PI) * (x[0] + const(0.044715) * x[0] * x[0] * x[0])
            return x[0] * s.call("sigmoid", inner + inner)  # (1 + tanh(t)) / 2
        return x[0] * s.call("normal_cdf", x[0])

    @classmethod
    def variants(cls) -> Iterator[Activation]:
        yield from (cls(), cls("tanh"))


class HardSigmoid(Activation, name="hardsigmoid"):
    """min(max(x + 3, 0), 6) / 6."""

    def value(self, *x: Array) -> Array:
        return np.asarray(np.clip(x[0] + 3, 0, 6) / x[0].dtype.type(6))

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        return _relu6_plus_3(s, x[0]) * s.const(1 / 6, s.dtype(x[0]))


class HardSwish(Activation, name="hardswish"):
    """x * hardsigmoid(x) (Howard et al., arXiv:1905.02244)."""

    def value(self, *x: Array) -> Array:
        return np.asarray(x[0] * np.clip(x[0] + 3, 0, 6) / x[0].dtype.type(6))

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        return x[0] * _relu6_plus_3(s, x[0]) * s.const(1 / 6, s.dtype(x[0]))


class Softplus(Activation, name="softplus"):
    """log(1 + exp(beta * x)) / beta; x itself where beta * x > threshold."""

    beta: float = 1.0
    threshold: float = 20.0

    def value(self, *x: Array) -> Array:
        t = x[0].dtype.type
        scaled = x[0] * t(self.beta)
        return np.where(scaled > self.threshold, x[0], np.log1p(np.exp(scaled)) / t(self.beta))

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        def const(value: float) -> Expr:
            return s.const(value, s.dtype(x[0]))

        scaled = x[0] * const(self.beta)
        smooth = s.divide(s.call("log1p", s.call("exp", scaled)), const(self.beta))
        return s.select(scaled > const(self.threshold), x[0], smooth)

    @classmethod
    def variants(cls) -> Iterator[Activation]:
        yield from (cls(), cls(2.5), cls(0.5, 1.0))


class Mish(Activation, name="mish"):
    """x * tanh(log(1 + exp(x))) (Misra, arXiv:1908.08681)."""

    def value(self, *x: Array) -> Array:
        return x[0] * np.tanh(np.log1p(np.exp(x[0])))

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        return x[0] * s.call("tanh", s.call("log1p", s.call("exp", x[0])))


class LogSigmoid(Activation, name="log_sigmoid"):
    """log(sigmoid(x)) = min(x, 0) - log(1 + exp(-|x|))."""

    def value(self, *x: Array) -> Array:
        return np.minimum(x[0], 0) - np.log1p(np.exp(-np.abs(x[0])))

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        zero = _zero(s, x[0])
        return s.minimum(x[0], zero) - s.call("log1p", s.call("exp", zero - s.call("abs", x[0])))


class HardShrink(Activation, name="hardshrink"):
    """0 where -bound <= x <= bound, else x."""

    bound: float = 0.5

    def value(self, *x: Array) -> Array:
        t = x[0].dtype.type
        return np.where((x[0] >= t(-self.bound)) & (x[0] <= t(self.bound)), t(0), x[0])

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        low, high = (s.const(value, s.dtype(x[0])) for value in (-self.bound, self.bound))
        return s.select(s.logical_and(x[0] >= low, x[0] <= high), _zero(s, x[0]), x[0])

    @classmethod
    def variants(cls) -> Iterator[Activation]:
        yield from (cls(), cls(2.0))


class SoftShrink(Activation, name="softshrink"):
    """x - bound above bound, x + bound below -bound, else 0."""

    bound: float = 0.5

    def value(self, *x: Array) -> Array:
        b = x[0].dtype.type(self.bound)
        return np.where(x[0] > b, x[0] - b, np.where(x[0] < -b, x[0] + b, x[0] * 0))

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        b, minus_b, zero = (s.const(value, s.dtype(x[0])) for value in (self.bound, -self.bound, 0))
        inner = s.select(s.call("isnan", x[0]), x[0], zero)
        return s.select(x[0] > b, x[0] - b, s.select(x[0] < minus_b, x[0] + b, inner))

    @classmethod
    def variants(cls) -> Iterator[Activation]:
        yield from (cls(), cls(2.0))


class Threshold(Activation, name="threshold"):
    """`value` where x <= threshold, else x."""

    threshold: float = 0.0
    replacement: float = 0.0

    def value(self, *x: Array) -> Array:
        t = x[0].dtype.type
        return np.where(x[0] <= t(self.threshold), t(self.replacement), x[0])

    def formula(self, s: Scalar, *x: Expr) -> Expr:
        dtype = s.dtype(x[0])
        return s.select(x[0] <= s.const(self.threshold, dtype), s.const(self.replacement, dtype), x[0])

    @classmethod
    def variants(cls) -> Iterator[Activation]:
        yield from (cls(0.5, -7.0), cls(-1.0, 2.0))


def _sigmoid(x: Array) -> Array:
    one = x.dtype.type(1)
    return np.asarray(one / (one + np.exp(-x)))


def _erf(x: Array) -> Array:
    return np.array([math.erf(item) for item in x.ravel()], np.float64).reshape(x.shape)


def _relu6_plus_3(s: Scalar, x: Expr) -> Expr:
    zero, three, six = (s.const(value, s.dtype(x)) for value in (0, 3, 6))
    return s.minimum(s.maximum(x + three, zero), six)


# --- importing from ATen ---------------------------------------------------------------------------------


def _register(overload: str, make: Callable[..., Activation]) -> None:
    """Import `overload(x, *args)` as `make(*args)`; ints are promoted as PyTorch says."""

    def importer(context: ImportContext, x: Value, *args: Any, **kwargs: Any) -> Any:
        return context.emit(make(*args, **kwargs), context.cast(x, context.out_types()[0].dtype))

    aten(overload)(importer)


_register("relu.default", Relu)
_register("leaky_relu.default", lambda negative_slope=0.01: LeakyRelu(float(negative_slope)))
_register("selu.default", lambda: Elu(_SELU_ALPHA, _SELU_SCALE))
_register("celu.default", lambda alpha=1.0: Elu(float(alpha), 1.0, 1.0 / alpha))
_register(
    "elu.default",
    lambda alpha=1, scale=1, input_scale=1: Elu(float(alpha), float(scale), float(input_scale)),
)
_register("sigmoid.default", Sigmoid)
_register("tanh.default", Tanh)
_register("silu.default", Silu)
_register("gelu.default", lambda approximate="none": Gelu(approximate))
_register("hardsigmoid.default", HardSigmoid)
_register("hardswish.default", HardSwish)
_register("softplus.default", lambda beta=1, threshold=20: Softplus(float(beta), float(threshold)))
_register("mish.default", Mish)
_register("log_sigmoid.default", LogSigmoid)
_register("hardshrink.default", lambda lambd=0.5: HardShrink(float(lambd)))
_register("softshrink.default", lambda lambd=0.5: SoftShrink(float(lambd)))
_register("threshold.default", lambda threshold, value: Threshold(float(threshold), float(value)))


@aten("hardtanh.default")
def _hardtanh(context: ImportContext, x: Value, min_val: float = -1, max_val: float = 1) -> Any:
    return compose.clamp(context, x, min_val, max_val)


@aten("relu6.default")
def _relu6(context: ImportContext, x: Value) -> Any:
    return compose.clamp(context, x, 0, 6)


@aten("prelu.default")
def _prelu(context: ImportContext, x: Value, weight: Value) -> Any:
    """One slope per channel (axis 1), or one for all."""
    if x.type.rank > 1 and weight.type.rank == 1:
        weight = compose.reshape(context, weight, (1, *weight.shape, *(1 for _ in range(x.type.rank - 2))))
    elif x.type.rank == 0:
        weight = compose.reshape(context, weight, ())
    return context.emit(PRelu(), x, weight)


@aten("glu.default")
def _glu(context: ImportContext, x: Value, dim: int = -1) -> Any:
    """a * sigmoid(b), a and b the halves of x along `dim` (Dauphin et al., arXiv:1612.08083)."""
    half = x.shape[dim] // 2
    a, b = compose.slice_axis(context, x, dim, 0, half), compose.slice_axis(context, x, dim, half, half * 2)
    return compose.mul(context, a, context.emit(Sigmoid(), b))
