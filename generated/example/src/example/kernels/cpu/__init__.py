"""The CPU kernels of example as functions on numpy arrays.

`Model(native=False)` and `model.tap` call them one by one; a normal call runs the same plan as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...runtime.kernels import KernelLibrary

Array = npt.NDArray[Any]


class Kernels(KernelLibrary):
    """One method per kernel. Arrays are C-contiguous and of exactly the types that a method's docstring states."""

    plans: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "forward": (
            "linear_bias_gelu_8x64",
            "linear_bias_gelu_8x48",
            "linear_bias_8x5",
        ),
    }

    def linear_bias_gelu_8x64(self, features: Array, weight: Array, bias: Array) -> Array:
        """linear_packed + gelu

        features float32[8, 32], weight float32[4, 32, 16], bias float32[64] -> float32[8, 64]
        """
        out = np.empty((8, 64), np.float32)
        self.launch("linear_bias_gelu_8x64", (features, weight, bias), (out,))
        return out

    def linear_bias_gelu_8x48(self, x0: Array, weight: Array, bias: Array) -> Array:
        """linear_packed + gelu

        x0 float32[8, 64], weight float32[3, 64, 16], bias float32[48] -> float32[8, 48]
        """
        out = np.empty((8, 48), np.float32)
        self.launch("linear_bias_gelu_8x48", (x0, weight, bias), (out,))
        return out

    def linear_bias_8x5(self, x0: Array, weight: Array, bias: Array) -> Array:
        """linear_packed

        x0 float32[8, 48], weight float32[1, 48, 16], bias float32[5] -> float32[8, 5]
        """
        out = np.empty((8, 5), np.float32)
        self.launch("linear_bias_8x5", (x0, weight, bias), (out,))
        return out
