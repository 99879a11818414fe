"""Clean-up passes: dead code, common subexpressions, no-op views, chains of reshapes and transposes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transpiler.ir import Graph, Node, Value, substitute
from transpiler.ops.compare import Cast
from transpiler.ops.packed import BLOCK, PackChannels, UnpackChannels
from transpiler.ops.shape import BroadcastTo, Concat, Reshape, Slice, Transpose
from transpiler.passes.rewrite import Rewriter, rewrite


def dead_code(graph: Graph) -> Graph:
    """Remove nodes whose results nobody uses.

    before: %y = relu(%x); %z = exp(%x); return %y
    after:  %y = relu(%x); return %y
    """
    live = set(graph.kept_names())
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(value.name in live for value in node.outputs):
            live.update(value.name for value in node.inputs)
            kept.append(node)
    return graph.with_nodes(reversed(kept))


def common_subexpressions(graph: Graph) -> Graph:
    """Compute equal expressions once.

    before: %a = exp(%x); %b = exp(%x); %y = add(%a, %b)
    after:  %a = exp(%x); %y = add(%a, %a)
    """
    seen: dict[tuple[object, ...], tuple[Value, ...]] = {}
    mapping: dict[str, Value] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        inputs = tuple(mapping.get(value.name, value) for value in node.inputs)
        # The text of the attributes tells 0.0 from -0.0, which compare equal.
        key = (type(node.op), repr(node.op), tuple(value.name for value in inputs))
        if key in seen:
            mapping.update({old.name: new for old, new in zip(node.outputs, seen[key], strict=True)})
        else:
            seen[key] = node.outputs
            kept.append(replace(node, inputs=inputs))
    return substitute(graph.with_nodes(kept), mapping)


def views(graph: Graph) -> Graph:
    """Drop views that change nothing, merge chains, turn transposes that move no data into reshapes.

    before: %a = transpose(%x) {perm = (0, 2, 1)}; %y = transpose(%a) {perm = (0, 2, 1)}; return %y
    after:  return %x
    """
    while True:
        producers = graph.producers()

        def visit(rewriter: Rewriter, node: Node, producers: dict[str, Node] = producers) -> Sequence[Value] | None:
            simple = _simplify(rewriter, node, producers)
            return None if simple is None else [simple]

        simplified = dead_code(rewrite(graph, visit))
        if len(simplified.nodes) == len(graph.nodes) and simplified.nodes == graph.nodes:
            return simplified
        graph = simplified


def _simplify(rewriter: Rewriter, node: Node, producers: dict[str, Node]) -> Value | None:
    """The value that stands in for the node's output, or None to keep the node."""
    if len(node.outputs) != 1:
        return None
    output = node.output
    if len(node.inputs) == 1 and node.inputs[0].type == output.type and _is_identity(node):
        return node.inputs[0]
    source = producers.get(node.inputs[0].name) if node.inputs else None
    match node.op:
        case Concat() if len(node.inputs) == 1:
            return node.inputs[0]
        case Reshape() if source is not None and isinstance(source.op, Reshape):
            return rewriter.emit(node.op, source.inputs[0], like=output)
        case Transpose() if source is not None and isinstance(source.op, Transpose):
            inner = source.op.perm
            merged = Transpose(tuple(inner[axis] for axis in node.op.perm))
            return rewriter.emit(merged, source.inputs[0], like=output)
        case Transpose(perm=perm) if _moves_nothing(perm, node.inputs[0]):
            return rewriter.emit(Reshape(output.shape), node.inputs[0], like=output)
        case UnpackChannels(channels=channels) if channels % BLOCK == 0 and output.shape[2:] == (1, 1):
            return rewriter.emit(Reshape(output.shape), node.inputs[0], like=output)
        case PackChannels() if output.shape[2:4] == (1, 1) and node.inputs[0].shape[1] % BLOCK == 0:
            return rewriter.emit(Reshape(output.shape), node.inputs[0], like=output)
    return None


def _is_identity(node: Node) -> bool:
    """For a node whose output type equals its input's: whether it is the identity."""
    match node.op:
        case Reshape() | BroadcastTo() | Cast():
            return True
        case Transpose(perm=perm):
            return perm == tuple(range(len(perm)))
        case Slice(starts=starts, steps=steps):
            return all(start == 0 for start in starts) and all(step == 1 for step in steps)
    return False


def _moves_nothing(perm: tuple[int, ...], value: Value) -> bool:
    """Whether the axes longer than 1 keep their order."""
    long = [axis for axis in perm if value.shape[axis] != 1]
    return long == sorted(long)
