"""From PyTorch's state_dict to the tensors that the kernels read, in their final layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .runtime.host import pack_matmul

Array = npt.NDArray[Any]


def prepare(state: Mapping[str, Array], constants: Mapping[str, Array]) -> dict[str, Array]:
    """The prepared tensors by name. `constants` are tensors of the program that are not in its state_dict."""
    body_0_weight = state["body.0.weight"]
    body_0_bias = state["body.0.bias"]
    body_3_weight = state["body.3.weight"]
    body_3_bias = state["body.3.bias"]
    head_weight = state["head.weight"]
    head_bias = state["head.bias"]
    body_0_weight_packed = pack_matmul(body_0_weight)
    body_3_weight_packed = pack_matmul(body_3_weight)
    head_weight_packed = pack_matmul(head_weight)
    return {
        "body_0_weight_packed": np.ascontiguousarray(body_0_weight_packed, np.float32).reshape((4, 32, 16)),
        "body_0_bias": np.ascontiguousarray(body_0_bias, np.float32).reshape((64,)),
        "body_3_weight_packed": np.ascontiguousarray(body_3_weight_packed, np.float32).reshape((3, 64, 16)),
        "body_3_bias": np.ascontiguousarray(body_3_bias, np.float32).reshape((48,)),
        "head_weight_packed": np.ascontiguousarray(head_weight_packed, np.float32).reshape((1, 48, 16)),
        "head_bias": np.ascontiguousarray(head_bias, np.float32).reshape((5,)),
    }
