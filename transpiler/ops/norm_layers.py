"""ATen's normalisations: missing parameters filled in, native forms with their further outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from transpiler.ir import Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, aten
from transpiler.ops.norm import BatchNorm, GroupNorm, LayerNorm, RmsNorm
from transpiler.ops.wide import wide_dtype


def _in(context: ImportContext, dtype: str, *parameters: Value | None) -> list[Value]:
    """The parameters that are there, in the dtype of the computation."""
    return [context.cast(parameter, dtype) for parameter in parameters if parameter is not None]


def _affine(
    context: ImportContext, dtype: str, shape: Sequence[Any], weight: Value | None, bias: Value | None
) -> list[Value]:
    """Weight and bias, or nothing; one that is missing beside the other becomes ones or zeros."""
    if weight is None and bias is None:
        return []
    weight = compose.full(context, 1.0, shape, dtype) if weight is None else weight
    bias = compose.full(context, 0.0, shape, dtype) if bias is None else bias
    return _in(context, dtype, weight, bias)


def _batch_norm(
    context: ImportContext,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    var: Value,
    eps: float,
) -> Value:
    """Half-precision activations with float32 parameters are computed in float32, as PyTorch does."""
    dtype = mean.dtype
    weight = compose.full(context, 1.0, mean.shape, dtype) if weight is None else weight
    bias = compose.full(context, 0.0, mean.shape, dtype) if bias is None else bias
    y = context.emit(BatchNorm(eps), context.cast(x, dtype), mean, *_in(context, dtype, var, weight, bias))
    return context.cast(y, x.dtype)


def _batch_norm_from_input(
    context: ImportContext, x: Value, weight: Value | None, bias: Value | None, eps: float
) -> Value:
    """Batch norm with the statistics of the batch: each channel is a group of [1, C, N, ...]."""
    order = (1, 0, *range(2, x.type.rank))
    channels_first = compose.transpose(context, x, order)
    parameters = _affine(context, x.dtype, x.shape[1:2], weight, bias)
    groups = x.shape[1]
    if not isinstance(groups, int):
        raise context.unsupported("batch norm over a symbolic number of channels with the batch's own statistics")
    y = context.emit(
        GroupNorm(groups, eps),
        compose.reshape(context, channels_first, (1, *channels_first.shape)),
        *parameters,
    )
    return compose.transpose(context, compose.reshape(context, y, channels_first.shape), order)


def _moments(context: ImportContext, x: Value, axes: Sequence[int], eps: float, keepdims: bool) -> tuple[Value, Value]:
    """Mean and 1 / sqrt(variance + eps): the further outputs of ATen's native norms, dropped where unused."""
    mean = compose.reduce_mean(context, x, axes)
    centered = compose.sub(context, x, mean)
    variance = compose.reduce_mean(context, compose.mul(context, centered, centered), axes)
    inverse = compose.rsqrt(context, compose.add(context, variance, context.scalar(eps, x.dtype)))
    if keepdims:
        return mean, inverse
    shape = [dim for axis, dim in enumerate(x.shape) if axis not in axes]
    return compose.reshape(context, mean, shape), compose.reshape(context, inverse, shape)


@aten("batch_norm.default")
def _import_batch_norm(
    context: ImportContext, x: Value, weight: Value | None, bias: Value | None, mean: Value | None,
    var: Value | None, training: bool, momentum: float, eps: float, _cudnn: bool = False,
) -> Any:  # fmt: skip
    if mean is None or var is None:
        return _batch_norm_from_input(context, x, weight, bias, eps)
    if training:
        raise context.unsupported("batch norm in training mode updates its statistics; call model.eval() first")
    return _batch_norm(context, x, weight, bias, mean, var, eps)


@aten("_native_batch_norm_legit_no_training.default")
def _native_batch_norm_eval(
    context: ImportContext, x: Value, weight: Value | None, bias: Value | None, mean: Value, var: Value,
    momentum: float, eps: float,
) -> Any:  # fmt: skip
    """Two empty tensors stand for the statistics that training would save."""
    empty = [compose.full(context, 0.0, t.shape, t.dtype) for t in context.out_types()[1:]]
    return (_batch_norm(context, x, weight, bias, mean, var, eps), *empty)


