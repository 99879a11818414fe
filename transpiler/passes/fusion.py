"""Partitioning a function into steps: fused groups (kernels) and views.

Every group runs at the place of its last node. A node joins the group of a producer when it is that value's only
user, so nothing between can depend on the group and the order stays valid. What may join follows from the target's
facts: element-wise ops join the epilogue of the kernels that take one, cheap ops are recomputed inside the kernels
that read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from transpiler.group import Group, make_group
from transpiler.ir import Graph, Node, Value
from transpiler.ops.base import Elementwise, Injective, Opaque, Reduce
from transpiler.ops.compare import Cast
from transpiler.ops.creation import Full
from transpiler.ops.dtypes import HALF, numpy_dtype
from transpiler.ops.halves import Widen
from transpiler.ops.packed import UnpackChannels
from transpiler.ops.shape import BroadcastTo, Reshape, Transpose
from transpiler.strides import View, view_of
from transpiler.target import Target

# Operations per element up to which a producer is recomputed where an index mapping or a reduction reads it.
CHEAP = 4
# A pointwise kernel of more nodes than this stops growing: its expression would outgrow the registers.
MAX_NODES = 40
# Buffers that a kernel may take besides its inputs and outputs: a workspace and the status word.
OTHER_BUFFERS = 2
# What is read by strides of a target's `strided` ops: q, k and v of an attention, not its mask.
STRIDED_INPUTS = 3
# Computed inside of all users, if those can, and never stored.
FREE = (Full, BroadcastTo, Widen)


@dataclass(frozen=True)
class GroupStep:
    group: Group


@dataclass(frozen=True)
class ViewStep:
    """A reshape: no code."""

    node: Node


FusedStep = GroupStep | ViewStep


def partition(graph: Graph, target: Target, *, fuse: bool = True) -> tuple[FusedStep, ...]:
    """The steps of `graph` in execution order. Without `fuse` every node is a kernel of its own."""
    return _Partition(graph, target, fuse).run()


class _Partition:
    def __init__(self, graph: Graph, target: Target, fuse: bool) -> None:
        self.graph, self.target, self.fuse = graph, target, fuse
        self.consumers = graph.consumers()
        self.producers = graph.producers()
        self.outputs = graph.kept_names()
        self.group_of: dict[str, int] = {}  # value -> open group that computes it
        self.groups: dict[int, list[Node]] = {}
        self.views: dict[int, Node] = {}
        # Outputs of nodes that the kernels behind them read through.
        self.through = self._read_through() if fuse else frozenset()

    def run(self) -> tuple[FusedStep, ...]:
        for position, node in enumerate(self.graph.nodes):
            if node.outputs[0].name in self.through or (isinstance(node.op, FREE) and self._free_everywhere(node)):
                continue
            if isinstance(node.op, Reshape):
                self.views[position] = node
                continue
            members = [item for group in self._candidates(node) for item in self.groups.pop(group)]
            # A group is numbered by its last node.
            self.groups[position] = [*members, node]
            for item in self.groups[position]:
                self.group_of.update({value.name: position for value in item.outputs})
        steps: list[tuple[int, FusedStep]] = [(position, ViewStep(node)) for position, node in self.views.items()]
        order = {value.name: index for index, node in enumerate(self.graph.nodes) for value in node.outputs}
        for number, members in self.groups.items():
            nodes = sorted(self._with_free(members), key=lambda node: order[node.outputs[0].name])
            steps.append((number, GroupStep(make_group(tuple(nodes), members[-1].outputs))))
        return tuple(step for _, step in sorted(steps, key=lambda item: item[0]))

    def _read_through(self) -> frozenset[str]:
        """Views that lie evenly in memory and that only strided ops read, each all the way: they are never stored."""
        allowed = frozenset(self.producers) - self.outputs
        while True:
            views = [
                (node, self._view(node, value, allowed)) for node in self.graph.nodes for value in self._strided(node)
            ]
            stored = {view.source.name for _, view in views}
            used = {item.output.name for _, view in views for item in view.nodes} - stored
            readers = {node.outputs[0].name for node, _ in views} | used
            left = frozenset(name for name in used if self._read_by(name, readers))
            if left == allowed:
                return left
            allowed = left

    def _strided(self, node: Node) -> Sequence[Value]:
        """The inputs of a node that are read by their strides."""
        if node.op.name not in self.target.strided or any(_varies(value) for value in node.inputs[:STRIDED_INPUTS]):
            return ()
        others = {value.name for value in node.inputs[STRIDED_INPUTS:]}
        return [value for value in node.inputs[:STRIDED_INPUTS] if value.name not in others]

    def _view(self, node: Node, value: Value, allowed: frozenset[str]) -> View:
        widens = node.op.name in self.target.widened

        def maker(item: Value) -> Node | None:
            return self.producers.get(item.name) if item.name in allowed else None

        def takes(view: View) -> bool:
            return view.is_aligned(self.target.strided_bytes) and (widens or view.source.dtype == value.dtype)

        return view_of(value, maker, takes)

    def _read_by(self, name: str, readers: set[str]) -> bool:
        """Whether nothing but these nodes reads a value, an op with others as well only by its strides."""
        users = self.consumers[name]
        strided = all(
            name in (item.name for item in self._strided(user)) for user in users if user.op.name in self.target.strided
        )
        return strided and all(user.outputs[0].name in readers for user in users)

    def _free_everywhere(self, node: Node) -> bool:
        """Whether a constant, broadcast or widened value is computed inside all of its users and never stored."""
        name = node.output.name
        return name not in self.outputs and all(self._inlines(user, node) for user in self.consumers[name])

    def _inlines(self, user: Node, producer: Node) -> bool:
        if isinstance(user.op, Reshape) or user.outputs[0].name in self.through:
            return False
        if isinstance(user.op, FREE):
            return self._free_everywhere(user)
        if isinstance(user.op, Elementwise | Injective):
            return True
        if isinstance(producer.op, Widen) and user.op.name in self.target.widened:
            return True
        return isinstance(user.op, Reduce) and user.op.name in self.target.prologue

    def _with_free(self, members: Sequence[Node]) -> list[Node]:
        """The members and the free nodes (constants, broadcasts, widened values) that they read."""
        result = {node.outputs[0].name: node for node in members}
        pending = list(members)
        while pending:
            for value in pending.pop().inputs:
                producer = self.producers.get(value.name)
                if producer is None or value.name in result:
                    continue
                free = isinstance(producer.op, FREE) and self._free_everywhere(producer)
                if free or value.name in self.through:
                    result[value.name] = producer
                    pending.append(producer)
        return list(result.values())

    def _candidates(self, node: Node) -> list[int]:
        """Open groups that `node` joins, at most one of them with an anchor; a pair has two."""
        if not self.fuse:
            return []
        if len(node.outputs) != 1:
            return self._overlapped(node)
        chosen: list[int] = []
        joined = [node]
        anchored = isinstance(node.op, Reduce | Opaque)
        size = 1
        # The latest first; groups with an anchor before others, since what they can take in besides is limited.
        reads = self._reads(node)
        reads.reverse()
        for value in sorted(reads, key=lambda value: self._anchor_of(value) is None):
            number = self.group_of.get(value.name)
            if number is None or number in chosen or not self._only_user(value, node):
                continue
            members = self.groups[number]
            anchor = self._anchor_of(value)
            if size + len(members) > MAX_NODES or not self._joins(node, value, members, anchor):
                continue
            if not self._binds([*members, *joined]):
                continue
            if anchor is not None and not self._pairs(node, value, members, anchor):
                if anchored:
                    continue
                anchored = True
            elif anchored and isinstance(node.op, Elementwise) and not _is_plain(members):
                # An index mapping in an epilogue would keep it from being a vector loop; kernels with an epilogue have
                # no status word to report a check to.
                continue
            chosen.append(number)
            joined += members
            size += len(members)
        return chosen

    def _binds(self, members: Sequence[Node]) -> bool:
        """Whether kernels of the target can have the buffers of a group."""
        most = self.target.gpu.buffers if self.target.is_gpu else 0
        if not most:
            return True
        nodes = self._with_free(members)
        made = {value.name for item in nodes for value in item.outputs}
        read = {value.name for item in nodes for value in item.inputs} - made
        return len(read) + len(members[-1].outputs) + OTHER_BUFFERS <= most

    def _anchor_of(self, value: Value) -> Node | None:
        """The anchor of the open group that computes `value`."""
        members = self.groups.get(self.group_of.get(value.name, -1), [])
        return next((item for item in reversed(members) if isinstance(item.op, Reduce | Opaque)), None)

    def _reads(self, node: Node) -> list[Value]:
        """What the node reads, through free broadcasts."""
        values: dict[str, Value] = {}
        for value in node.inputs:
            producer = self.producers.get(value.name)
            if producer is not None and isinstance(producer.op, BroadcastTo) and self._free_everywhere(producer):
                values.update({item.name: item for item in producer.inputs})
            else:
                values[value.name] = value
        return list(values.values())

    def _only_user(self, value: Value, node: Node) -> bool:
        if value.name in self.outputs:
            return False
        users = [
            user for user in self.consumers[value.name]
            if not (isinstance(user.op, BroadcastTo) and self._free_everywhere(user))
        ]  # fmt: skip
        through = [
            user
            for consumer in self.consumers[value.name]
            if consumer not in users
            for user in self.consumers[consumer.output.name]
        ]
        return all(user is node for user in (*users, *through))

    def _joins(self, node: Node, value: Value, members: Sequence[Node], anchor: Node | None) -> bool:
        if anchor is not None and self._pairs(node, value, members, anchor):
            return True
        if isinstance(node.op, Opaque):
            return False
        if anchor is not None and _keeps_rows(node):
            narrowed = all(isinstance(item.op, Cast) for item in members[members.index(anchor) + 1 :])
            return anchor.op.name in self.target.strided and narrowed
        cost = sum(item.op.cost for item in members)
        if anchor is not None and isinstance(node.op, Cast) and node.output.dtype in HALF:
            moved = _keeps_rows(members[-1])
            narrows = anchor.op.name in self.target.epilogue | self.target.narrowed
            return narrows and (moved or self._is_result(members, anchor))
        if isinstance(node.op, Elementwise):
            if value.shape != node.output.shape:
                # A smaller operand would be recomputed for every element that it is broadcast to.
                return anchor is None and cost <= CHEAP
            in_epilogue = anchor is not None and anchor.op.name in self.target.epilogue and not node.op.checks_index
            return anchor is None or (in_epilogue and self._is_result(members, anchor))
        if anchor is not None or cost > CHEAP or any(item.op.checks_index for item in members):
            return False
        if isinstance(node.op, UnpackChannels) and not _is_plain(members):
            # Two layouts in one expression would be read with gaps; alone, it joins the mapping that follows.
            return False
        if isinstance(node.op, Injective):
            return not node.op.checks_index
        return isinstance(node.op, Reduce) and node.op.name in self.target.prologue

    def _pairs(self, node: Node, value: Value, members: Sequence[Node], anchor: Node) -> bool:
        """Whether `node` and the anchor before it are one kernel, since the map between would not stay in L2."""
        if (anchor.op.name, node.op.name) not in self.target.pairs or value.name != node.inputs[0].name:
            return False
        if getattr(anchor.op, "groups", 1) > 1 or getattr(node.op, "group", 1) > 1:
            return False
        if sum(isinstance(item.op, Reduce | Opaque) for item in members) > 1 or not self._is_result(members, anchor):
            return False
        image = prod(dim for dim in value.shape[1:] if isinstance(dim, int)) * numpy_dtype(value.dtype).itemsize
        return image >= self.target.pair_bytes

    def _overlapped(self, node: Node) -> list[int]:
        """The open group of a product alone that `node`, which runs over the steps of one row, has time for."""
        number = self.group_of.get(node.inputs[0].name)
        if number is None or not self._only_user(node.inputs[0], node):
            return []
        before, *others = self.groups[number]
        if others or (before.op.name, node.op.name) not in self.target.overlapped:
            return []
        steps, rows = before.output.shape[:2]
        return [number] if rows == 1 and isinstance(steps, int) and steps >= self.target.overlapped_steps else []

    def _is_result(self, members: Sequence[Node], anchor: Node) -> bool:
        """Whether the group's last node is on the anchor's result's shape: nodes after it were taken in only so."""
        return len(anchor.outputs) == 1 and members[-1].output.shape == anchor.outputs[0].shape


def _keeps_rows(node: Node) -> bool:
    """Whether a node only changes where rows lie: a transpose that keeps the last axis."""
    return isinstance(node.op, Transpose) and len(node.op.perm) > 1 and node.op.perm[-1] == len(node.op.perm) - 1


def _varies(value: Value) -> bool:
    """Whether rows have a size that varies, or there are none: kernels that read by strides take neither."""
    return not isinstance(value.shape[-1], int) or 0 in value.shape


def _is_plain(members: Sequence[Node]) -> bool:
    return all(isinstance(item.op, Elementwise) and not item.op.checks_index for item in members)
