"""Every sample of the ops that have CPU schedules of their own, on the kernels alone.

The reference runs in float64; a kernel may be four times as far from it as the float32 reference is, plus 128
rounding errors of the largest value. Integers are exact. `TRANSPILE_TEST_ISA` names the ISA (default: the
best one here).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pytest

from tests.conformance.heads import Heads, exact
from tests.conformance.kernels import KernelLibrary, array_type, op_group
from transpiler.group import Group, Lowered, make_group
from transpiler.ir import Array, Node, Value
from transpiler.ops import REGISTRY
from transpiler.ops.attention import Attention
from transpiler.ops.base import Op, Sample, rng
from transpiler.schedule import import_schedule
from transpiler.target import Target, load_target

MODULES = {
    "softmax": ("softmax", "log_softmax"),
    "norm": ("layer_norm", "rms_norm", "group_norm"),
    "attention": ("attention",),
    "rnn": ("lstm_scan", "gru_scan", "rnn_scan"),
    "scan": ("cumsum", "cumprod"),
    "sort": ("sort", "topk"),
    "scatter": ("scatter", "scatter_add", "scatter_mul", "scatter_max", "scatter_min", "index_put"),
    "random": ("philox",),
}
SIZES = (1, 15, 16, 17, 33, 63)


def _target() -> Target:
    return load_target("cpu", os.environ.get("TRANSPILE_TEST_ISA"))


def _normal(seed: str, *shape: int) -> Array:
    return rng(seed).standard_normal(shape, np.float32)


def extra_samples(name: str) -> Iterator[Sample]:
    """Tails of the vector loops, on both sides of 16."""
    make = REGISTRY[name]
    match name:
        case "softmax" | "log_softmax":
            for size in (*SIZES, 130):
                yield Sample(f"tail{size}", make(1), (_normal(name, 3, size),))
                yield Sample(f"columns{size}", make(1), (_normal(name, 2, 5, size),))
        case "layer_norm" | "rms_norm":
            for size in (*SIZES, 130):
                weights = [_normal(name, size) for _ in range(2 if name == "layer_norm" else 1)]
                yield Sample(f"tail{size}", make(1, 1e-5), (_normal(name, 3, size), *weights))
        case "group_norm":
            for size in SIZES:
                yield Sample(
                    f"tail{size}",
                    make(3, 1e-5),
                    (_normal(name, 2, 6, size), _normal(name, 6), _normal(name, 6)),
                )
        case "cumsum" | "cumprod":
            for size in SIZES:
                yield Sample(f"rows{size}", make(1), (_normal(name, 3, size),))
                yield Sample(f"columns{size}", make(1), (_normal(name, 2, 5, size),))
        case "lstm_scan" | "gru_scan" | "rnn_scan":
            gates = {"lstm_scan": 4, "gru_scan": 3, "rnn_scan": 1}[name]
            for steps, rows, size in ((3, 5, 33), (2, 13, 63), (4, 1, 272)):
                states = [_normal(f"{name}{n}", rows, size) for n in range(2 if gates == 4 else 1)]
                weight = _normal(name, gates * size, size) / np.float32(size**0.5)
                bias = [_normal(name, 3 * size)] if gates == 3 else []
                x = _normal(name, steps, rows, gates * size)
                yield Sample(f"{steps}x{rows}x{size}", make(), (x, *states, weight, *bias))
            small = [array.astype(np.float64) for array in next(iter(make.samples())).inputs]
            yield Sample("float64", make(), tuple(small))
        case "attention":
            for rows, columns, width in ((15, 17, 33), (33, 63, 16), (16, 1, 63), (65, 130, 40)):
                batch = (1, 3)
                q, k = _normal(name, *batch, rows, width), _normal(f"{name}k", *batch, columns, width)
                v = _normal(f"{name}v", *batch, columns, width + 1)
                yield Sample(f"{rows}x{columns}x{width}", make(), (q, k, v))
                yield Sample(f"{rows}x{columns}x{width}_causal", make(causal=True), (q, k, v))
                mask = _normal(f"{name}m", 1, rows, columns)
                yield Sample(f"{rows}x{columns}x{width}_mask", make(), (q, k, v, mask))
                keep = _normal(f"{name}m", 1, 1, columns) > 0
                yield Sample(f"{rows}x{columns}x{width}_keys", make(), (q, k, v, keep))
            yield Sample("float64", make(causal=True), tuple(array.astype(np.float64) for array in (q, k, v)))
            yield Sample("no_keys", make(), (q, k[..., :0, :], v[..., :0, :]))
        case "sort":
            for size in SIZES:
                yield Sample(f"row{size}", make(1, size % 2 == 0), (_normal(name, 3, size),), exact=True)
            yield Sample("bool", make(0, True), (_normal(name, 37) > 0,), exact=True)
            yield Sample("many_rows", make(1), (_normal(name, 48, 100),), exact=True)
        case "topk":
            for size in SIZES:
                yield Sample(f"row{size}", make(min(size, 5), 1), (_normal(name, 3, size),), exact=True)
            ties = rng(name).integers(0, 4, (3, 200))
            yield Sample("ties_insertion", make(9, 1), (ties,), exact=True)
            yield Sample("ties_merge", make(60, 1, False), (ties.astype(np.float64),), exact=True)
            nans = np.where(ties == 1, np.nan, ties).astype(np.float32)
            yield Sample("nan_insertion", make(9, 1), (nans,), exact=True)
            yield Sample("nan_smallest", make(9, 1, False), (nans,), exact=True)


def all_samples() -> list[tuple[str, Sample]]:
    return [
        (name, sample)
        for names in MODULES.values()
        for name in names
        for sample in (*REGISTRY[name].samples(), *extra_samples(name))
    ]


def _module(name: str) -> str:
    return next(module for module, names in MODULES.items() if name in names)


def _fused(op: Op, inputs: Sequence[Array], *, prologue: bool) -> tuple[Group, list[Array]]:
    """The op between element-wise neighbours: tanh(op(x * 2) * other), with the inputs that it takes."""
    values = [Value(f"x{number}", array_type(array)) for number, array in enumerate(inputs)]
    nodes = []
    operands = list(values)
    extra: list[Array] = []
    if prologue:
        doubled = Value("doubled", values[0].type)
        nodes.append(Node(REGISTRY["add"](), (values[0], values[0]), (doubled,)))
        operands[0] = doubled
    (type_,) = op.infer_types([value.type for value in values])
    anchored = Value("anchored", type_)
    nodes.append(Node(op, tuple(operands), (anchored,)))
    other = Value("other", type_.with_shape(type_.shape[-1:]))
    extra.append(_normal("other", *type_.static_shape()[-1:]).astype(type_.dtype))
    scaled, result = Value("scaled", type_), Value("result", type_)
    nodes.append(Node(REGISTRY["mul"](), (anchored, other), (scaled,)))
    nodes.append(Node(REGISTRY["tanh"](), (scaled,), (result,)))
    group = make_group(tuple(nodes), (result,))
    by_name = {value.name: array for value, array in zip([*values, other], [*inputs, *extra], strict=True)}
    return group, [by_name[value.name] for value in group.inputs]


FUSED = ("softmax", "log_softmax", "layer_norm", "rms_norm", "group_norm")


def _kernel(module: str, group: Group, name: str) -> Lowered:
    kernel: Lowered | None = import_schedule(f"cpu.{module}").apply(group, _target(), name)
    assert kernel is not None, f"cpu.{module} refused {[node.op.name for node in group.nodes]}"
    return kernel


CASES = all_samples()


@cache
def library(module: str) -> KernelLibrary:
    """All kernels of one schedule module: compiling them together is what makes this fast."""
    kernels = []
    for number, (name, sample) in enumerate(CASES):
        if _module(name) != module:
            continue
        kernels.append(_kernel(_module(name), op_group(sample.op, sample.inputs), f"k{number}"))
        if name in FUSED and sample.inputs[0].dtype == np.float32:
            group, _ = _fused(sample.op, sample.inputs, prologue=True)
            kernels.append(_kernel(_module(name), group, f"fused{number}"))
    return KernelLibrary(kernels, _target())


def check(outputs: Sequence[Array], narrow: Sequence[Array], wide: Sequence[Array], exact: bool) -> None:
    for output, low, high in zip(outputs, narrow, wide, strict=True):
        assert output.dtype == low.dtype
        assert output.shape == low.shape
        if exact or not np.issubdtype(output.dtype, np.floating):
            np.testing.assert_array_equal(output, low)
            continue
        finite = np.isfinite(high)
        np.testing.assert_array_equal(output[~finite], high[~finite].astype(output.dtype))
        if finite.any():
            limit = 4 * np.abs(low - high)[finite].max() + 128 * np.finfo(output.dtype).eps * np.abs(high[finite]).max()
            error = np.abs(output - high)[finite].max()
            assert error <= limit, f"error {error:.3g}, allowed {limit:.3g}"


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _tuple(result: Array | tuple[Array, ...]) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{name}-{sample.id}" for name, sample in CASES])
def test_kernel(number: int) -> None:
    name, sample = CASES[number]
    kernels = library(_module(name))
    outputs = kernels.run(f"k{number}", *sample.inputs)
    with np.errstate(all="ignore"):
        narrow = _tuple(sample.op.reference(*sample.inputs))
        wide = _tuple(sample.op.reference(*map(_wide, sample.inputs)))
        check(outputs, narrow, wide, sample.exact)
        if f"fused{number}" not in kernels.kernels:
            return
        group, inputs = _fused(sample.op, sample.inputs, prologue=True)
        outputs = kernels.run(f"fused{number}", *inputs)
        results = []
        for convert in (lambda array: array, _wide):
            values = {value.name: convert(array) for value, array in zip(group.inputs, inputs, strict=True)}
            for node in group.nodes:
                values[node.output.name] = node.op.reference(*(values[value.name] for value in node.inputs))
            results.append([values[value.name] for value in group.outputs])
        check(outputs, *results, exact=False)


def test_scatter_reports_an_index_out_of_bounds() -> None:
    number = next(number for number, (name, _) in enumerate(CASES) if name == "scatter_add")
    x, indices, src = CASES[number][1].inputs
    with pytest.raises(IndexError):
        library("scatter").run(f"k{number}", x, np.where(indices == indices.max(), 99, indices), src)


STRIDED = {
    "plain": ({}, (2, 33, 3, 16), (2, 21, 3, 16), None),
    "causal": ({"causal": True}, (1, 40, 2, 16), (1, 40, 2, 16), None),
    "grouped": ({"enable_gqa": True}, (2, 9, 4, 24), (2, 17, 2, 24), (9, 17)),
    "broadcast": ({}, (3, 5, 2, 8), (1, 7, 2, 8), (1, 1, 5, 7)),
}


def _strided(name: str) -> tuple[Group, list[Array]]:
    """Attention on [batch, length, heads, elements], which a transpose before and one behind it make of its own."""
    attributes, q_shape, k_shape, mask_shape = STRIDED[name]
    swap, op = REGISTRY["transpose"]((0, 2, 1, 3)), REGISTRY["attention"](**attributes)
    inputs = [_normal(f"{name}{part}", *shape) for part, shape in zip("qkv", (q_shape, k_shape, k_shape), strict=True)]
    inputs += [] if mask_shape is None else [_normal(f"{name}mask", *mask_shape)]
    values = [Value(f"x{number}", array_type(array)) for number, array in enumerate(inputs)]
    nodes, operands = [], list(values)
    for number in range(3):
        operands[number] = Value(f"heads{number}", swap.infer_types([values[number].type])[0])
        nodes.append(Node(swap, (values[number],), (operands[number],)))
    attended = Value("attended", op.infer_types([value.type for value in operands])[0])
    result = Value("result", swap.infer_types([attended.type])[0])
    nodes += [Node(op, tuple(operands), (attended,)), Node(swap, (attended,), (result,))]
    return make_group(tuple(nodes), (result,)), inputs


def test_attention_reads_and_writes_heads_where_they_lie() -> None:
    groups = {name: _strided(name) for name in STRIDED}
    library = KernelLibrary([_kernel("attention", group, name) for name, (group, _) in groups.items()], _target())
    for name, (group, inputs) in groups.items():
        results = []
        for convert in (lambda array: array, _wide):
            values = {value.name: convert(array) for value, array in zip(group.inputs, inputs, strict=True)}
            for node in group.nodes:
                values[node.output.name] = node.op.reference(*(values[value.name] for value in node.inputs))
            results.append([values[value.name] for value in group.outputs])
        check(library.run(name, *inputs), *results, exact=False)


@pytest.mark.parametrize("form", ["chunks", "stacked", "cache"])
def test_attention_reads_parts_of_a_tensor_where_they_are(form: str) -> None:
    case = Heads(form, "float32", 2, 21, 21, 3, 12, Attention(causal=form == "chunks"))
    group, inputs = case.group(form)
    (got,) = KernelLibrary([_kernel("attention", group, form)], _target()).run(form, *inputs)
    want = exact(group, inputs)
    assert np.abs(got - want).max() < 2e-6 * np.abs(want).max()
