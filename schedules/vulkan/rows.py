"""Common to softmax and the norms: the anchor's input through a fused prologue, its result through the epilogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transpiler.group import Group
from transpiler.ops.base import Elementwise, Injective

from ..anchored import Anchored
from ..fuse import Inline, needs_status
from ..gpu.epilogue import Epilogue
from ..scalar import Tir
from ..tir import Buffer, KernelBuilder

Expr = Any


class RowGroup(Anchored):
    """An anchored group, a workgroup for a row."""

    def __init__(self, group: Group, name: str) -> None:
        super().__init__(group)
        self.builder = KernelBuilder(
            name,
            [value.type for value in group.inputs],
            [value.type for value in group.outputs],
            checks_index=needs_status(group),
        )

    @property
    def fits(self) -> bool:
        """Whether the shape of the group is one that the rules take."""
        return super().fits and all(isinstance(node.op, Elementwise | Injective) for node in self.group.prologue)

    @property
    def s(self) -> Tir:
        return Tir(status=self.builder.status)

    def element(self, index: Sequence[Expr]) -> Expr:
        """The anchor's input at `index`."""
        return Inline(self.group, self.builder, self.s).value(self.x, list(index))

    def parameter(self, position: int) -> Buffer | None:
        """The buffer of the anchor's input `position`, if it has that many."""
        if position >= len(self.anchor.inputs):
            return None
        return self.builder.inputs[self.group.input_index(self.anchor.inputs[position])]

    @property
    def store(self) -> Callable[[Sequence[Expr], Expr], None]:
        """Writes an element of the output from one of the anchor's result."""
        return Epilogue(self.group, self.builder).store
