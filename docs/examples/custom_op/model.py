"""Two operators of our own: one element by element, one that reduces; and what they mean to the transpiler."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from transpiler.extension import register_op
from transpiler.ir import TensorType
from transpiler.ops.base import Elementwise, Reduce, Reduction

# --- for PyTorch ---------------------------------------------------------------------------------------------


@torch.library.custom_op("example::soft_clip", mutates_args=())
def soft_clip(x: torch.Tensor, limit: float) -> torch.Tensor:
    return x / torch.sqrt(1 + (x / limit) ** 2)


@torch.library.custom_op("example::energy", mutates_args=())
def energy(x: torch.Tensor) -> torch.Tensor:
    return (x * x).sum(-1)


soft_clip.register_fake(lambda x, limit: torch.empty_like(x))
energy.register_fake(lambda x: x.new_empty(x.shape[:-1]))


# --- for the transpiler: the type rule, the meaning in numpy, one element of the kernel --------------------------


class SoftClip(Elementwise, name="example_soft_clip"):
    limit: float

    def reference(self, x: np.ndarray) -> np.ndarray:
        limit = x.dtype.type(self.limit)
        return x / np.sqrt(1 + np.square(x / limit))

    def scalar(self, s: Any, x: Any) -> Any:
        one, limit = s.const(1.0, s.dtype(x)), s.const(self.limit, s.dtype(x))
        ratio = s.divide(x, limit)
        return s.divide(x, s.call("sqrt", one + ratio * ratio))


class Energy(Reduce, name="example_energy"):
    def infer(self, x: TensorType) -> TensorType:
        return x.with_shape(x.shape[:-1])

    def reference(self, x: np.ndarray) -> np.ndarray:
        return np.sum(x * x, -1, dtype=x.dtype)

    def reduction(self, s: Any, inputs: Sequence[Any], types: Sequence[TensorType], index: Sequence[Any]) -> Reduction:
        def square(r: Sequence[Any]) -> tuple[Any]:
            value = inputs[0](*index, r[0])
            return (value * value,)

        return Reduction(
            extents=types[0].shape[-1:],
            init=(s.const(0.0, types[0].dtype),),
            body=square,
            combine=lambda total, value: (total[0] + value[0],),
            finish=lambda total: total[0],
        )


register_op("example::soft_clip", SoftClip)
register_op("example::energy", Energy)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 40)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        clipped = soft_clip(self.fc(x), 0.5)
        return clipped, energy(clipped)


def example_inputs() -> tuple[torch.Tensor, ...]:
    return (torch.randn(5, 8, generator=torch.Generator().manual_seed(0)),)
