"""From PyTorch's state_dict to the tensors that the kernels read, in their final layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from .runtime.host import pack_matmul, put

Array = npt.NDArray[Any]


def prepare(state: Mapping[str, Array], constants: Mapping[str, Array], out: Mapping[str, Array]) -> None:
    """Fill `out` tensor by tensor, so that hardly more than one is held twice.

    `constants` are tensors of the program that are not in its state_dict.
    """
    put(out["body_0_weight_packed"], pack_matmul(state["body.0.weight"]))
    put(out["body_0_bias"], state["body.0.bias"])
    put(out["body_3_weight_packed"], pack_matmul(state["body.3.weight"]))
    put(out["body_3_bias"], state["body.3.bias"])
    put(out["head_weight_packed"], pack_matmul(state["head.weight"]))
    put(out["head_bias"], state["head.bias"])
