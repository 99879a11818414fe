"""Which values depend on weights only, and splitting their computation off into `prepare`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from transpiler.ir import WEIGHT_ROLES, Graph, Input, Node, Output, Program, Role, Value, substitute
from transpiler.ops.creation import Full
from transpiler.ops.halves import Widen
from transpiler.ops.shape import BroadcastTo

# They cost nothing where they are read, and memory where they are stored.
STAYING = (BroadcastTo, Widen)


def weight_values(graph: Graph) -> frozenset[str]:
    """Names of values that are weights, or are computed from weights by ops that the host can run.

    A value that depends on nothing (a `full`) counts as well: it is available anywhere.
    """
    names = {item.value.name for item in graph.inputs if item.role in WEIGHT_ROLES}
    for node in graph.nodes:
        if not node.op.is_static or not all(value.type.is_static for value in node.outputs):
            continue
        placeholders = [f"x{number}" for number in range(len(node.inputs))]
        if all(value.name in names for value in node.inputs) and (node.op.host(*placeholders) is not None):
            names.update(value.name for value in node.outputs)
    return frozenset(names)


def split(graph: Graph) -> tuple[Graph, Graph]:
    """(`prepare`, the rest): everything that depends on weights only moves into `prepare`.

    before: forward(%x, weight %w) { %p = pack_matmul(%w); %y = linear_packed(%x, %p) }
    after:  prepare(weight %w) { %p = pack_matmul(%w); return %p }
            forward(%x, weight %p) { %y = linear_packed(%x, %p) }

    The second graph's weight inputs are `prepare`'s outputs in order. Broadcasts of weights, and half floats
    that are widened, stay behind, where they cost nothing, and so do values that depend on no weight at all.
    """
    candidates = weight_values(graph)
    independent = {node.output.name for node in graph.nodes if isinstance(node.op, Full)}
    moved: list[Node] = []
    stay: list[Node] = []
    available = {item.value.name for item in graph.weight_inputs()}
    needed = _needed_by_weights(graph, candidates)
    for node in graph.nodes:
        names = [value.name for value in node.outputs]
        movable = all(name in candidates for name in names) and all(
            value.name in available or value.name in independent for value in node.inputs
        )
        if movable and isinstance(node.op, STAYING):
            movable = node.output.name in needed
        if movable and isinstance(node.op, Full):
            # Both sides may need it.
            moved.append(node)
            stay.append(node)
        elif movable:
            moved.append(node)
            available.update(names)
        else:
            stay.append(node)
    read = [value.name for node in stay for value in node.inputs]
    kept = [item.value.name for item in graph.outputs] + sorted(graph.kept_names())
    used = dict.fromkeys(name for name in (*read, *kept) if name in available)
    by_name = {value.name: value for value in graph.values()}
    results = [by_name[name] for name in used]
    prepare = replace(
        graph,
        name="prepare",
        inputs=graph.weight_inputs(),
        nodes=tuple(moved),
        outputs=tuple(Output(value) for value in results),
        in_structure=None,
        out_structure=None,
        taps={},
    )
    others = tuple(item for item in graph.inputs if item.role not in WEIGHT_ROLES)
    packed = tuple(Input(value, Role.PARAMETER, value.name) for value in results)
    return prepare, replace(graph, inputs=(*others, *packed), nodes=tuple(stay))


def _needed_by_weights(graph: Graph, candidates: frozenset[str]) -> frozenset[str]:
    """Values that some weight-only computation reads, other than one of `STAYING` that none of it reads."""
    needed: set[str] = set()
    for node in reversed(graph.nodes):
        names = [value.name for value in node.outputs]
        if all(name in candidates for name in names) and (
            not isinstance(node.op, STAYING) or node.output.name in needed
        ):
            needed.update(value.name for value in node.inputs)
    return frozenset(needed)


def split_program(program: Program) -> tuple[Graph, tuple[Graph, ...]]:
    """(`prepare`, the rest of every function): one `prepare` for all, in which equal computations are one.

    before: prefill(weight %w) { %p = pack(%w); ... }, decode(weight %w) { %p = pack(%w); %q = other(%w); ... }
    after:  prepare(weight %w) { %p = pack(%w); %q = other(%w); return %p, %q }

    A weight is stored once in each layout that some function reads.
    """
    parts = [split(graph) for graph in program.functions.values()]
    merged = _Merged(main for _, main in parts)
    mains = tuple(merged.add(prepare, main) for prepare, main in parts)
    return merged.graph(parts[0][0]), mains


class _Merged:
    """The graphs of weights of several functions as one. Weights and states get one name in all functions."""

    def __init__(self, mains: Iterable[Graph]) -> None:
        mains = tuple(mains)
        outside = WEIGHT_ROLES | {Role.STATE}
        self.taken = {item.value.name for main in mains for item in main.inputs if item.role not in outside}
        for node in (node for main in mains for node in main.nodes):
            if len(mains) > 1 or not isinstance(node.op, Full):  # a `full` may be on both sides
                self.taken.update(value.name for value in node.outputs)
        self.known: dict[object, tuple[Value, ...]] = {}
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []
        self.outputs: dict[str, Output] = {}

    def add(self, prepare: Graph, main: Graph) -> Graph:
        """`main`, reading the shared values."""
        shared: dict[str, Value] = {}
        for item in prepare.inputs:
            identity: object = ("constant" if item.role is Role.CONSTANT else "weight", item.key)
            (value,) = self._shared(identity, [item.value])
            shared[item.value.name] = value
            if all(value.name != other.value.name for other in self.inputs):
                self.inputs.append(replace(item, value=value))
        for node in prepare.nodes:
            inputs = tuple(shared[value.name] for value in node.inputs)
            identity = (type(node.op), repr(node.op), tuple(value.name for value in inputs))
            new = identity not in self.known
            outputs = self._shared(identity, node.outputs)
            shared.update({old.name: value for old, value in zip(node.outputs, outputs, strict=True)})
            if new:
                self.nodes.append(replace(node, inputs=inputs, outputs=outputs))
        for item in main.state_inputs():
            (shared[item.value.name],) = self._shared(("state", item.key), [item.value])
        for output in prepare.outputs:
            value = shared[output.value.name]
            self.outputs.setdefault(value.name, Output(value))
        mine = {item.value.name for item in main.inputs if item.role in WEIGHT_ROLES | {Role.STATE}}
        renamed = {old: value for old, value in shared.items() if old in mine and value.name != old}
        return _rename(main, renamed)

    def _shared(self, identity: object, wanted: Sequence[Value]) -> tuple[Value, ...]:
        if identity not in self.known:
            self.known[identity] = tuple(replace(value, name=self._name(value.name)) for value in wanted)
        return self.known[identity]

    def _name(self, wish: str) -> str:
        name, number = wish, 2
        while name in self.taken:
            name, number = f"{wish}_{number}", number + 1
        self.taken.add(name)
        return name

    def graph(self, like: Graph) -> Graph:
        inputs, nodes, outputs = tuple(self.inputs), tuple(self.nodes), tuple(self.outputs.values())
        return replace(like, inputs=inputs, nodes=nodes, outputs=outputs)


def _rename(graph: Graph, names: Mapping[str, Value]) -> Graph:
    """The graph with inputs renamed."""
    inputs = tuple(replace(item, value=names.get(item.value.name, item.value)) for item in graph.inputs)
    inputs = tuple(replace(item, key=item.value.name) if item.role is Role.PARAMETER else item for item in inputs)
    # By way of names that nobody has: two inputs may exchange theirs, and `substitute` follows chains.
    between = {old: replace(value, name=f"{value.name}.shared") for old, value in names.items()}
    graph = substitute(substitute(graph, between), {between[old].name: value for old, value in names.items()})
    return replace(graph, inputs=inputs)


def prepared_values(prepare: Graph) -> tuple[Value, ...]:
    return tuple(item.value for item in prepare.outputs)
