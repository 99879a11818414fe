"""An operator with loops of its own: each element depends on the one before it, which no other form can say."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from transpiler.extension import register_op
from transpiler.ir import TensorType
from transpiler.ops.custom import CustomKernel

# --- for PyTorch ---------------------------------------------------------------------------------------------


@torch.library.custom_op("example::leaky_sum", mutates_args=())
def leaky_sum(x: torch.Tensor, decay: float) -> torch.Tensor:
    """y[:, t] = decay * y[:, t - 1] + x[:, t]"""
    y = x.clone()
    for t in range(1, x.shape[1]):
        y[:, t] += decay * y[:, t - 1]
    return y


leaky_sum.register_fake(lambda x, decay: torch.empty_like(x))


# --- for the transpiler: the type rule, the meaning in numpy, the kernel in TIR -----------------------------------


class LeakySum(CustomKernel, name="example_leaky_sum"):
    decay: float

    def infer(self, x: TensorType) -> TensorType:
        return x

    def reference(self, x: np.ndarray) -> np.ndarray:
        y = x.copy()
        for t in range(1, x.shape[1]):
            y[:, t] += x.dtype.type(self.decay) * y[:, t - 1]
        return y

    def kernel(self, inputs: Sequence[TensorType], outputs: Sequence[TensorType], target: Any) -> Any:
        rows, steps = inputs[0].static_shape()
        dtype = inputs[0].dtype
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("leaky_sum")
            x = T.arg("x", T.buffer((rows, steps), dtype))
            y = T.arg("y", T.buffer((rows, steps), dtype))
            with T.parallel(0, rows) as row:
                T.buffer_store(y, x[row, 0], [row, 0])
                with T.serial(1, steps) as t:
                    T.buffer_store(y, y[row, t - 1] * T.FloatImm(dtype, self.decay) + x[row, t], [row, t])
        return builder.get()


register_op("example::leaky_sum", LeakySum)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(leaky_sum(self.fc(x), 0.9))


def example_inputs() -> tuple[torch.Tensor, ...]:
    return (torch.randn(5, 8, generator=torch.Generator().manual_seed(0)),)
