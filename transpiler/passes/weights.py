"""Which values depend on weights only, and splitting their computation off into `prepare`."""

from __future__ import annotations

from dataclasses import replace

from transpiler.ir import WEIGHT_ROLES, Graph, Input, Node, Output, Role, Value
from transpiler.ops.creation import Full
from transpiler.ops.shape import BroadcastTo


def weight_values(graph: Graph) -> frozenset[str]:
    """Names of values that are weights, or are computed from weights by ops that the host can run.

    A value that depends on nothing (a `full`) counts as well: it is available anywhere.
    """
    names = {item.value.name for item in graph.inputs if item.role in WEIGHT_ROLES}
    for node in graph.nodes:
        placeholders = [f"x{number}" for number in range(len(node.inputs))]
        if all(value.name in names for value in node.inputs) and (node.op.host(*placeholders) is not None):
            names.update(value.name for value in node.outputs)
    return frozenset(names)


def split(graph: Graph) -> tuple[Graph, Graph]:
    """(`prepare`, the rest): everything that depends on weights only moves into `prepare`.

    before: forward(%x, weight %w) { %p = pack_matmul(%w); %y = linear_packed(%x, %p) }
    after:  prepare(weight %w) { %p = pack_matmul(%w); return %p }
            forward(%x, weight %p) { %y = linear_packed(%x, %p) }

    The second graph's weight inputs are `prepare`'s outputs in order. Broadcasts of weights stay behind, where they
    cost nothing, and so do values that depend on no weight at all.
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
        if movable and isinstance(node.op, BroadcastTo):
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
    """Values that some weight-only computation reads, other than a broadcast that nothing of the kind reads."""
    needed: set[str] = set()
    for node in reversed(graph.nodes):
        names = [value.name for value in node.outputs]
        if all(name in candidates for name in names) and (
            not isinstance(node.op, BroadcastTo) or node.output.name in needed
        ):
            needed.update(value.name for value in node.inputs)
    return frozenset(needed)


def prepared_values(prepare: Graph) -> tuple[Value, ...]:
    return tuple(item.value for item in prepare.outputs)
