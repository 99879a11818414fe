"""State of a program: which buffers outlive a call, where they lie, and which of them are written in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transpiler.group import Group
from transpiler.ir import Graph, Input, Output, Program, Role, Value
from transpiler.memory import ALIGNMENT, aligned, roots
from transpiler.ops.shape import Reshape, Slice
from transpiler.ops.shape_edges import SliceUpdate, SliceWrite
from transpiler.passes.fusion import FusedStep, GroupStep
from transpiler.passes.rewrite import Rewriter
from transpiler.plan import StateSlot

# Ops that change a part of their first operand and keep the rest.
PARTIAL = frozenset({"index_put", "scatter", "scatter_add", "scatter_mul", "scatter_max", "scatter_min", "slice_write"})


def state_slots(program: Program, alignment: int = ALIGNMENT) -> tuple[tuple[StateSlot, ...], int]:
    """Where each state lies, in the order of their keys, and the bytes of all. Every state has a fixed size."""
    slots: list[StateSlot] = []
    offset = 0
    taken = {value.name for graph in program.functions.values() for value in graph.values()}
    for key, value in sorted(program.states().items()):
        constant = program.constants.get(key)
        zeros = constant is not None and not any(constant.tobytes())
        initial = "" if zeros else _free(f"{value.name}_initial", taken)
        slots.append(StateSlot(key, value, offset, initial))
        size = value.type.bytes
        assert isinstance(size, int), f"the size of the state {key!r} varies"
        offset += aligned(size, alignment)
    return tuple(slots), offset


def _free(wish: str, taken: set[str]) -> str:
    name, number = wish, 2
    while name in taken:
        name, number = f"{wish}_{number}", number + 1
    taken.add(name)
    return name


def with_initial_values(prepare: Graph, slots: Sequence[StateSlot], program: Program) -> Graph:
    """`prepare` that also hands out what the states start as."""
    inputs, outputs = [], []
    for slot in slots:
        if slot.initial:
            value = Value(slot.initial, slot.value.type)
            role = Role.CONSTANT if slot.key in program.constants else Role.BUFFER
            inputs.append(Input(value, role, slot.key))
            outputs.append(Output(value))
    return replace(prepare, inputs=(*prepare.inputs, *inputs), outputs=(*prepare.outputs, *outputs))


def isolate_updates(graph: Graph) -> Graph:
    """Bring the updates of states into a form that can be placed.

    before: %new = slice_update(%cache, %x); return %y, %new -> "cache", %b -> "a", %c -> "c"
    after:  %new = slice_write(%cache, %x); %copy = slice(%b); return %y, %new -> "cache", %copy -> "a"

    Writing a slice of a state becomes a kernel of its own. A state that takes over another one's content gets a copy,
    since the other may change in the same call; one that becomes itself is not updated.
    """
    keys = {item.value.name: item.key for item in graph.state_inputs()}
    if not keys:
        return graph
    base = dict(keys)
    nodes = []
    for node in graph.nodes:
        op = node.op
        if node.inputs and node.inputs[0].name in base and len(node.outputs) == 1:
            if isinstance(op, SliceUpdate) and all(isinstance(at, int) for at in (*op.starts, *op.stops)):
                node = replace(node, op=SliceWrite(op.starts, op.stops, op.steps))
            if isinstance(node.op, Reshape) or node.op.name in PARTIAL:
                base[node.output.name] = base[node.inputs[0].name]
        nodes.append(node)
    views = dict(keys)  # value -> the state whose very bytes it is
    for node in nodes:
        if isinstance(node.op, Reshape) and node.inputs[0].name in views:
            views[node.output.name] = views[node.inputs[0].name]
    rewriter = Rewriter(graph)
    rewriter.nodes = nodes
    outputs: list[Output] = []
    for output in graph.outputs:
        source = views.get(output.value.name)
        if output.state is not None and source is not None:
            if source == output.state:
                continue
            shape = output.value.shape
            copy = Slice((0,) * len(shape), shape, (1,) * len(shape))
            output = replace(output, value=rewriter.emit(copy, output.value))
        outputs.append(output)
    return replace(graph, nodes=tuple(rewriter.nodes), outputs=tuple(outputs))


@dataclass(frozen=True)
class Placed:
    """`steps` with the groups that run in place marked; `homes`: value -> the state it is written into;
    `updates`: what is copied into a state after all calls."""

    steps: tuple[FusedStep, ...]
    homes: Mapping[str, str]
    updates: Mapping[str, Value]


def place_updates(graph: Graph, steps: Sequence[FusedStep]) -> Placed:
    """Decide which updates are written into the state itself.

    A chain of partial writes that starts at the state and ends at its new content runs in place if nobody reads an
    overwritten value later: no step, no output, no tap, no other state. Everything else is computed elsewhere and
    copied when all calls have succeeded.
    """
    root = roots(steps)

    def home(value: Value) -> str:
        return root.get(value.name, value.name)

    groups = {position: step.group for position, step in enumerate(steps) if isinstance(step, GroupStep)}
    writer = {value.name: position for position, group in groups.items() for value in group.outputs}
    last_read: dict[str, int] = {}
    for position, group in groups.items():
        last_read.update({home(value): position for value in group.inputs})
    kept = {home(value) for value in graph.user_outputs()} | {root.get(t.value, t.value) for t in graph.taps.values()}
    updates = graph.updates()
    names = {item.key: item.value.name for item in graph.state_inputs()}
    homes: dict[str, str] = {}
    chosen: set[int] = set()
    copied: dict[str, Value] = {}
    for key, new in updates.items():
        others = {home(value) for other, value in updates.items() if other != key}
        current, chain = home(new), dict[str, int]()
        while (position := writer.get(current, -1)) >= 0 and groups[position].nodes[0].op.name in PARTIAL:
            node = groups[position].nodes[0]
            old = home(node.inputs[0])
            read_here = {home(value) for value in node.inputs[1:]}
            if len(groups[position].nodes) > 1 or old in read_here | kept | others or last_read[old] > position:
                break
            chain[current] = position
            current = old
        if chain and current == names[key]:
            homes.update(dict.fromkeys(chain, key))
            chosen.update(chain.values())
        else:
            copied[key] = new
    placed = [
        GroupStep(_in_place(step)) if isinstance(step, GroupStep) and position in chosen else step
        for position, step in enumerate(steps)
    ]
    return Placed(tuple(placed), homes, copied)


def _in_place(step: GroupStep) -> Group:
    group = step.group
    target = group.nodes[0].inputs[0]
    inputs = tuple(value for value in group.inputs if value.name != target.name)
    return replace(group, inputs=inputs, in_place=True)
