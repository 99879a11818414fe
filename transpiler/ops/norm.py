"""Normalisations: batch, layer, group, instance and root-mean-square."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transpiler.ir import Array, TensorType
from transpiler.ops.base import (
    Expr,
    Injective,
    Load,
    Opaque,
    OpError,
    Sample,
    Scalar,
    rng,
)
from transpiler.ops.wide import narrow, narrow_expr, widen, widen_expr


class BatchNorm(Injective, name="batch_norm"):
    """(x[N, C, ...], mean[C], var[C], weight[C], bias[C]) -> (x - mean) * rsqrt(var + eps) * weight + bias.

    Inference with known statistics (Ioffe, Szegedy, arXiv:1502.03167).
    """

    moves = False
    eps: float

    def infer(self, *types: TensorType) -> TensorType:
        x, *parameters = types
        if len(parameters) != 4 or x.rank < 2 or not x.is_float:
            raise OpError(f"batch_norm: x[N, C, ...] and 4 parameters expected, got {', '.join(map(str, types))}")
        for parameter in parameters:
            if parameter.shape != (x.shape[1],) or parameter.dtype != x.dtype:
                raise OpError(f"batch_norm: parameters of type {x.dtype}[{x.shape[1]}] expected, got {parameter}")
        return x

    def reference(self, *inputs: Array) -> Array:
        x, mean, var, weight, bias = map(widen, inputs)
        mean, var, weight, bias = (v.reshape(-1, *(1,) * (x.ndim - 2)) for v in (mean, var, weight, bias))
        inverse = 1 / np.sqrt(var + x.dtype.type(self.eps))
        return narrow((x - mean) * inverse * weight + bias, inputs[0])

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        x = widen_expr(s, inputs[0](*index))
        mean, var, weight, bias = (widen_expr(s, load(index[1])) for load in inputs[1:])
        inverse = s.call("rsqrt", var + s.const(self.eps, s.dtype(var)))
        return narrow_expr(s, (x - mean) * inverse * weight + bias, types[0].dtype)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in [
            (2, 5, 7, 9),
            (3, 17),
            (1, 3, 11),
            (2, 3, 3, 5, 4),
            (1, 1, 1, 1),
            (0, 3, 2, 2),
            (1, 32, 14, 14),
        ]:
            label = "x".join(map(str, shape))
            g = rng("batch_norm" + label)
            x, mean, weight, bias = (g.standard_normal(s, np.float32) for s in (shape, *(shape[1:2],) * 3))
            var = g.uniform(0.5, 2, shape[1]).astype(np.float32)
            yield Sample(label, cls(1e-5), (x, mean, var, weight, bias))
            yield Sample(f"{label}_large_eps", cls(0.3), (x, mean, var, weight, bias))


class LayerNorm(Opaque, name="layer_norm"):
    """(x[..., *D][, weight[*D], bias[*D]]) -> (x - mean) / sqrt(var + eps) * weight + bias.

    Ba et al., arXiv:1607.06450. D are the last `rank` dims; mean and (biased) variance are over them.
    """

    rank: int
    eps: float

    def infer(self, *types: TensorType) -> TensorType:
        x, *parameters = types
        if len(parameters) not in (0, 2) or not 1 <= self.rank <= x.rank or not x.is_float:
            raise OpError(f"layer_norm: x of rank >= {self.rank} and 0 or 2 parameters expected, got {x}")
        _check_parameters(self, x, parameters, x.shape[x.rank - self.rank :])
        return x

    def reference(self, *inputs: Array) -> Array:
        x, *parameters = map(widen, inputs)
        y = _standardized(x, tuple(range(x.ndim - self.rank, x.ndim)), self.eps)
        return narrow(y * parameters[0] + parameters[1] if parameters else y, inputs[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        cases = [
            ((3, 5), 1),
            ((2, 7, 17), 1),
            ((2, 3, 5), 2),
            ((4,), 1),
            ((5, 1), 1),
            ((0, 4), 1),
            ((50, 64), 1),
        ]
        for shape, rank in cases:
            label = f"{'x'.join(map(str, shape))}_rank{rank}"
            yield from _draw(cls(rank, 1e-5), label, shape, shape[len(shape) - rank :], 2)
        yield from _draw(cls(1, 0.1), "large_eps", (3, 33), (33,), 2)
        for length in (7, 300):
            yield from _flat(cls(1, 1e-5), f"constant_rows_of_{length}", (40, length))


class GroupNorm(Opaque, name="group_norm"):
    """(x[N, C, ...][, weight[C], bias[C]]): standardised over each group of channels and all space.

    Wu, He, arXiv:1803.08494; `groups` = C is instance norm (arXiv:1607.08022).
    """

    groups: int
    eps: float

    def infer(self, *types: TensorType) -> TensorType:
        x, *parameters = types
        if len(parameters) not in (0, 2) or x.rank < 2 or not x.is_float:
            raise OpError(f"group_norm: x[N, C, ...] and 0 or 2 parameters expected, got {x}")
        if not isinstance(x.shape[1], int) or x.shape[1] % self.groups:
            raise OpError(f"group_norm: {x.shape[1]} channels are not divisible by {self.groups} groups")
        _check_parameters(self, x, parameters, x.shape[1:2])
        return x

    def reference(self, *inputs: Array) -> Array:
        x, *parameters = map(widen, inputs)
        inner = int(np.prod(x.shape[1:])) // self.groups
        y = _standardized(x.reshape(x.shape[0], self.groups, inner), (2,), self.eps).reshape(x.shape)
        if parameters:
            weight, bias = (p.reshape(-1, *(1,) * (x.ndim - 2)) for p in parameters)
            y = y * weight + bias
        return narrow(y, inputs[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        cases = [
            ((2, 6, 7, 9), 3),
            ((1, 5, 7), 5),
            ((3, 4), 2),
            ((1, 3, 5, 4, 3), 1),
            ((2, 17, 3, 3), 17),
            ((1, 64, 7, 7), 32),
        ]
        for shape, groups in cases:
            label = f"{'x'.join(map(str, shape))}_groups{groups}"
            yield from _draw(cls(groups, 1e-5), label, shape, shape[1:2], 2)
        yield from _draw(cls(2, 0.1), "large_eps", (2, 6, 5), (6,), 2)
        yield from _flat(cls(6, 1e-5), "constant_channels", (2, 6, 150))


class RmsNorm(Opaque, name="rms_norm"):
    """(x[..., *D][, weight[*D]]) -> x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467).

    D are the last `rank` dims; the mean is over them.
    """

    rank: int
    eps: float

    def infer(self, *types: TensorType) -> TensorType:
        x, *parameters = types
        if len(parameters) > 1 or not 1 <= self.rank <= x.rank or not x.is_float:
            raise OpError(f"rms_norm: x of rank >= {self.rank} and at most 1 parameter expected, got {x}")
        _check_parameters(self, x, parameters, x.shape[x.rank - self.rank :])
        return x

    def reference(self, *inputs: Array) -> Array:
        x, *parameters = map(widen, inputs)
        mean_square = (x * x).mean(tuple(range(x.ndim - self.rank, x.ndim)), keepdims=True)
        y = x / np.sqrt(mean_square + x.dtype.type(self.eps))
        return narrow(y * parameters[0] if parameters else y, inputs[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape, rank in [
            ((3, 5), 1),
            ((2, 7, 17), 1),
            ((2, 3, 5), 2),
            ((5, 1), 1),
            ((0, 4), 1),
            ((50, 64), 1),
        ]:
            label = f"{'x'.join(map(str, shape))}_rank{rank}"
            yield from _draw(cls(rank, 1e-6), label, shape, shape[len(shape) - rank :], 1)


def _standardized(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    centered = x - x.mean(axes, keepdims=True)
    centered = centered - centered.mean(axes, keepdims=True)  # what the mean's rounding left
    return np.asarray(centered / np.sqrt((centered * centered).mean(axes, keepdims=True) + x.dtype.type(eps)))


def _check_parameters(op: Opaque, x: TensorType, parameters: Sequence[TensorType], shape: Sequence[Any]) -> None:
    for parameter in parameters:
        if parameter != TensorType(x.dtype, tuple(shape)):
            raise OpError(
                f"{op.name}: parameters of type {TensorType(x.dtype, tuple(shape))} expected, got {parameter}"
            )


def _draw(op: Opaque, label: str, shape: tuple[int, ...], parameter: tuple[int, ...], arity: int) -> Iterator[Sample]:
    """Without and with parameters; the input's mean is away from 0."""
    g = rng(op.name + label)
    x = g.standard_normal(shape, np.float32) + np.float32(0.5)
    yield Sample(label, op, (x,))
    yield Sample(f"{label}_affine", op, (x, *(g.standard_normal(parameter, np.float32) for _ in range(arity))))


def _flat(op: Opaque, label: str, shape: tuple[int, ...]) -> Iterator[Sample]:
    """Rows of one number each, whose sums are rounded; alone, and beside others that vary."""
    g = rng(op.name + label)
    x = np.broadcast_to(np.float32(50) * g.standard_normal((*shape[:-1], 1), np.float32), shape).copy()
    yield Sample(label, op, (x,))
    mixed = x.copy()
    mixed[0] = g.standard_normal(shape[1:], np.float32)
    yield Sample(f"{label}_and_others", op, (mixed,))
