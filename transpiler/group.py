"""A fused group: the nodes that one kernel computes. What a schedule rule is asked to lower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from transpiler.choices import Point
from transpiler.gpu.launches import TensorMap
from transpiler.ir import Node, Value
from transpiler.ops.base import Elementwise, Opaque, Reduce
from transpiler.plan import Kernel
from transpiler.target import Target


@dataclass(frozen=True)
class Group:
    """Nodes in execution order. `anchor` is the index of the one node with loops of its own (an Opaque or Reduce op),
    None for a pointwise group; the nodes before it are its prologue, the ones after it its epilogue. Of a pair (see
    `Target.pairs` and `Target.overlapped`) it is the second; the first, with its own epilogue, is the prologue.

    `inputs` are the values read from outside, each once, in order of first use; `outputs` are the values written.
    Only the last node's outputs are visible outside, of which an anchor with several has no epilogue.

    A group that runs `in_place` is one node that changes a part of its first operand: that operand is not among the
    inputs, it is where the output is.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    anchor: int | None = None
    in_place: bool = False

    @property
    def anchor_node(self) -> Node | None:
        return None if self.anchor is None else self.nodes[self.anchor]

    @property
    def is_pair(self) -> bool:
        """Whether the prologue has loops of its own too."""
        return any(isinstance(node.op, Opaque | Reduce) for node in self.prologue)

    @property
    def prologue(self) -> tuple[Node, ...]:
        return () if self.anchor is None else self.nodes[: self.anchor]

    @property
    def epilogue(self) -> tuple[Node, ...]:
        return () if self.anchor is None else self.nodes[self.anchor + 1 :]

    @property
    def overlaid(self) -> tuple[Value, ...]:
        """Inputs whose bytes the result may be written over: those of its type, of a group that is element-wise all
        through. Element i of the result is written after element i of them was read, and nobody reads it later."""
        if len(self.outputs) != 1 or not all(isinstance(node.op, Elementwise) for node in self.nodes):
            return ()
        return tuple(value for value in self.inputs if value.type == self.outputs[0].type)

    def input_index(self, value: Value) -> int:
        """Position of `value` among the inputs."""
        return [item.name for item in self.inputs].index(value.name)

    def key(self) -> tuple[object, ...]:
        """Equal for groups that the same kernel computes: ops, attributes, types and wiring, without names."""
        numbers = {value.name: number for number, value in enumerate(self.inputs)}
        if self.in_place:
            numbers[self.nodes[0].inputs[0].name] = -1
        nodes = []
        for node in self.nodes:
            wiring = tuple(numbers[value.name] for value in node.inputs)
            for value in node.outputs:
                numbers[value.name] = len(numbers)
            # The text of the attributes tells 0.0 from -0.0, which compare equal.
            nodes.append((type(node.op), repr(node.op), wiring, tuple(value.type for value in node.outputs)))
        outputs = tuple(numbers[value.name] for value in self.outputs)
        return (tuple(value.type for value in self.inputs), tuple(nodes), outputs, self.in_place)


def make_group(nodes: tuple[Node, ...], outputs: tuple[Value, ...]) -> Group:
    """A group of `nodes` (in order) with its outside inputs and its anchor worked out."""
    inside = {value.name for node in nodes for value in node.outputs}
    inputs: dict[str, Value] = {}
    for node in nodes:
        for value in node.inputs:
            if value.name not in inside:
                inputs.setdefault(value.name, value)
    nodes = _prologue_first(nodes)
    anchors = [position for position, node in enumerate(nodes) if isinstance(node.op, Opaque | Reduce)]
    if len(anchors) > 2:
        raise ValueError(f"a group has one anchor or a pair, not {len(anchors)}")
    return Group(nodes, tuple(inputs.values()), outputs, anchors[-1] if anchors else None)


def _prologue_first(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The nodes with those that the anchor does not depend on behind it: they belong to the epilogue."""
    anchor = next((node for node in reversed(nodes) if isinstance(node.op, Opaque | Reduce)), None)
    if anchor is None:
        return nodes
    needed = {value.name for value in anchor.inputs}
    before: list[Node] = []
    for node in reversed(nodes[: nodes.index(anchor)]):
        if any(value.name in needed for value in node.outputs):
            needed.update(value.name for value in node.inputs)
            before.insert(0, node)
    rest = [node for node in nodes if node is not anchor and node not in before]
    return (*before, anchor, *rest)


@dataclass(frozen=True)
class Lowered:
    """A scheduled kernel: its description, its TIR function (a tvm PrimFunc), the choice points of its schedule, and
    the tensors that its function has descriptors of, by the numbers that it calls them (GPUs of NVIDIA)."""

    kernel: Kernel
    function: Any
    points: tuple[Point, ...] = ()
    tensor_maps: tuple[TensorMap, ...] = ()


class Rule(Protocol):
    """A schedule module. `apply` gives the kernel called `name` for the group, or None if it does not take it."""

    def apply(self, group: Group, target: Target, name: str) -> Lowered | None: ...
