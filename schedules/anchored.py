"""What schedules of row-wise ops (softmax, norms) ask of a group on every target."""

from __future__ import annotations

from transpiler.group import Group
from transpiler.ops.base import Elementwise

from .sizes import count


class Anchored:
    """A group around a normalising anchor whose output has the shape of its first input."""

    def __init__(self, group: Group) -> None:
        assert group.anchor_node is not None
        self.group, self.anchor = group, group.anchor_node
        self.x = self.anchor.inputs[0]
        self.result = self.anchor.outputs[0]
        self.output = group.outputs[0]
        self.shape = self.result.type.shape
        self.size = count(self.shape)
        self.dtype = self.result.dtype

    @property
    def fits(self) -> bool:
        """Whether the shape of the group is one that the rules take."""
        inside = {value.name for node in self.group.prologue for value in node.outputs}
        return (
            self.dtype in ("float32", "float64")
            and len(self.group.outputs) == 1
            and self.output.type.shape == self.shape
            and all(isinstance(node.op, Elementwise) for node in self.group.epilogue)
            and not any(value.name in inside for value in self.anchor.inputs[1:])
        )
