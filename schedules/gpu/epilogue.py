"""Writing an anchor's result through the group's epilogue, element by element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transpiler.group import Group

from ..fuse import Inline
from ..scalar import Tir
from ..tir import KernelBuilder, flat_offset

Expr = Any


class Epilogue:
    """Stores elements of the anchor's result after applying the nodes behind it."""

    def __init__(self, group: Group, builder: KernelBuilder) -> None:
        assert group.anchor_node is not None
        self.group, self.builder = group, builder
        self.result = group.anchor_node.outputs[0]
        self.output = group.outputs[0]
        self.shape = self.output.type.shape
        self.empty = self.output.name == self.result.name

    def store(self, index: Sequence[Expr], value: Expr) -> None:
        """The final element."""
        if not self.empty:
            s = Tir(status=self.builder.status)
            value = s.bind(value)
            value = Inline(self.group, self.builder, s, {self.result.name: lambda _index: value}).value(
                self.output, list(index)
            )
        self.builder.outputs[0].store(flat_offset(index, self.shape), value)
