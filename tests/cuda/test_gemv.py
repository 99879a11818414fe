"""Products with few rows: every form by the emulator, what the machine code has, errors that have to be found."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.cuda.emulator import EmulationError
from tests.cuda.library import CudaLibrary, other
from tests.cuda.test_tensor_cores import drawn, exact_result, wrong
from transpiler.dims import symbol
from transpiler.gpu.cubin import operations, usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.group import Lowered, make_group
from transpiler.ir import Array, Node, TensorType, Value
from transpiler.ops.linalg import Linear
from transpiler.schedule import import_schedule, schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")
# (dtype, rows, columns, summed dim, columns of a warp, warps that share them, chunks ahead): whole turns alone and a
# rest alone, rests of columns, of warps and of values that meet.
CASES: Mapping[str, tuple[str, int, int, int, tuple[int, int, int]]] = {
    "one_column": ("float16", 1, 9, 1300, (1, 1, 4)),
    "two_columns": ("float32", 3, 17, 392, (2, 1, 2)),
    "four_columns": ("bfloat16", 8, 37, 1024, (4, 1, 2)),
    "shared": ("float16", 5, 11, 2312, (4, 4, 2)),
    "shared_by_all": ("float32", 1, 6, 2304, (1, 16, 1)),
    "short": ("bfloat16", 2, 5, 24, (1, 2, 4)),
    "packed": ("float16", 7, 6, 601, (2, 2, 1)),
}


def scheduled(name: str) -> tuple[Lowered, list[Array]]:
    dtype, rows, columns, inner, form = CASES[name]
    inputs = drawn(name, [(rows, inner), (columns, inner), (columns,)], dtype)
    gemv = import_schedule("cuda.gemv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemv, "form", lambda *_: gemv.Form(*form))
        return schedule(op_group(Linear(), inputs), TARGET, name), inputs


@cache
def kernels() -> dict[str, tuple[Lowered, list[Array]]]:
    return {name: scheduled(name) for name in CASES}


def test_products() -> None:
    library = CudaLibrary([item for item, _ in kernels().values()])
    for name, (item, inputs) in kernels().items():
        (got,) = library.run(item.kernel.name, *inputs)
        assert wrong(got, exact_result(Linear(), inputs, "float32")) < 1, name


def test_machine_code() -> None:
    """Nothing in local memory; as many loads as chunks that are ahead, and fewer shuffles than sums by themselves."""
    library = CudaLibrary([item for item, _ in kernels().values()])
    cubin = compile_code(library.text, "sm_80").cubin
    used, found = usage(cubin), operations(cubin)
    for name, (_, rows, _, _, (columns, shares, _)) in CASES.items():
        launch = library.launches[name][-1]
        assert used[launch.entry].stack == 0, name
        assert used[launch.entry].registers * launch.workgroup[0] <= 65536 / (4 if shares < 16 else 2), name
        size = 1 << (rows * columns - 1).bit_length()
        assert found[launch.entry]["SHFL"] == size - 1 + (32 // size).bit_length() - 1, name
        assert found[launch.entry]["BAR"] == (1 if shares > 1 else 0), name


@pytest.mark.parametrize(
    ("rows", "columns", "inner", "expected"),
    [
        (1, 50257, 768, (2, 1, 2)),  # more columns than warps
        (8, 32000, 4096, (4, 1, 2)),
        (1, 768, 3072, (1, 4, 3)),  # few columns: four warps for each
        (4, 11008, 4096, (4, 1, 2)),
        (1, 1000, 2048, (1, 2, 4)),
        (1, 10, 25088, (1, 16, 4)),
        (1, 768, 768, (1, 1, 3)),
    ],
)
def test_forms_by_sizes(rows: int, columns: int, inner: int, expected: tuple[int, int, int]) -> None:
    gemv = import_schedule("cuda.gemv")
    assert gemv.form(rows, columns, inner, 8) == gemv.Form(*expected)


def test_a_summed_dim_that_varies() -> None:
    k = symbol("k")
    values = (Value("x", TensorType("float16", (3, k))), Value("w", TensorType("float16", (70, k))))
    (type_,) = Linear().infer_types([value.type for value in values])
    result = Value("y", type_)
    library = CudaLibrary([schedule(make_group((Node(Linear(), values, (result,)),), (result,)), TARGET, "varies")])
    assert "stream_16" in library.text
    for size in (5, 1024, 2056):
        inputs = drawn(f"varies{size}", [(3, size), (70, size)], "float16")
        (got,) = library.run("varies", *inputs, sizes={"k": size})
        assert wrong(got, exact_result(Linear(), inputs, "float32")) < 1, size


ERRORS: Mapping[str, Callable[[str], str]] = {
    "no barrier": other(r"__syncthreads\(\);", ""),
    "no rest": other(r"(.*)if \([^;{]* < 2312\) \{", r"\1if (0) {"),
    "other lanes": other(r"shfl_xor_sync\(([^;]*), 8, 32\)", r"shfl_xor_sync(\1, 16, 32)"),
    "the same part for all": other(r"(\(\(int\)threadIdx\.x\) >> 5\)) & 3\)", r"\1 & 0)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_planted_errors_are_found(name: str) -> None:
    item, inputs = kernels()["shared"]
    exact = exact_result(Linear(), inputs, "float32")
    try:
        (got,) = CudaLibrary([item], ERRORS[name]).run(item.kernel.name, *inputs)
    except (AssertionError, EmulationError):
        return
    assert not wrong(got, exact) < 1


def test_the_kernel_of_planted_errors_is_right() -> None:
    item, inputs = kernels()["shared"]
    library = CudaLibrary([item])
    assert len(re.findall("__syncthreads", library.text)) == 1
    (got,) = library.run(item.kernel.name, *inputs)
    assert np.isfinite(got.astype(np.float64)).all()
