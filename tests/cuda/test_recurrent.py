"""Recurrent scans by warps that keep their weights: numbers by the emulator, with rests, several rows and blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.cuda.emulator import EmulationError
from tests.cuda.library import CudaLibrary, other
from transpiler.dims import symbol
from transpiler.gpu.cubin import usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.group import make_group
from transpiler.ir import Array, Node, TensorType, Value
from transpiler.ops.base import Op
from transpiler.ops.packed import PackMatmul
from transpiler.ops.rnn import GruScan, LstmScan, RnnScan
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET, HOPPER = load_target("cuda", "sm_80"), load_target("cuda", "sm_90a")
# Steps, rows, units.
CASES: dict[str, tuple[Op, tuple[int, int, int]]] = {
    "kept": (LstmScan(packed=True), (4, 1, 64)),
    "rest": (LstmScan(packed=True, reverse=True), (3, 2, 37)),
    "near": (LstmScan(packed=True), (3, 1, 96)),
    "odd": (LstmScan(packed=True, reverse=True), (3, 2, 139)),
    "rows_of_clusters": (GruScan(packed=True), (2, 66, 150)),
    "streamed": (LstmScan(packed=True), (3, 1, 200)),
    "turns": (GruScan(packed=True), (2, 1, 290)),
    "rows": (GruScan(packed=True), (3, 219, 16)),
    "many_rows": (GruScan(packed=True), (2, 330, 33)),
    "plain": (RnnScan("tanh", packed=True), (5, 3, 48)),
    "relu": (RnnScan("relu", packed=True), (5, 3, 48)),
    "as_given": (LstmScan(), (3, 2, 40)),
}


# Blocks that share a state on compute capability 9.0.
CLUSTERED = {"kept": 1, "near": 2, "odd": 4, "streamed": 8, "turns": 8, "rows_of_clusters": 4}


def drawn(name: str) -> list[Array]:
    op, (steps, rows, units) = CASES[name]
    g = np.random.default_rng()
    gates = {"lstm_scan": 4, "gru_scan": 3, "rnn_scan": 1}[op.name]
    weight = (g.standard_normal((gates * units, units)) / units**0.5).astype(np.float32)
    if getattr(op, "packed", False):
        weight = np.concatenate([PackMatmul().reference(part) for part in np.split(weight, gates)])
    shapes = [(steps, rows, gates * units), *[(rows, units)] * (2 if op.name == "lstm_scan" else 1)]
    inputs = [g.standard_normal(shape).astype(np.float32) for shape in shapes]
    bias = [g.standard_normal(gates * units).astype(np.float32)] if op.name == "gru_scan" else []
    return [*inputs, weight, *bias]


INPUTS = {name: drawn(name) for name in CASES}


@pytest.fixture(scope="module")
def library() -> CudaLibrary:
    return CudaLibrary([schedule(op_group(op, INPUTS[name]), TARGET, name) for name, (op, _) in CASES.items()])


@pytest.mark.parametrize("name", CASES)
def test_scans(library: CudaLibrary, name: str) -> None:
    expected: Any = CASES[name][0].reference(*(x.astype(np.float64) for x in INPUTS[name]))
    for got, wanted in zip(library.run(name, *INPUTS[name]), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4 * CASES[name][1][0])


@pytest.fixture(scope="module")
def clusters() -> CudaLibrary:
    kernels = [schedule(op_group(CASES[name][0], INPUTS[name]), HOPPER, name) for name in CLUSTERED]
    return CudaLibrary(kernels, target=HOPPER)


@pytest.mark.parametrize("name", CLUSTERED)
def test_blocks_that_share_a_state(clusters: CudaLibrary, name: str) -> None:
    (launch,) = clusters.launches[name]
    assert launch.cluster == CLUSTERED[name]
    expected: Any = CASES[name][0].reference(*(x.astype(np.float64) for x in INPUTS[name]))
    for got, wanted in zip(clusters.run(name, *INPUTS[name]), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4 * CASES[name][1][0])


def test_machine_code(library: CudaLibrary, clusters: CudaLibrary) -> None:
    for text, arch in ((library.text, "sm_80"), (clusters.text, "sm_90a")):
        assert all(item.stack == 0 for item in usage(compile_code(text, arch).cubin).values())


def test_sizes_that_vary() -> None:
    steps, rows = symbol("t"), symbol("n")
    types = [(steps, rows, 160), (rows, 40), (rows, 40), (160, 40)]
    inputs = tuple(Value(f"x{i}", TensorType("float32", shape)) for i, shape in enumerate(types))
    op = LstmScan()
    outputs = tuple(Value(f"y{i}", type_) for i, type_ in enumerate(op.infer_types([item.type for item in inputs])))
    library = CudaLibrary([schedule(make_group((Node(op, inputs, outputs),), outputs), TARGET, "varies")])
    g = np.random.default_rng()
    weight = (g.standard_normal((160, 40)) / 7).astype(np.float32)
    for t, n in ((3, 1), (1, 4), (0, 3)):
        values = [g.standard_normal(shape).astype(np.float32) for shape in ((t, n, 160), (n, 40), (n, 40))]
        results = library.run("varies", *values, weight, sizes={"t": t, "n": n})
        expected = op.reference(*(x.astype(np.float64) for x in (*values, weight)))
        for got, wanted in zip(results, expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "pattern", "new"),
    [
        ("rest", r"__syncthreads\(\);", ""),
        ("rest", r"(__shfl_xor_sync\([^;]*), 16, 32\)", r"\1, 8, 32)"),
        ("kept", r"store_shared\([^;]*\);(?=[ \n}]*__sync)", ""),
    ],
)  # fmt: skip
def test_errors_are_found(name: str, pattern: str, new: str) -> None:
    op = CASES[name][0]
    library = CudaLibrary([schedule(op_group(op, INPUTS[name]), TARGET, name)], other(pattern, new))
    expected: Any = op.reference(*(x.astype(np.float64) for x in INPUTS[name]))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(library.run(name, *INPUTS[name])[0], expected[0], atol=1e-4)


@pytest.mark.parametrize(
    ("pattern", "new"),
    [(r"cluster_meets\(\);", "__syncthreads();"), (r"(store_shared_at\([^;]*), 1, ", r"\1, 0, ")],
)
def test_errors_between_blocks_are_found(pattern: str, new: str) -> None:
    op, inputs = CASES["near"][0], INPUTS["near"]
    library = CudaLibrary([schedule(op_group(op, inputs), HOPPER, "near")], other(pattern, new), HOPPER)
    expected: Any = op.reference(*(x.astype(np.float64) for x in inputs))
    with pytest.raises((AssertionError, EmulationError)):
        np.testing.assert_allclose(library.run("near", *inputs)[0], expected[0], atol=1e-4)
