"""Attention on tensor cores: numbers by the emulator, what the machine code has, and errors that have to be found."""

from __future__ import annotations

from functools import cache

import ml_dtypes
import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.conformance.test_ops_on_targets import check, double_reference, in_half, reference
from tests.cuda.emulator import EmulationError
from tests.cuda.library import CudaLibrary, other
from transpiler.dims import symbol
from transpiler.gpu.cubin import operations, usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.group import Group, make_group
from transpiler.ir import Array, Node, TensorType, Value
from transpiler.ops.attention import Attention
from transpiler.ops.base import Op, Sample, rng
from transpiler.ops.compare import Cast
from transpiler.ops.halves import Widen
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")
REGISTERS, SHARED = 65536, 166912
CHOSEN = (
    "decode", "causal_tall", "gqa", "vit", "bool_mask", "wide_mask", "lowest_mask", "added_infinities",
    "broadcast_batch", "bool_mask_gqa",
)  # fmt: skip


def drawn(label: str, length: int, keys: int, elements: int, values: int) -> tuple[Array, ...]:
    g = rng(label)
    shapes = [(1, 2, length, elements), (1, 2, keys, elements), (1, 2, keys, values)]
    return tuple(g.standard_normal(shape, np.float32).astype(np.float16) for shape in shapes)


@cache
def samples() -> dict[str, Sample]:
    found = {}
    for sample in Attention.samples():
        half = in_half(sample, "bfloat16" if len(found) % 3 == 1 else "float16")
        if half is not None and sample.id in CHOSEN:
            found[sample.id] = half
    assert len(found) == len(CHOSEN)
    found["several_blocks"] = Sample("several_blocks", Attention(causal=True), drawn("blocks", 130, 130, 64, 64))
    found["rests"] = Sample("rests", Attention(), drawn("rests", 17, 70, 40, 24))
    found["large_heads"] = Sample("large_heads", Attention(), drawn("large", 20, 66, 128, 128))
    return found


def wrong(got: Array, sample: Sample) -> float:
    """By how much the largest error is over two units of the largest value: weights and results are rounded to half
    floats."""
    wide = [x if x.dtype == bool else x.astype(np.float64) for x in sample.inputs]
    exact = np.asarray(sample.op.reference(*wide))
    assert np.array_equal(np.isnan(got), np.isnan(exact))
    error = np.nanmax(np.abs(got.astype(np.float64) - exact))
    return float(error / (2 * float(ml_dtypes.finfo(got.dtype).eps) * np.nanmax(np.abs(exact))))


def test_attention() -> None:
    chosen = samples()
    library = CudaLibrary([schedule(op_group(item.op, item.inputs), TARGET, name) for name, item in chosen.items()])
    for name, item in chosen.items():
        (got,) = library.run(name, *item.inputs)
        assert wrong(got, item) < 1, name
    assert library.text.count("mma_") > 3 * len(chosen)


def test_float32() -> None:
    """By multiply-adds, as accurate as float32 is."""
    chosen = {item.id: item for item in Attention.samples() if item.id in {*CHOSEN, "gpt", "causal_wide"}}
    q, k, v = (x.astype(np.float32) for x in samples()["several_blocks"].inputs)
    chosen["several_blocks"] = Sample("several_blocks", Attention(causal=True), (q, k, v))
    library = CudaLibrary([schedule(op_group(item.op, item.inputs), TARGET, name) for name, item in chosen.items()])
    for name, item in chosen.items():
        (got,) = library.run(name, *item.inputs)
        assert not check(name, got, reference(item)[0], double_reference(item)[0]), name
    used = usage(compile_code(library.text, "sm_80").cubin)
    for name in chosen:
        (launch,) = library.launches[name]
        assert used[launch.entry].stack == 0, name
        assert launch.shared_bytes <= SHARED, name


