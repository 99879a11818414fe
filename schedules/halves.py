"""Half floats in memory, float32 in registers: buffers that are seen as what they are computed as.

Conversions are instructions of every CPU of today and of GPUs: float16 by F16C and AVX-512, bfloat16 by a shift. A
weight is converted where a product loads it, so that its bytes are what memory delivers.
"""

from __future__ import annotations

from typing import Any

from transpiler.group import Group
from transpiler.ir import Node, Value
from transpiler.ops.dtypes import HALF
from transpiler.ops.halves import Widen

from .scalar import Tir
from .tir import LANES, Buffer, Operands
from .vectors import VectorTir

Expr = Any


class HalfBuffer(Buffer):
    """A buffer of half floats, seen as float32: loads widen, stores round to nearest, ties to even."""

    def __init__(self, stored: Buffer) -> None:
        super().__init__(stored.handle, "float32", stored.size, stored.base)
        self._stored = stored

    def __getitem__(self, offset: Expr) -> Expr:
        return Tir(statements=False).cast(self._stored[offset], "float32")

    def vector(self, offset: Expr, lanes: int = LANES) -> Expr:
        s = VectorTir(statements=False, lanes=lanes)
        return s.cast(self._stored.vector(offset, lanes), "float32")

    def store(self, offset: Expr, value: Expr) -> None:
        self._stored.store(offset, Tir().cast(value, self._stored.dtype))

    def store_vector(self, offset: Expr, value: Expr, lanes: int = LANES) -> None:
        self._stored.store_vector(offset, VectorTir(lanes=lanes).cast(value, self._stored.dtype), lanes)


def widened(group: Group, value: Value) -> Value | None:
    """The half floats in memory that the group sees as `value`; None if it reads something else."""
    for node in group.nodes:
        if isinstance(node.op, Widen) and node.output.name == value.name:
            return node.inputs[0]
    return None


def operand(group: Group, builder: Operands, value: Value) -> Buffer:
    """The buffer of an anchor's input, seen as float32 if it holds half floats."""
    stored = widened(group, value)
    if stored is None:
        return builder.inputs[group.input_index(value)]
    return HalfBuffer(builder.inputs[group.input_index(stored)])


def computed(group: Group) -> tuple[Node, ...]:
    """The nodes of a group but those that only say how its inputs are stored."""
    return tuple(node for node in group.nodes if not isinstance(node.op, Widen))


def only_operands(group: Group) -> bool:
    """Whether nothing is computed before the anchor: its inputs are in memory, perhaps as half floats."""
    return all(isinstance(node.op, Widen) for node in group.prologue)


def seen(buffer: Buffer, dtype: str) -> Buffer:
    """A buffer as what is computed in `dtype`."""
    return HalfBuffer(buffer) if buffer.dtype in HALF and dtype == "float32" else buffer
