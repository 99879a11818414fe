"""What the schedules of convolutions on blocked maps read off a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from transpiler.dims import Dim
from transpiler.group import Group
from transpiler.ir import Node, fixed_size
from transpiler.ops.blocked_conv import BlockedConv

from ..halves import only_operands, operand
from ..sizes import is_fixed
from ..tir import Buffer, Operands
from .epilogue import elementwise_epilogue

Kind = TypeVar("Kind", bound=BlockedConv)


@dataclass(frozen=True)
class Convolution(Generic[Kind]):
    """A group's convolution and its sizes; `inner` counts blocks of 16 channels, or the channels of a plain map."""

    group: Group
    node: Node
    op: Kind
    images: Dim
    inner: int
    height: int
    width: int
    out_height: int
    out_width: int

    def operands(self, builder: Operands) -> tuple[Buffer, Buffer, Buffer | None]:
        """The map, the packed weight, and the bias if there is one."""
        x, weight, *bias = (operand(self.group, builder, value) for value in self.node.inputs)
        return x, weight, bias[0] if bias else None


def convolution(group: Group, *kinds: type[Kind]) -> Convolution[Kind] | None:
    """The group's convolution, if it is one of these on a map of fixed size, with nothing before it and an element-wise
    epilogue."""
    node = group.anchor_node
    if node is None or not isinstance(node.op, kinds) or not only_operands(group) or not elementwise_epilogue(group):
        return None
    shape = node.inputs[0].type.shape
    if not is_fixed(*shape[1:]):
        return None
    inner, height, width = map(fixed_size, shape[1:4])
    out_height, out_width = map(fixed_size, node.output.type.shape[2:4])  # the layout pass sees to it
    return Convolution(group, node, node.op, shape[0], inner, height, width, out_height, out_width)
