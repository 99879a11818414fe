"""MLP, transpiled from PyTorch: model(features) -> Array

Generated from mlp.py. Comments show the lines that the kernels below them compute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .kernels.cpu import Kernels
from .prepare import prepare as prepare_weights
from .runtime.arguments import ArrayLike
from .runtime.package import Array, Package
from .runtime.weights import Weights


class Model(Package):
    """MLP, transpiled from PyTorch; see `runtime.package.Package` for what every model can do."""

    folder = Path(__file__).parent
    kernels = Kernels
    prepare = staticmethod(prepare_weights)

    def __call__(self, features: ArrayLike) -> Array:
        """Run the model; numpy arrays and CPU tensors in, numpy arrays out.

        Args:
            features: float32[8, 32].

        Returns:
            float32[8, 5].

        Raises:
            TypeError, ValueError: an argument that does not fit; the text says what was expected.
        """
        (output0,) = self.infer(features)
        return output0

    def forward(self, k: Kernels, w: Weights, features: Array) -> tuple[Array, ...]:
        """The plan, kernel by kernel: flat inputs to flat outputs."""
        # mlp.py:19  return self.head(self.body(features))
        body_1 = k.linear_bias_gelu_8x64(features, w.body_0_weight_packed, w.body_0_bias)  # [8, 64]
        body_4 = k.linear_bias_gelu_8x48(body_1, w.body_3_weight_packed, w.body_3_bias)  # [8, 48]
        head = k.linear_bias_8x5(body_4, w.head_weight_packed, w.head_bias)  # [8, 5]
        return (head,)

    def _bind(self, features: ArrayLike) -> list[Any]:
        return [features]
