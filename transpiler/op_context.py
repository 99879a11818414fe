"""What the importer of an op may do: `transpiler.ops.base.ImportContext` on an FX graph."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node as FxNode

from transpiler.boundary import Boundary
from transpiler.capture import Captured
from transpiler.dims import Dim
from transpiler.ir import Array, Node, Role, TensorType, Value
from transpiler.ops import Op
from transpiler.ops.compare import Cast
from transpiler.symbols import tensor_type, to_dim


class OpContext(Boundary):
    """The import of one call (`current`): the nodes that its importer emits wait in `pending` for their names."""

    def __init__(self, captured: Captured, state: Collection[str], rng: bool) -> None:
        super().__init__(captured, state)
        self.rng = rng
        self.rng_state: Value | None = None
        self.random_nodes: list[FxNode] = []  # one per stream
        self.nodes: list[Node] = []
        self.pending: list[Node] = []
        self.current: FxNode | None = None
        self.constant_inputs: dict[tuple[str, tuple[int, ...], bytes], Value] = {}

    def emit(self, op: Op, *inputs: Value) -> Any:
        types = op.infer_types([value.type for value in inputs])
        outputs = tuple(Value(f"{len(self.nodes)}.{len(self.pending)}.{i}", type_) for i, type_ in enumerate(types))
        self.pending.append(Node(op, inputs, outputs))
        return outputs[0] if len(outputs) == 1 else outputs

    def scalar(self, value: float | int | bool, dtype: str) -> Value:
        text = str(value).replace("-", "m").replace("+", "")
        return self._constant(_as_dtype(np.asarray(value), dtype), f"scalar_{text}")

    def array(self, data: Array) -> Value:
        return self._constant(np.ascontiguousarray(data), "constant")

    def _constant(self, data: Array, wish: str) -> Value:
        identity = (str(data.dtype), data.shape, data.tobytes())
        if identity not in self.constant_inputs:
            value = self.add_input(wish, "", Role.CONSTANT, TensorType(str(data.dtype), data.shape), None)
            self.inputs[-1] = replace(self.inputs[-1], key=value.name)
            self.constants[value.name] = data
            self.constant_inputs[identity] = value
        return self.constant_inputs[identity]

    def cast(self, value: Value, dtype: str) -> Value:
        if value.dtype == dtype:
            return value
        result: Value = self.emit(Cast(dtype), value)
        return result

    def out_types(self) -> tuple[TensorType, ...]:
        assert self.current is not None
        return tuple(tensor_type(value, self.symbol_names) for value in tensors(self.current))

    def storage(self) -> tuple[tuple[Dim, ...], Dim]:
        assert self.current is not None
        tensor = self.current.all_input_nodes[0].meta["val"]
        strides = tuple(to_dim(stride, self.symbol_names) for stride in tensor.stride())
        return strides, to_dim(tensor.storage_offset(), self.symbol_names)

    def random_source(self) -> tuple[Value, int]:
        if not self.rng:
            raise UnsupportedUseError(
                "draws random numbers; --rng gives it a seeded generator (not PyTorch's), or pass them in as an input"
            )
        if self.rng_state is None:
            self.rng_state = self.add_input("rng", "rng", Role.RNG, TensorType("int64", (2,)), None)
        assert self.current is not None
        self.random_nodes.append(self.current)
        return self.rng_state, len(self.random_nodes) - 1

    def unsupported(self, reason: str) -> Exception:
        return UnsupportedUseError(reason)


class UnsupportedUseError(Exception):
    """Raised by op importers through `ImportContext.unsupported`."""


def tensors(node: FxNode) -> list[torch.Tensor]:
    """The node's results that are tensors."""
    values = node.meta.get("val")
    values = values if isinstance(values, tuple | list) else (values,)
    return [value for value in values if isinstance(value, torch.Tensor)]


def _as_dtype(data: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        import ml_dtypes

        return data.astype(ml_dtypes.bfloat16)
    return data.astype(dtype)
