"""Lower precision for a target: weights and values between kernels as half floats, products that may round to TF32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from transpiler.ir import Graph, Node, Program, Tap, Value, verify
from transpiler.ops.base import Elementwise, Injective, Product, Reduce
from transpiler.ops.compare import Cast
from transpiler.ops.dtypes import HALF
from transpiler.ops.halves import Widen
from transpiler.ops.shape import BroadcastTo, Reshape
from transpiler.passes.fusion import GroupStep, ViewStep, partition
from transpiler.passes.rewrite import Rewriter, rewrite
from transpiler.passes.weights import split, weight_values
from transpiler.precision import low_values, operands, rounded_names
from transpiler.target import Target

# They change a part of an operand in place, as kernels of one node.
WRITERS = frozenset({"slice_update", "slice_write", "index_put", "scatter", "scatter_add"})


def lower_precision(program: Program, target: Target, precision: str, *, fuse: bool = True) -> Program:
    """The program, after all other passes, in a lower precision; see `transpiler.precision` for what may be rounded.

    Raises:
        IRError: a bug of this pass.
    """
    for graph in program.functions.values():
        if precision == "tf32" and target.tf32:
            graph = tf32_products(graph)
        elif precision in HALF:
            graph = half_weights(graph, target, precision)
            if target.half_activations and fuse:
                graph = half_activations(graph, target, precision)
            if target.half_operands:
                graph = half_operands(graph, target, precision)
        verify(graph)
        program = program.with_function(graph)
    return program


def tf32_products(graph: Graph) -> Graph:
    """Products of float32 may round their operands to TF32.

    before: %y = linear(%x, %w)
    after:  %y = linear(%x, %w) {precision = "tf32"}
    """

    def visit(rewriter: Rewriter, node: Node) -> Sequence[Value] | None:
        if not isinstance(node.op, Product) or node.output.dtype != "float32":
            return None
        op = type(node.op)(**{**node.op.attributes(), "precision": "tf32"})
        return [rewriter.emit(op, *node.inputs, like=node.output)]

    return rewrite(graph, visit)


def half_weights(graph: Graph, target: Target, dtype: str) -> Graph:
    """Weights that products and look-ups read are half floats, widened where they are read.

    before: %p = pack_matmul(%w); %y = linear_packed(%x, %p, %b)
    after:  %p = pack_matmul(%w); %h = cast(%p) {dtype = "float16"}; %v = widen(%h); %y = linear_packed(%x, %v, %b)

    The cast ends up in `prepare`, so that rounding is the last thing that happens to a weight. Vectors (biases, the
    weights of norms) stay as they are. So does a weight that something else reads, too.
    """
    weights = weight_values(graph)
    consumers, kept = graph.consumers(), graph.kept_names()
    products = {value.name for node in graph.nodes for value in operands(node)}
    chosen: set[str] = set()
    for value in graph.values():
        readers = [node for node in consumers[value.name] if _stays(node, weights)]
        fits = value.name in weights and value.dtype == "float32" and value.type.rank >= 2 and value.name not in kept
        if fits and value.name in products and all(_takes_half(node, target) for node in readers):
            chosen.add(value.name)
    return _stored(graph, chosen, dtype, lambda node: _stays(node, weights))


def half_activations(graph: Graph, target: Target, dtype: str) -> Graph:
    """Low values that lie in memory between two kernels are half floats there.

    before: %y = linear(%x, %w); %n = layer_norm(%y, %g, %b); %z = linear(%n, %v)
    after:  %y = linear(%x, %w); %a = cast(%y) {dtype = "float16"}; %b = widen(%a); %n = layer_norm(%b, ...); ...

    What is fused is not rounded, so the kernels are asked for first.
    """
    _, main = split(graph)
    steps = partition(main, target)
    low, consumers, kept = low_values(graph), graph.consumers(), graph.kept_names()
    producers = graph.producers()
    views: dict[str, list[Value]] = {}
    for step in steps:
        if isinstance(step, ViewStep):
            views.setdefault(step.node.inputs[0].name, []).append(step.node.output)

    def fits(value: Value) -> bool:
        """Whether everything that reads a value, or a view of it, takes half floats."""
        if value.name in kept:
            return False
        seen_as = views.get(value.name, [])
        readers = [node for node in consumers[value.name] if node.outputs[0] not in seen_as]
        return all(_takes_half(node, target) for node in readers) and all(map(fits, seen_as))

    chosen: set[str] = set()
    for step in steps:
        if not isinstance(step, GroupStep) or len(step.group.outputs) != 1:
            continue
        value, anchor = step.group.outputs[0], step.group.anchor_node
        stores = anchor is None or anchor.op.name in target.epilogue | target.narrowed
        moved = value.name in producers and len(producers[value.name].outputs) == 1
        if stores and moved and value.name in low and value.dtype == "float32" and fits(value):
            chosen.add(value.name)
    return _stored(graph, chosen, dtype, lambda node: True)


def half_operands(graph: Graph, target: Target, dtype: str) -> Graph:
    """What products multiply is half floats, where it is not yet: units for them take nothing else.

    before: %y = linear(%x, %w)
    after:  %a = cast(%x) {dtype = "float16"}; %b = widen(%a); %c = cast(%w) ...; %y = linear(%b, %d)
    """
    producers = graph.producers()
    narrowed: dict[str, Value] = {}

    def visit(rewriter: Rewriter, node: Node) -> Sequence[Value] | None:
        if not isinstance(node.op, Product) or node.op.name not in target.widened or len(node.outputs) != 1:
            return None
        places = {value.name for value in operands(node) if not _is_widened(value, producers)}
        if not places:
            return None
        for value in node.inputs:
            if value.name in places and value.name not in narrowed:
                narrowed[value.name] = rewriter.emit(Cast(dtype), value, like=value, label="half")
        inputs = [
            rewriter.emit(Widen(), narrowed[value.name], like=value, label="wide") if value.name in places else value
            for value in node.inputs
        ]
        return [rewriter.emit(node.op, *inputs, like=node.output)]

    return rewrite(graph, visit)


def _is_widened(value: Value, producers: Mapping[str, Node]) -> bool:
    return value.name in producers and isinstance(producers[value.name].op, Widen)


def rounded(program: Program, dtype: str) -> Program:
    """The program with everything rounded that a target might round: what its package is compared with."""
    for graph in program.functions.values():
        names = set(rounded_names(graph))
        program = program.with_function(replace(_stored(graph, names, dtype, lambda node: True), taps=graph.taps))
    return program


def _stays(node: Node, weights: frozenset[str]) -> bool:
    """Whether a node is not part of `prepare`."""
    return isinstance(node.op, BroadcastTo) or any(value.name not in weights for value in node.outputs)


def _takes_half(node: Node, target: Target) -> bool:
    """Whether the kernels of a node read half floats."""
    if node.op.name in WRITERS or isinstance(node.op, BroadcastTo):
        return False
    if node.op.name in target.widened:
        return node.op.name != "attention" or all(isinstance(item.shape[-1], int) for item in node.inputs[:3])
    if isinstance(node.op, Reduce):
        return node.op.name in target.prologue
    return isinstance(node.op, Elementwise | Injective)


def _stored(graph: Graph, chosen: set[str], dtype: str, reads: Callable[[Node], bool]) -> Graph:
    """The graph with the chosen values kept as half floats for the nodes that `reads` says."""
    rewriter = Rewriter(graph)
    halves: dict[str, Value] = {}
    wide: dict[str, Value] = {}
    kept = graph.kept_names()

    def keep(value: Value) -> None:
        if value.name in chosen:
            halves[value.name] = rewriter.emit(Cast(dtype), value, like=value, label="half")

    def read(value: Value) -> Value:
        if value.name not in halves:
            return value
        if value.name not in wide:
            wide[value.name] = rewriter.emit(Widen(), halves[value.name], like=value, label="wide")
        return wide[value.name]

    for item in graph.inputs:
        keep(item.value)
    for node in graph.nodes:
        if not reads(node):
            rewriter.nodes.append(node)
        elif isinstance(node.op, Reshape) and node.inputs[0].name in halves and node.output.name not in kept:
            halves[node.output.name] = rewriter.emit(node.op, halves[node.inputs[0].name], like=node.output)
            continue
        else:
            inputs = tuple(map(read, node.inputs))
            rewriter.nodes.append(replace(node, inputs=inputs))
        for value in node.outputs:
            keep(value)
    taps = {
        path: tap
        if tap.value not in halves
        else Tap(halves[tap.value].name, replace(tap.type, dtype=dtype), tap.layout)
        for path, tap in graph.taps.items()
    }
    return replace(graph, nodes=tuple(rewriter.nodes), taps=taps)
