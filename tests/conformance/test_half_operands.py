"""Ops whose operands are half floats in memory: what they compute is equal to float64 on those operands, as exact as in
float32. Results that are stored as half floats are rounded once."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.conformance.kernels import array_type, op_group
from tests.conformance.targets import build
from tests.conformance.test_ops_on_targets import FAMILIES, check, double_reference, dtypes, reference
from tests.vulkan.device import require_device
from transpiler.compile import compile_kernels
from transpiler.group import Group, make_group
from transpiler.ir import Array, Node, TensorType, Value
from transpiler.ops.base import Elementwise, Injective, Reduce, Sample
from transpiler.ops.compare import Cast
from transpiler.ops.dtypes import HALF, numpy_dtype
from transpiler.ops.halves import Widen
from transpiler.precision import PRODUCTS, TABLES
from transpiler.schedule import schedule
from transpiler.target import Target, load_target

NARROWED = {"attention", "softmax", "log_softmax", "layer_norm", "rms_norm", "group_norm"}
LAYOUTS = {"linear_packed", "take_packed", "conv_blocked", "conv_stem", "conv_depthwise"}  # of the CPU
# Scans on a GPU store several results; their weights are what is kept as half floats.
SEVERAL = {"lstm_scan", "gru_scan", "rnn_scan"}


def places(sample: Sample, target: Target) -> tuple[int, ...]:
    """The operands of a sample that may be half floats: what the precision pass may choose."""
    op = sample.op
    known = {**PRODUCTS, **TABLES}.get(op.name, (0,) if op.name in NARROWED else ())
    takes = op.name in target.widened or (isinstance(op, Injective | Elementwise) and not isinstance(op, Reduce))
    chosen = [place for place in known if takes and sample.inputs[place].dtype == np.float32]
    activations = target.half_activations
    return tuple(place for place in chosen if activations or (place > 0 or op.name in TABLES or op.name == "matmul"))


def samples(target: Target, *, every: bool) -> dict[str, Sample]:
    """Float32 samples with operands that may be half floats; of each op all, or some: the two largest on a CPU, one of
    middle size where compiling takes longer."""
    found: dict[str, list[Sample]] = {}
    for sample in (item for family in FAMILIES.values() for item in family):
        fits = target.is_gpu <= (sample.op.name not in LAYOUTS) and "float64" not in dtypes(sample)
        if fits and dtypes(sample).isdisjoint(HALF) and places(sample, target):
            found.setdefault(sample.op.name, []).append(sample)
    for name, items in found.items():
        items.sort(key=_size)
        middle = len(items) // 2
        if not every:
            found[name] = items[middle : middle + 1] if target.is_gpu else items[-2:]
    return {f"{name}_{number}": item for name, items in found.items() for number, item in enumerate(items)}


def _size(sample: Sample) -> int:
    return sum(array.size for array in sample.inputs)


def half_group(sample: Sample, halves: Sequence[int], dtype: str, *, narrow: bool) -> Group:
    """widen(operands), the op, and a cast of its result if that is stored as half floats."""
    nodes, read = [], []
    for place, array in enumerate(sample.inputs):
        value = Value(f"x{place}", array_type(array))
        if place in halves:
            stored = Value(f"h{place}", TensorType(dtype, array.shape))
            nodes.append(Node(Widen(), (stored,), (value,)))
        read.append(value)
    types = sample.op.infer_types([value.type for value in read])
    outputs = tuple(Value(f"y{number}", type_) for number, type_ in enumerate(types))
    nodes.append(Node(sample.op, tuple(read), outputs))
    if narrow:
        rounded = Value("z", TensorType(dtype, outputs[0].shape))
        nodes.append(Node(Cast(dtype), outputs, (rounded,)))
        outputs = (rounded,)
    return make_group(tuple(nodes), outputs)


def problems(target: Target, dtype: str, *, every: bool) -> list[str]:
    kind = numpy_dtype(dtype)
    groups, expected = {}, {}
    for name, sample in samples(target, every=every).items():
        halves = places(sample, target)
        inputs = tuple(
            array.astype(kind).astype(np.float32) if place in halves else array
            for place, array in enumerate(sample.inputs)
        )
        same = Sample(sample.id, sample.op, inputs)
        narrow = target.half_activations and sample.op.name not in SEVERAL | set(TABLES) | {"log_softmax"}
        narrow = narrow and sample.op.name in target.epilogue | target.narrowed
        groups[name] = half_group(sample, halves, dtype, narrow=narrow)
        stored = [array.astype(kind) if place in halves else array for place, array in enumerate(inputs)]
        expected[name] = same, stored, narrow
    library, refused = build(groups, target)
    wrong = [f"{name}: {reason}" for name, reason in refused.items()]
    for name, (same, stored, narrow) in expected.items():
        if name in refused:
            continue
        got = library.run(name, *_in_order(groups[name], stored))
        for number, (single, double) in enumerate(zip(reference(same), double_reference(same), strict=True)):
            if narrow:
                with np.errstate(over="ignore"):
                    single = single.astype(kind)
            wrong += check(f"{name}[{number}]", got[number], single, double)
    return wrong


def _in_order(group: Group, arrays: Sequence[Array]) -> list[Array]:
    """The arrays in the order of the group's inputs, h<n> or x<n>."""
    return [arrays[int(value.name[1:])] for value in group.inputs]


@pytest.mark.parametrize("dtype", HALF)
def test_operands_in_half_floats(dtype: str, target: Target) -> None:
    assert len(samples(target, every=False)) >= 20
    wrong = problems(target, dtype, every=False)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", HALF)
def test_every_half_float_is_widened_exactly(dtype: str, target: Target) -> None:
    stored = np.arange(1 << 16, dtype=np.uint16).view(numpy_dtype(dtype))
    library, refused = build({"widen": op_group(Widen(), (stored,))}, target)
    assert not refused
    (got,) = library.run("widen", stored)
    expected = stored.astype(np.float32)
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    assert np.array_equal(got[~np.isnan(got)].view(np.uint32), expected[~np.isnan(expected)].view(np.uint32))


@pytest.mark.parametrize("isa", ["neon", "baseline", "avx2", "avx512"])
def test_no_conversion_is_a_call(isa: str, tmp_path: Path) -> None:
    """A product of one row and a look-up in float16 call nothing but memcpy and memset."""
    triple = "aarch64-unknown-linux-gnu" if isa == "neon" else "x86_64-unknown-linux-gnu"
    target = load_target("cpu", isa, triple)
    chosen = {
        name: item for name, item in samples(target, every=False).items() if name in ("linear_packed_0", "take_0")
    }
    assert len(chosen) == 2
    groups = [half_group(item, places(item, target), "float16", narrow=False) for item in chosen.values()]
    kernels = [schedule(group, target, f"kernel_{number}") for number, group in enumerate(groups)]
    for number, data in enumerate(compile_kernels(kernels, target, workers=1)):
        file = tmp_path / f"{number}.o"
        file.write_bytes(data)
        listed = subprocess.run(["nm", "-u", file], capture_output=True, text=True, check=True).stdout
        called = {line.split()[-1] for line in listed.splitlines()}
        assert called <= {"memcpy", "memset", "__TVMBackendParallelLaunch"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALF)
def test_every_sample(dtype: str, target: Target) -> None:
    wrong = problems(target, dtype, every=True)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", HALF)
def test_on_vulkan(dtype: str) -> None:
    require_device()
    wrong = problems(load_target("vulkan"), dtype, every=False)
    assert not wrong, "\n".join(wrong)
