"""Sort and top-k in shared memory, and rows that take several launches: equal to the references, with ties and NaN."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.conformance.ties import many_ties
from tests.cuda.library import CudaLibrary, other
from transpiler.dims import symbol
from transpiler.gpu.cubin import usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.group import make_group
from transpiler.ir import Node, TensorType, Value
from transpiler.ops.base import Op
from transpiler.ops.scan import Sort, Topk
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")
# Many ties: few different numbers.
CASES: dict[str, tuple[Op, tuple[int, ...], type]] = {
    "short": (Sort(1), (70, 9), np.float32),
    "one": (Sort(1), (3, 1), np.int32),
    "down": (Sort(1, True), (3, 700), np.float32),
    "column": (Sort(0, True), (40, 9), np.float64),
    "whole": (Sort(1), (2, 2048), np.int64),
    "merged": (Sort(1, True), (2, 5000), np.float32),
    "merged_wide": (Sort(0), (4100, 2), np.float64),
    "halves": (Sort(1), (4, 100), np.float16),
    "bfloat16": (Sort(1, True), (4, 100), ml_dtypes.bfloat16),
    "bools": (Sort(1, True), (4, 100), np.bool_),
    "bytes": (Sort(1, True), (4, 100), np.uint8),
    "experts": (Topk(2, 1), (90, 8), np.float32),
    "words": (Topk(5, 1), (2, 9000), np.float32),
    "smallest": (Topk(900, 0, False), (7000, 2), np.int64),
    "half_of_it": (Topk(2500, 1), (1, 5000), np.int32),
}


INPUTS = {name: many_ties(*CASES[name][1:]) for name in CASES}


@pytest.fixture(scope="module")
def library() -> CudaLibrary:
    return CudaLibrary([schedule(op_group(CASES[name][0], [x]), TARGET, name) for name, x in INPUTS.items()])


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_reference(library: CudaLibrary, name: str) -> None:
    x = INPUTS[name]
    expected: Any = CASES[name][0].reference(x)
    values, positions = library.run(name, x)
    np.testing.assert_array_equal(positions, expected[1])
    # By their bits: zeros have signs.
    assert values.tobytes() == np.ascontiguousarray(expected[0]).tobytes()


def test_launches(library: CudaLibrary) -> None:
    """One for rows that fit; tiles and what follows them for others. Barriers are those that the schedule asks for."""
    counts = {name: len(library.launches[name]) for name in CASES}
    assert counts["whole"] == counts["experts"] == counts["column"] == 1
    assert (counts["words"], counts["merged"], counts["half_of_it"]) == (2, 3, 3)
    assert counts["smallest"] == 3  # 4 tiles leave 3600 words, their 2 tiles 1800, one the result
    assert library.text.count("__syncthreads();") == 3 * library.text.count(" sync_warp();")


def test_rows_that_vary() -> None:
    op, x = Topk(100, 1), Value("x", TensorType("float32", (symbol("n"), 9000)))
    outputs = tuple(Value(f"y{i}", type_) for i, type_ in enumerate(op.infer_types([x.type])))
    library = CudaLibrary([schedule(make_group((Node(op, (x,), outputs),), outputs), TARGET, "few")])
    assert len(library.launches["few"]) == 2
    assert "sync_warp" in library.text
    for rows in (1, 3):
        values = np.random.default_rng().standard_normal((rows, 9000)).astype(np.float32)
        for one, expected in zip(library.run("few", values, sizes={"n": rows}), op.reference(values), strict=True):
            np.testing.assert_array_equal(one, expected)


def test_machine_code(library: CudaLibrary) -> None:
    used = usage(compile_code(library.text, "sm_80").cubin).values()
    assert all(item.stack == 0 for item in used)


@pytest.mark.parametrize(
    ("name", "pattern", "new"),
    [("down", r"sync_warp\(\);", ""), ("down", r"__syncthreads\(\);", ""), ("whole", r"v_1 \+ 1", "v_1")],
)
def test_errors_are_found(name: str, pattern: str, new: str) -> None:
    x = INPUTS[name]
    library = CudaLibrary([schedule(op_group(CASES[name][0], [x]), TARGET, name)], other(pattern, new))
    with pytest.raises((AssertionError, IndexError)):
        np.testing.assert_array_equal(library.run(name, x)[1], CASES[name][0].reference(x)[1])
