"""Writing an anchor's result through the group's epilogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.group import Group
from transpiler.ops.base import Elementwise
from transpiler.ops.creation import Full
from transpiler.ops.shape import BroadcastTo

from ..fuse import Inline, probe
from ..scalar import Tir
from ..sizes import Extent
from ..tir import Operands, flat_offset, vector_loop

Expr = Any

# Operations per element above which the epilogue runs as a loop over the written tile instead of being unrolled into
# every accumulator row.
UNROLLED_COST = 12


def elementwise_epilogue(group: Group) -> bool:
    """Whether the nodes after the anchor are what these schedules can fuse: those that depend on it are element-wise on
    its shape, the others compute an operand of theirs from other inputs."""
    anchor = group.anchor_node
    if anchor is None or len(group.outputs) != 1 or group.outputs[0].shape != anchor.outputs[0].shape:
        return False
    dependent = {anchor.outputs[0].name}
    for node in group.epilogue:
        if any(value.name in dependent for value in node.inputs):
            if not isinstance(node.op, Elementwise) or node.output.shape != anchor.outputs[0].shape:
                return False
            dependent.add(node.output.name)
        elif not isinstance(node.op, Elementwise | Full | BroadcastTo):
            return False
    return True


class Epilogue:
    """Stores elements of the anchor's result after applying the epilogue."""

    def __init__(self, group: Group, builder: Operands) -> None:
        assert group.anchor_node is not None
        self.group, self.builder = group, builder
        self.result = group.anchor_node.outputs[0]
        self.output = group.outputs[0]
        self.shape = self.output.type.shape
        self.empty = self.output.name == self.result.name
        needs = probe(group, builder, self.output, self.result)
        self.vectorizes = not needs.scalar_only
        self.temporaries = [self.result.dtype, *needs.binds]
        # In-place loops read the raw result back from the output buffer, so the dtypes must agree.
        self.can_be_in_place = not self.empty and self.output.dtype == self.result.dtype
        self.in_place = needs.cost > UNROLLED_COST and self.can_be_in_place
        # Maps that the epilogue reads at the places it writes.
        own = {value.name for value in group.anchor_node.inputs}
        self.operands = [
            builder.inputs[group.input_index(value)]
            for value in group.inputs
            if value.name not in own and value.shape == self.output.shape
        ]

    def place(self, index: Sequence[Expr]) -> Expr:
        """Where in the output's buffer the element at `index` lies."""
        return flat_offset(index, self.shape)

    def prefetch(self, index: Sequence[Expr]) -> None:
        """Ask for what the epilogue will read at `index`."""
        for operand in self.operands:
            operand.prefetch(flat_offset(index, self.shape))

    def fetch(self, index: Sequence[Expr]) -> None:
        """The same for a tile whose sums take so long that only L2 keeps what came early."""
        for operand in self.operands:
            operand.fetch(flat_offset(index, self.shape))

    def store(self, index: Callable[[Expr], Sequence[Expr]], element: Callable[[Expr], Expr], lanes: Extent) -> None:
        """Store `lanes` elements: for each lane, the epilogue of element(lane) at index(lane)."""
        buffer = self.builder.outputs[0]
        vector = self.vectorizes and isinstance(lanes, int)
        with vector_loop(lanes, self.temporaries) if vector else T.serial(0, lanes) as lane:
            position = list(index(lane))
            value = element(lane)
            if not self.empty:
                s = Tir(status=self.builder.status)
                value = s.bind(value)
                value = Inline(self.group, self.builder, s, {self.result.name: lambda _index: value}).value(
                    self.output, position
                )
            buffer.store(self.place(position), value)

    def write(
        self,
        index: Callable[[Expr], Sequence[Expr]],
        element: Callable[[Expr], Expr],
        lanes: Extent,
        later: bool | None = None,
    ) -> None:
        """`store`, or (`later`, by default for an expensive epilogue) the anchor's own result, to be finished by
        `finish`."""
        if not (self.in_place if later is None else later):
            self.store(index, element, lanes)
            return
        with vector_loop(lanes) if isinstance(lanes, int) else T.serial(0, lanes) as lane:
            self.builder.outputs[0].store(self.place(list(index(lane))), element(lane))

    def finish(self, index: Callable[[Expr], Sequence[Expr]], lanes: Extent) -> None:
        """Apply the epilogue in place to `lanes` elements written by `write`."""
        buffer = self.builder.outputs[0]
        self.store(index, lambda lane: buffer[self.place(list(index(lane)))], lanes)
