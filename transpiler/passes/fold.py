"""Folding: constants that depend on no weight, and batch norm into the convolution before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from transpiler.dims import is_static
from transpiler.ir import Array, Graph, Input, Node, Program, Role, TensorType, Value
from transpiler.ops.conv import Conv, ConvTranspose
from transpiler.ops.creation import Full
from transpiler.ops.dtypes import numpy_dtype
from transpiler.ops.elementwise import Add, Mul, Sub
from transpiler.ops.elementwise_unary import Rsqrt
from transpiler.ops.norm import BatchNorm
from transpiler.ops.shape import Reshape
from transpiler.passes.rewrite import Rewriter, rewrite
from transpiler.passes.weights import weight_values

# Larger results stay computed at run time: a folded constant takes room in the package.
MAX_CONSTANT_BYTES = 1 << 20


def constants(program: Program) -> Program:
    """Compute what depends on no element of an input or a weight now.

    before: %i = arange() {size = 4}; %m = le(%i, %i); %y = where(%m, %x, %z)
    after:  constant %m; %y = where(%m, %x, %z)

    A `full` stays a node: kernels compute it for nothing. A tensor without elements is as known as a constant, so that
    no kernel has a literal 0 as the sum of nothing (drivers of GPUs take 0 / x for 0, which NaN need not be).
    """
    for graph in program.functions.values():
        program = _fold_constants(program, graph)
    return program


def _fold_constants(program: Program, graph: Graph) -> Program:
    known: dict[str, Array] = {
        item.value.name: program.constants[item.key] for item in graph.inputs if item.role is Role.CONSTANT
    }
    is_full: set[str] = set()
    folded: dict[str, Array] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        types = [value.type for value in node.outputs]
        foldable = (
            all(value.name in known or _is_empty(value) for value in node.inputs)
            and not all(map(_is_empty, node.outputs))
            and node.op.is_static
            and all(type_.is_static for type_ in types)
            and all(is_static(dim) for value in node.inputs for dim in value.shape)
        )
        if not foldable or sum(_bytes(type_) for type_ in types) > MAX_CONSTANT_BYTES:
            kept.append(node)
            continue
        try:
            with np.errstate(all="ignore"):
                results = node.op.reference(*(_known(known, value) for value in node.inputs))
        except (IndexError, ZeroDivisionError):
            # An index out of bounds, or a division by zero, reports itself at run time.
            kept.append(node)
            continue
        results = results if isinstance(results, tuple) else (results,)
        for value, result in zip(node.outputs, results, strict=True):
            known[value.name] = (
                np.ascontiguousarray(result).astype(numpy_dtype(value.dtype), copy=False).reshape(result.shape)
            )
        if isinstance(node.op, Full):
            is_full.add(node.output.name)
            kept.append(node)
        else:
            folded.update({value.name: known[value.name] for value in node.outputs})
    used = {value.name for node in kept for value in node.inputs} | graph.kept_names()
    # A `full` that only folded nodes used is dead; one that a kernel reads from memory is stored like a constant.
    new_inputs = []
    stored = dict(program.constants)
    for name, array in folded.items():
        if name in used:
            value = next(value for node in graph.nodes for value in node.outputs if value.name == name)
            key = _store(stored, name, array)
            new_inputs.append(Input(value, Role.CONSTANT, key))
    taps = {path: tap for path, tap in graph.taps.items() if tap.value not in folded or tap.value in used}
    main = replace(graph, inputs=(*graph.inputs, *new_inputs), nodes=tuple(kept), taps=taps)
    return replace(program.with_function(main), constants=stored)


def _is_empty(value: Value) -> bool:
    return 0 in value.shape


def _known(known: dict[str, Array], value: Value) -> Array:
    found = known.get(value.name)
    return np.empty(value.type.static_shape(), numpy_dtype(value.dtype)) if found is None else found


def _store(stored: dict[str, Array], name: str, array: Array) -> str:
    """The key that holds `array` from now on: functions share what they both fold."""
    key, number = name, 2
    while key in stored and not _same(stored[key], array):
        key, number = f"{name}_{number}", number + 1
    stored[key] = array
    return key


def _same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _bytes(type_: TensorType) -> int:
    return int(np.prod(type_.static_shape(), dtype=np.int64)) * numpy_dtype(type_.dtype).itemsize


def batch_norm(graph: Graph) -> Graph:
    """Fold an inference batch norm into the convolution before it; elsewhere make it one multiply-add.

    before: %c = conv(%x, %w, %b); %y = batch_norm(%c, %mean, %var, %gamma, %beta)
    after:  %s = mul(%gamma, rsqrt(add(%var, eps))); %y = conv(%x, mul(%w, %s), add(mul(sub(%b, %mean), %s), %beta))

    The new weights depend on weights only, so they end up in `prepare`.
    """
    return _batch_norm(graph, into_convolutions=True)


def batch_norm_alone(graph: Graph) -> Graph:
    """The same without folding, so that the convolution's own output stays visible (`--taps all`)."""
    return _batch_norm(graph, into_convolutions=False)


