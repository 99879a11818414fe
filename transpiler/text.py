"""The text form of a program: readable, diffable, and read back to the same program.

    constant "lifted_tensor_0"
    alias "lm_head.weight" = "wte.weight"

    func forward(
      %x: float32[batch, 3] user "x",
      %fc_weight: float32[4, 3] parameter "fc.weight",
    ) where batch in 1..16 {
      in (($0,), {})
      %fc: float32[batch, 4] = linear(%x, %fc_weight)  # path "fc" hint "y" at "model.py":9 in "Net.forward"
      ... return %fc
      out $0
    }

Sizes over symbols stand in backticks among attributes. Constants are named; their data is given to
`parse_program`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from transpiler.dims import SymExpr
from transpiler.ir import Graph, Node, Program, Value
from transpiler.structure import Leaf, Literal, Mapping_, Sequence_, Structure


def print_program(program: Program) -> str:
    """The text form of a program."""
    lines = [f"constant {_quote(key)}" for key in sorted(program.constants)]
    lines += [f"alias {_quote(key)} = {_quote(stored)}" for key, stored in sorted(program.aliases.items())]
    blocks = ["\n".join(lines)] if lines else []
    return "\n\n".join([*blocks, *map(print_graph, program.functions.values())]) + "\n"


def print_graph(graph: Graph) -> str:
    """The text form of one function, without a newline at its end."""
    lines = [f"func {graph.name}("]
    for item in graph.inputs:
        declared = f"  {item.value}: {item.value.type} {item.role} {_quote(item.key)},"
        lines.append(declared + _comment([item.value]))
    where = ", ".join(f"{name} in {bounds}" for name, bounds in graph.symbols.items())
    lines.append(f") where {where} {{" if where else ") {")
    if graph.in_structure is not None:
        lines.append(f"  in {print_structure(graph.in_structure)}")
    for node in graph.nodes:
        lines.append("  " + _print_node(node) + _comment(node.outputs))
    returned = [f"{o.value}" if o.state is None else f"{o.value} -> {_quote(o.state)}" for o in graph.outputs]
    lines.append(f"  return {', '.join(returned)}".rstrip())
    if graph.out_structure is not None:
        lines.append(f"  out {print_structure(graph.out_structure)}")
    return "\n".join([*lines, "}"])


def _print_node(node: Node) -> str:
    outputs = ", ".join(f"{value}: {value.type}" for value in node.outputs)
    inputs = ", ".join(map(str, node.inputs))
    attributes = ", ".join(f"{key} = {print_attribute(item)}" for key, item in node.op.attributes().items())
    return f"{outputs} = {node.op.name}({inputs})" + (f" {{{attributes}}}" if attributes else "")


def print_attribute(value: Any) -> str:
    """Python's literals, with sizes in backticks and `inf`, `nan` for floats that have no literal."""
    if isinstance(value, SymExpr):
        return f"`{value}`"
    if isinstance(value, tuple):
        items = ", ".join(map(print_attribute, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    return _quote(value) if isinstance(value, str) else repr(value)


def print_structure(structure: Structure) -> str:
    match structure:
        case Leaf(index):
            return f"${index}"
        case Literal(value):
            return print_attribute(value)
        case Sequence_("tuple", items):
            inside = ", ".join(map(print_structure, items))
            return f"({inside},)" if len(items) == 1 else f"({inside})"
        case Sequence_(_, items):
            return f"[{', '.join(map(print_structure, items))}]"
        case Mapping_(kind, fields, type_name):
            inside = ", ".join(f"{_quote(key)}: {print_structure(item)}" for key, item in fields)
            return f"{type_name}({inside})" if kind == "namedtuple" else f"{type_name}{{{inside}}}"


def _comment(values: Iterable[Value]) -> str:
    """What is known of the values beside their meaning; one part per value, `;` between."""
    parts = [_origin(value) for value in values]
    return f"  # {'; '.join(parts)}".rstrip() if any(parts) else ""


def _origin(value: Value) -> str:
    words = []
    if value.path is not None:
        words.append(f"path {_quote(value.path)}")
    if value.hint is not None:
        words.append(f"hint {_quote(value.hint)}")
    if (at := value.location) is not None:
        words.append(f"at {_quote(at.file)}:{at.line}")
        for name, text in (("in", at.function), ("of", at.module_path), ("text", at.text)):
            if text:
                words.append(f"{name} {_quote(text)}")
    return " ".join(words)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