def test_nan_and_rows_without_keys() -> None:
    """As `Attention.reference` has it: a NaN in a key reaches the rows that see it, nothing else."""
    keep = np.ones((5, 9), bool)
    keep[2] = False
    q, k, v = drawn("nan", 5, 9, 16, 16)
    k[0, 1, 3, 2] = np.nan
    sample = Sample("masked", Attention(causal=True), (q, k, v, keep))
    (got,) = CudaLibrary([schedule(op_group(sample.op, sample.inputs), TARGET, "masked")]).run("masked", *sample.inputs)
    assert np.isnan(got[0, 1, 3:]).all()
    assert (got[0, :, 2] == 0).all()
    wide = [x if x.dtype == bool else x.astype(np.float64) for x in sample.inputs]
    assert np.array_equal(np.isnan(got), np.isnan(np.asarray(sample.op.reference(*wide))))


def group_of(op: Op, types: list[TensorType], *, widened: bool) -> Group:
    """The op alone, or between what widens its operands and what narrows its result."""
    values = tuple(Value(f"x{i}", type_) for i, type_ in enumerate(types))
    nodes: list[Node] = []

    def emit(op: Op, *operands: Value) -> Value:
        (type_,) = op.infer_types([value.type for value in operands])
        nodes.append(Node(op, operands, (Value(f"y{len(nodes)}", type_),)))
        return nodes[-1].output

    operands = tuple(emit(Widen(), value) for value in values) if widened else values
    result = emit(op, *operands)
    result = emit(Cast(types[0].dtype), result) if widened else result
    return make_group(tuple(nodes), (result,))


@pytest.mark.parametrize("widened", [False, True])
def test_sizes_that_vary(widened: bool) -> None:
    n, s = symbol("n"), symbol("s")
    types = [TensorType("float16", shape) for shape in ((1, 2, n, 16), (1, 2, s, 16), (1, 2, s, 16))]
    library = CudaLibrary([schedule(group_of(Attention(), types, widened=widened), TARGET, "varies")])
    assert "mma_" in library.text
    for length, keys in ((3, 5), (70, 65)):
        sample = Sample("varies", Attention(), drawn("varies", length, keys, 16, 16))
        (got,) = library.run("varies", *sample.inputs, sizes={"n": length, "s": keys})
        assert wrong(got, sample) < 1


def test_machine_code() -> None:
    chosen = {name: samples()[name] for name in ("several_blocks", "large_heads", "bool_mask")}
    library = CudaLibrary([schedule(op_group(item.op, item.inputs), TARGET, name) for name, item in chosen.items()])
    cubin = compile_code(library.text, "sm_80").cubin
    used, found = usage(cubin), operations(cubin)
    for name in chosen:
        (launch,) = library.launches[name]
        assert used[launch.entry].stack == 0, name
        assert used[launch.entry].registers * launch.workgroup[0] <= REGISTERS / 2, name
        assert launch.shared_bytes <= SHARED / 2, name
        assert found[launch.entry]["LDSM"] > 0, name
        assert found[launch.entry]["LDGSTS"] > 0, name
        assert found[launch.entry]["SHFL"] == 8, name
    # 16 rows with 64 keys of 64 elements, and as many values: 4 x 8 products for each.
    assert found[library.launches["several_blocks"][0].entry]["HMMA"] == 64


ERRORS = {
    "no barrier": other(r"__syncthreads\(\);", ""),
    "no wait": other(r"copies_wait_1\(\);", ""),
    "no diagonal": other(r"<= ", "< "),
    "one stage": other(r"& 1\)", "& 0)"),
    "half of the lanes of a row": other(r"__shfl_xor_sync\(([^;]*), 2, 32\)", r"__shfl_xor_sync(\1, 0, 32)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_planted_errors_are_found(name: str) -> None:
    sample = samples()["several_blocks"]
    item = schedule(op_group(sample.op, sample.inputs), TARGET, "several")
    try:
        (got,) = CudaLibrary([item], ERRORS[name]).run("several", *sample.inputs)
    except (AssertionError, EmulationError):
        return
    assert not wrong(got, sample) < 1