def _batch_norm(graph: Graph, *, into_convolutions: bool) -> Graph:
    producers, consumers, outputs = graph.producers(), graph.consumers(), graph.kept_names()
    weights = weight_values(graph)

    def visit(rewriter: Rewriter, node: Node) -> Sequence[Value] | None:
        if not isinstance(node.op, BatchNorm) or any(value.name not in weights for value in node.inputs[1:]):
            return None
        x, mean, var, gamma, beta = node.inputs
        if x.dtype != "float32" or mean.dtype != "float32":
            return None
        scale, shift = _scale_and_shift(rewriter, node, mean, var, gamma, beta)
        conv = producers.get(x.name)
        alone = conv is not None and len(consumers[x.name]) == 1 and x.name not in outputs
        if into_convolutions and alone and conv is not None and _foldable(conv, weights):
            return [_folded(rewriter, node, conv, scale, shift)]
        shape = (x.shape[1], *(1,) * (x.type.rank - 2))
        scaled = rewriter.emit(Mul(), x, rewriter.emit(Reshape(shape), scale, like=scale), like=None)
        return [rewriter.emit(Add(), scaled, rewriter.emit(Reshape(shape), shift, like=shift), like=node.output)]

    return rewrite(graph, visit)


def _scale_and_shift(
    rewriter: Rewriter, node: Node, mean: Value, var: Value, gamma: Value, beta: Value
) -> tuple[Value, Value]:
    """scale = gamma / sqrt(var + eps), shift = beta - mean * scale."""
    assert isinstance(node.op, BatchNorm)
    eps = rewriter.emit(Full(node.op.eps, (), "float32"), like=None)
    scale = rewriter.emit(
        Mul(), gamma, rewriter.emit(Rsqrt(), rewriter.emit(Add(), var, eps, like=var), like=var), like=gamma
    )
    shift = rewriter.emit(Sub(), beta, rewriter.emit(Mul(), mean, scale, like=mean), like=beta)
    return scale, shift


def _foldable(conv: Node, weights: frozenset[str]) -> bool:
    if any(value.name not in weights for value in conv.inputs[1:]):
        return False
    return isinstance(conv.op, Conv) or (isinstance(conv.op, ConvTranspose) and conv.op.groups == 1)


def _folded(rewriter: Rewriter, node: Node, conv: Node, scale: Value, shift: Value) -> Value:
    x, weight, *bias = conv.inputs
    axis = 0 if isinstance(conv.op, Conv) else 1
    shape = tuple(weight.shape[axis] if position == axis else 1 for position in range(weight.type.rank))
    new_weight = rewriter.emit(Mul(), weight, rewriter.emit(Reshape(shape), scale, like=scale), like=weight)
    new_bias = shift
    if bias:
        new_bias = rewriter.emit(Add(), rewriter.emit(Mul(), bias[0], scale, like=bias[0]), shift, like=bias[0])
    return rewriter.emit(conv.op, x, new_weight, new_bias, like=node.output)
