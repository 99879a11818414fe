"""Dropout (identity in eval mode) and the ATen ops that draw random numbers, which are refused."""

from __future__ import annotations

from typing import Any

from transpiler.ir import Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, aten


@aten("dropout.default", "feature_dropout.default", "alpha_dropout.default", "feature_alpha_dropout.default")
def _dropout(context: ImportContext, x: Value, p: float, train: bool) -> Any:
    if train and p:
        raise context.unsupported("draws random numbers in training mode; call model.eval() first")
    return x


@aten("native_dropout.default")
def _native_dropout(context: ImportContext, x: Value, p: float, train: bool | None) -> Any:
    """(x, the mask of what was kept). `train` None means training."""
    kept = _dropout(context, x, p, train is not False)
    return kept, compose.full(context, True, x.shape, "bool")


@aten(
    "rand.default", "rand.generator", "rand_like.default", "rand_like.generator",
    "randn.default", "randn.generator", "randn_like.default", "randn_like.generator",
    "randint.default", "randint.generator", "randint.low", "randint.low_generator",
    "randint_like.default", "randint_like.low_dtype", "randint_like.Tensor", "randperm.default",
    "randperm.generator", "bernoulli.default", "bernoulli.p", "bernoulli.Tensor", "multinomial.default",
    "poisson.default", "normal.Tensor_float", "normal.float_Tensor", "normal.Tensor_Tensor",
    "normal.float_float", "normal_functional.default", "uniform.default", "exponential.default",
    "rrelu_with_noise.default",
)  # fmt: skip
def _random(context: ImportContext, *_: Any, **__: Any) -> Any:
    raise context.unsupported(
        "draws random numbers, so its result cannot be compared with PyTorch's; pass them in as an input"
    )
