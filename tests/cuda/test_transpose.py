"""Transposes through shared memory: numbers by the emulator, with and without rests, and a barrier that is missing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.cuda.library import CudaLibrary, other
from transpiler.gpu.cubin import usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.ir import Array
from transpiler.ops.shape import Transpose
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], type]] = {
    "plane": ((1, 0), (70, 33), np.float32),
    "whole_tiles": ((0, 2, 1), (2, 32, 64), np.float32),
    "channels_last": ((0, 2, 3, 1), (2, 40, 5, 9), np.float32),
    "channels_first": ((0, 3, 1, 2), (2, 5, 9, 40), np.float32),
    "apart": ((3, 1, 0, 2), (9, 3, 12, 11), np.float64),
    "halves": ((1, 0), (35, 34), np.float16),
    "bfloat16": ((1, 0), (35, 34), ml_dtypes.bfloat16),
    "bools": ((1, 0), (35, 40), np.bool_),
    "int64": ((1, 2, 0), (9, 8, 33), np.int64),
}


def drawn(name: str) -> Array:
    _, shape, dtype = CASES[name]
    values = np.random.default_rng().integers(0, 100, shape)
    return values > 50 if dtype is np.bool_ else values.astype(dtype)


def test_transposes() -> None:
    inputs = {name: drawn(name) for name in CASES}
    kernels = [schedule(op_group(Transpose(CASES[name][0]), [x]), TARGET, name) for name, x in inputs.items()]
    library = CudaLibrary(kernels)
    assert library.text.count("__shared__") == len(CASES)
    for name, x in inputs.items():
        np.testing.assert_array_equal(library.run(name, x)[0], x.transpose(CASES[name][0]))
    assert all(item.stack == 0 for item in usage(compile_code(library.text, "sm_80").cubin).values())


def test_a_missing_barrier_is_found() -> None:
    x = drawn("plane")
    kernel = schedule(op_group(Transpose((1, 0)), [x]), TARGET, "plane")
    library = CudaLibrary([kernel], other(r"__syncthreads\(\);", ""))
    with pytest.raises(AssertionError, match="another order"):
        library.run("plane", x)


@pytest.mark.parametrize(("perm", "shape"), [((0, 2, 1, 3), (2, 9, 8, 16)), ((1, 0), (64, 4))])
def test_others_need_no_shared_memory(perm: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """The last axis stays where it is, or has few elements."""
    x = np.zeros(shape, np.float32)
    assert "__shared__" not in CudaLibrary([schedule(op_group(Transpose(perm), [x]), TARGET, "k")]).text
