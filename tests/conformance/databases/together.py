"""One export for many samples, taken apart again afterwards.

torch.export and its decompositions cost some 70 ms whatever the graph holds, most of the time that a sample takes. The
samples' calls stand side by side in one module, on inputs of their own; what comes out is one graph of which every
sample's outputs reach a part. A part is the program that exporting the sample alone would give, names of nodes aside
(tests compare them). Samples whose part is not plain (sizes that depend on data, inputs written in place, subgraphs)
and those on which the export fails are left to be exported alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind
from torch.fx import Graph, Node
from torch.utils import _pytree

from tests.conformance.databases.fast_export import fast_export
from tests.conformance.databases.samples import Call, Sample
from transpiler.capture import Captured, capture_module
from transpiler.source import ModelSource

FEW = 3


class Together(torch.nn.Module):
    """Calls side by side. One that raises has no results: it is left to an export of its own."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        super().__init__()
        self.calls: tuple[Call, ...] = tuple(sample.module for sample in samples)
        self.counts = tuple(len(sample.inputs) for sample in samples)

    def forward(self, *tensors: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
        given = iter(tensors)
        results: list[tuple[torch.Tensor, ...]] = []
        for call, count in zip(self.calls, self.counts, strict=True):
            inputs = list(islice(given, count))
            try:
                results.append(call.forward(*inputs))
            except Exception:
                results.append(())
        return tuple(results)


def capture_together(samples: Sequence[Sample], source: ModelSource) -> dict[str, Captured]:
    """Sample id -> what exporting it alone would capture; samples that have to be exported alone are missing."""
    found: dict[str, Captured] = {}
    waiting = [[sample for sample in samples if _mixes(sample)]]
    while waiting:
        group = waiting.pop()
        if len(group) < FEW:
            continue
        try:
            with fast_export():
                whole = capture_module(Together(group), [x for sample in group for x in sample.inputs], source=source)
        except Exception:
            half = len(group) // 2
            waiting += [group[:half], group[half:]]
            continue
        found |= dict(_parts(group, whole))
    return found


def _mixes(sample: Sample) -> bool:
    plain = all(x.layout is torch.strided and not x.is_nested for x in sample.inputs)
    return plain and not isinstance(sample.module.function, torch.nn.Module)


def _parts(group: Sequence[Sample], whole: Captured) -> Iterator[tuple[str, Captured]]:
    exported = whole.exported_program
    signature = exported.graph_signature
    (output,) = exported.graph.find_nodes(op="output")
    results = list(zip(output.args[0], signature.output_specs, strict=True))
    written = {str(spec.target) for _, spec in results if spec.kind is OutputKind.USER_INPUT_MUTATION}
    own = iter([item for item in results if item[1].kind is OutputKind.USER_OUTPUT])
    placeholders = exported.graph.find_nodes(op="placeholder")
    inputs = list(zip(placeholders, signature.input_specs, strict=True))
    users = iter([item for item in inputs if item[1].kind is InputKind.USER_INPUT])
    held = [item for item in inputs if item[1].kind is not InputKind.USER_INPUT]
    effects = [_ancestors([node]) for node in exported.graph.nodes if _has_effect(node)]
    out_spec = exported.call_spec.out_spec
    assert out_spec is not None
    for sample, spec in zip(group, out_spec.children(), strict=True):
        given = list(islice(users, len(sample.inputs)))
        wanted = list(islice(own, spec.num_leaves))
        nodes = _ancestors([node for node, _ in wanted if isinstance(node, Node)])
        if not wanted or not all(map(_plain, nodes)) or any(nodes & effect for effect in effects):
            continue
        if any(node.name in written for node, _ in given):
            continue
        part = _program(exported, [*(item for item in held if item[0] in nodes), *given], wanted, nodes, spec)
        yield sample.id, replace(whole, exported_program=part, module=sample.module, args=sample.inputs)


def _ancestors(roots: Sequence[Node]) -> set[Node]:
    found, stack = set(roots), list(roots)
    while stack:
        for node in stack.pop().all_input_nodes:
            if node not in found:
                found.add(node)
                stack.append(node)
    return found


def _has_effect(node: Node) -> bool:
    """A call for something else than its result. Assertions are none: where sizes are numbers, they have held."""
    return node.op == "call_function" and not node.users and "_assert" not in str(node.target)


def _plain(node: Node) -> bool:
    """A call of an operator on tensors whose sizes are numbers."""
    leaves = _pytree.tree_leaves(node.meta.get("val"))
    fixed = all(isinstance(size, int) for x in leaves if isinstance(x, torch.Tensor) for size in x.shape)
    known = all(x is None or isinstance(x, torch.Tensor) for x in leaves)
    return node.op in ("placeholder", "call_function") and fixed and known


def _program(
    whole: ExportedProgram,
    inputs: Sequence[tuple[Node, Any]],
    outputs: Sequence[tuple[Any, Any]],
    nodes: set[Node],
    out_spec: Any,
) -> ExportedProgram:
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node, _ in inputs:
        copies[node] = graph.node_copy(node)
    for node in whole.graph.nodes:
        if node in nodes and node not in copies:
            copies[node] = graph.node_copy(node, lambda old: copies[old])
    graph.output(tuple(copies.get(node, node) for node, _ in outputs))
    signature = ExportGraphSignature([spec for _, spec in inputs], [spec for _, spec in outputs])
    constants = {str(spec.target): whole.constants[str(spec.target)] for _, spec in inputs if spec.target is not None}
    count = sum(spec.kind is InputKind.USER_INPUT for _, spec in inputs)
    in_spec = _pytree.tree_structure(((0,) * count, {}))
    call = ModuleCallEntry("", ModuleCallSignature([], [], in_spec, out_spec))
    return ExportedProgram({}, graph, signature, {}, {}, [call], constants=constants)
