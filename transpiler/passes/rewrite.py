"""Rewriting a graph node by node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from transpiler.ir import Graph, Node, TensorType, Value, substitute
from transpiler.ops.base import Op


class Rewriter:
    """Collects the nodes of the new graph. Names stay unique; a value that stands in for an old one takes its name."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node] = []
        self._names = {value.name for value in graph.values()}
        self._free: set[str] = set()

    def release(self, node: Node) -> None:
        """The outputs of `node` will not be defined: their names may be taken by `emit(..., like=)`."""
        self._free.update(value.name for value in node.outputs)

    def keep(self, node: Node) -> None:
        """Append a node as it is, with the names of its outputs."""
        self._free.difference_update(value.name for value in node.outputs)
        self.nodes.append(node)

    def emit(self, op: Op, *inputs: Value, like: Value | None = None, label: str = "") -> Value:
        """Append a node with one output. It takes the name, hint, path and location of `like` where it can, else a name
        that ends with the `label`, by default the op's."""
        (type_,) = op.infer_types([value.type for value in inputs])
        output = self._name(type_, like, label or ("packed" if op.name.startswith("pack_") else op.name))
        self.nodes.append(Node(op, inputs, (output,)))
        return output

    def emit_all(self, op: Op, *inputs: Value, like: Sequence[Value]) -> tuple[Value, ...]:
        """Append a node with several outputs, named like the given values."""
        types = op.infer_types([value.type for value in inputs])
        outputs = tuple(self._name(type_, value, op.name) for type_, value in zip(types, like, strict=True))
        self.nodes.append(Node(op, inputs, outputs))
        return outputs

    def _name(self, type_: TensorType, like: Value | None, fallback: str) -> Value:
        if like is not None and like.name in self._free:
            self._free.discard(like.name)
            return replace(like, type=type_)
        if like is None:
            base = fallback
        else:
            base = like.name if like.name.endswith(f"_{fallback}") else f"{like.name}_{fallback}"
        name, number = base, 2
        while name in self._names:
            name, number = f"{base}_{number}", number + 1
        self._names.add(name)
        if like is None:
            return Value(name, type_)
        return Value(name, type_, None, like.location, like.hint)


Visit = Callable[[Rewriter, Node], Sequence[Value] | None]


def rewrite(graph: Graph, visit: Visit) -> Graph:
    """Visit each node in order with its inputs already replaced.

    `visit` returns None to keep the node, the values that stand in for its outputs (emitted through the rewriter, or
    existing ones), or nothing where no node that is kept or emitted will read them: their names are free then.
    """
    rewriter = Rewriter(graph)
    mapping: dict[str, Value] = {}
    for node in graph.nodes:
        current = replace(node, inputs=tuple(mapping.get(value.name, value) for value in node.inputs))
        rewriter.release(current)
        values = visit(rewriter, current)
        if values is None:
            rewriter.keep(current)
            continue
        if not values:
            continue
        for old, new in zip(current.outputs, values, strict=True):
            if new.type != old.type:
                raise ValueError(f"%{old.name}: {old.type} cannot be replaced by {new.type}")
            if new != old:
                mapping[old.name] = new
        rewriter._free.difference_update(value.name for value in current.outputs)
    return substitute(graph.with_nodes(rewriter.nodes), mapping)
