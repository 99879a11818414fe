"""Products of warpgroups (compute capability 9.0): numbers by the emulator, machine code, errors to be found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import pytest

from tests.conformance.kernels import op_group
from tests.cuda.emulator import EmulationError
from tests.cuda.library import CudaLibrary, other
from tests.cuda.test_tensor_cores import drawn, exact_result, wrong
from transpiler.gpu.cubin import operations, usage
from transpiler.gpu.cuda import cuda_source
from transpiler.gpu.nvrtc import compile_code
from transpiler.group import Lowered
from transpiler.ir import Array
from transpiler.ops.base import Op
from transpiler.ops.conv import Conv
from transpiler.ops.linalg import Linear, Matmul
from transpiler.schedule import import_schedule, schedule
from transpiler.target import load_target

ARCH = "sm_90a"
TARGET = load_target("cuda", ARCH)
SHARED = 232448
# (op, shapes, dtype, number of the tile): both ways for the right operand to lie, one step and many, rests.
CASES: Mapping[str, tuple[Op, list[tuple[int, ...]], str, int]] = {
    "linear": (Linear(), [(150, 200), (300, 200), (300,)], "float16", 0),
    "linear_bf16": (Linear(), [(130, 328), (140, 328)], "bfloat16", 1),
    "matmul": (Matmul(), [(2, 70, 136), (2, 136, 200)], "bfloat16", 0),
    "matmul_narrow": (Matmul(), [(1, 70, 72), (1, 72, 64)], "float16", 4),
    "conv": (Conv((1, 1), (1, 1), (1, 1)), [(2, 24, 7, 9), (70, 24, 3, 3)], "float16", 3),
}


@cache
def kernels() -> dict[str, tuple[Lowered, tuple[Array, ...]]]:
    found = {}
    cores = import_schedule("cuda.cores")
    for name, (op, shapes, dtype, tile) in CASES.items():
        inputs = drawn(name, shapes, dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cores.hopper, "takes", lambda product: False)
            patch.setattr(cores, "WGMMA", cores.WGMMA[tile : tile + 1])
            patch.setattr(cores, "MMA_ON_HOPPER", ())
            found[name] = schedule(op_group(op, inputs), TARGET, name), tuple(inputs)
    return found


def test_products() -> None:
    library = CudaLibrary([item for item, _ in kernels().values()])
    for name, (item, inputs) in kernels().items():
        (got,) = library.run(item.kernel.name, *inputs)
        assert wrong(got, exact_result(CASES[name][0], inputs, "float16")) < 1, name


def test_machine_code() -> None:
    source = cuda_source([item for item, _ in kernels().values()], TARGET.tvm_target())
    cubin = compile_code(source.text, ARCH).cubin
    used, found = usage(cubin), operations(cubin)
    for name in CASES:
        launch = source.launches[name][-1]
        assert used[launch.entry].stack == 0, name
        assert used[launch.entry].registers * launch.workgroup[0] <= 65536, name
        assert launch.shared_bytes <= SHARED - 1024, name
        # 64 of the summed dim in a step, 16 in an instruction.
        assert found[launch.entry]["HGMMA"] == 4, name
        assert found[launch.entry]["HMMA"] == found[launch.entry]["LDSM"] == 0, name


ERRORS: Mapping[str, Callable[[str], str]] = {
    "no barrier": other(r"__syncthreads\(\);", ""),
    "no wait for copies": other(r"copies_wait_[1-9]\(\);", ""),
    "no wait for products": other(r"wgmma_wait_\d+\([^;]*;", ""),
    "no fence": other(r"fence_async\(\);", ""),
    "too far along the line": other(r"\+ \(uint64_t\)2\)", "+ (uint64_t)4)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_planted_errors_are_found(name: str) -> None:
    item, inputs = kernels()["linear_bf16"]
    exact = exact_result(Linear(), inputs, "bfloat16")
    try:
        (got,) = CudaLibrary([item], ERRORS[name]).run(item.kernel.name, *inputs)
    except (AssertionError, EmulationError):
        return
    assert not wrong(got, exact) < 1