@aten("_native_batch_norm_legit.default", "native_batch_norm.default")
def _native_batch_norm(
    context: ImportContext, x: Value, weight: Value | None, bias: Value | None, mean: Value | None,
    var: Value | None, training: bool, momentum: float, eps: float,
) -> Any:  # fmt: skip
    if training and mean is None:
        return _native_batch_norm_no_stats(context, x, weight, bias, training, momentum, eps)
    if training or mean is None or var is None:
        raise context.unsupported("batch norm in training mode updates its statistics; call model.eval() first")
    return _native_batch_norm_eval(context, x, weight, bias, mean, var, momentum, eps)


@aten("_native_batch_norm_legit.no_stats")
def _native_batch_norm_no_stats(
    context: ImportContext, x: Value, weight: Value | None, bias: Value | None, training: bool,
    momentum: float, eps: float,
) -> Any:  # fmt: skip
    if not training:
        raise context.unsupported("batch norm without statistics outside training mode")
    axes = (0, *range(2, x.type.rank))
    return (
        _batch_norm_from_input(context, x, weight, bias, eps),
        *_moments(context, x, axes, eps, keepdims=False),
    )


@aten("layer_norm.default")
def _layer_norm(
    context: ImportContext, x: Value, normalized_shape: Sequence[Any], weight: Value | None = None,
    bias: Value | None = None, eps: float = 1e-5, _cudnn: bool = True,
) -> Any:  # fmt: skip
    parameters = _affine(context, x.dtype, normalized_shape, weight, bias)
    return context.emit(LayerNorm(len(normalized_shape), eps), x, *parameters)


@aten("native_layer_norm.default")
def _native_layer_norm(
    context: ImportContext, x: Value, normalized_shape: Sequence[Any], weight: Value | None,
    bias: Value | None, eps: float,
) -> Any:  # fmt: skip
    axes = range(x.type.rank - len(normalized_shape), x.type.rank)
    y = _layer_norm(context, x, normalized_shape, weight, bias, eps)
    return (y, *_moments(context, x, axes, eps, keepdims=True))


@aten("group_norm.default")
def _group_norm(
    context: ImportContext, x: Value, num_groups: int, weight: Value | None = None, bias: Value | None = None,
    eps: float = 1e-5, _cudnn: bool = True,
) -> Any:  # fmt: skip
    return context.emit(GroupNorm(num_groups, eps), x, *_affine(context, x.dtype, x.shape[1:2], weight, bias))


@aten("native_group_norm.default")
def _native_group_norm(
    context: ImportContext, x: Value, weight: Value | None, bias: Value | None, n: Any, c: Any, hw: Any,
    group: int, eps: float,
) -> Any:  # fmt: skip
    grouped = compose.reshape(context, x, (n, group, compose.product(x.shape[1:]) // group))
    y = _group_norm(context, x, group, weight, bias, eps)
    return (y, *_moments(context, grouped, (2,), eps, keepdims=False))


@aten("instance_norm.default")
def _instance_norm(
    context: ImportContext, x: Value, weight: Value | None, bias: Value | None, mean: Value | None,
    var: Value | None, use_input_stats: bool, momentum: float, eps: float, _cudnn: bool = False,
) -> Any:  # fmt: skip
    if use_input_stats and mean is not None:
        raise context.unsupported("instance norm in training mode updates its statistics; call model.eval() first")
    if mean is not None and var is not None:
        return _batch_norm(context, x, weight, bias, mean, var, eps)
    groups = x.shape[1]
    if not isinstance(groups, int):
        raise context.unsupported("instance norm over a symbolic number of channels")
    return _group_norm(context, x, groups, weight, bias, eps)


@aten("rms_norm.default")
def _rms_norm(
    context: ImportContext, x: Value, normalized_shape: Sequence[Any], weight: Value | None = None,
    eps: float | None = None,
) -> Any:  # fmt: skip
    """`eps` None is the machine epsilon of the dtype that is computed in."""
    if eps is None:
        eps = float(np.finfo(wide_dtype(x.dtype)).eps)
    return context.emit(RmsNorm(len(normalized_shape), eps), x, *_in(context, x.dtype, weight))


@aten("_fused_rms_norm.default")
def _fused_rms_norm(
    context: ImportContext, x: Value, normalized_shape: Sequence[Any], weight: Value | None, eps: float | None
) -> Any:
    y = _rms_norm(context, x, normalized_shape, weight, eps)
    axes = range(x.type.rank - len(normalized_shape), x.type.rank)
    mean_square = compose.reduce_mean(context, compose.mul(context, x, x), axes)
    eps = float(np.finfo(wide_dtype(x.dtype)).eps) if eps is None else eps
    return y, compose.rsqrt(context, compose.add(context, mean_square, context.scalar(eps, x.dtype)))
