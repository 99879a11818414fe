"""Kernels for tests: one thread an element, lowered and translated together."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import s_tir, te

from transpiler.gpu.lowering import lower
from transpiler.spirv.build import build_kernels
from transpiler.spirv.kernel import Kernel

TARGET = {
    "kind": "vulkan",
    "max_num_threads": 256,
    "max_threads_per_block": 256,
    "max_shared_memory_per_block": 32768,
    **{
        f"supports_{name}": True
        for name in ("float16", "float64", "int8", "int16", "int64", "8bit_buffer", "16bit_buffer")
    },
}
THREADS = 64


def elementwise(name: str, inputs: Sequence[str], output: str, function: Callable[..., Any], count: int) -> Any:
    """`out[i] = function(in0[i], ...)`; workgroups of 64."""
    sources = [te.placeholder((count,), dtype, name=f"in{i}") for i, dtype in enumerate(inputs)]
    result = te.compute((count,), lambda i: function(*(source[i] for source in sources)).astype(output), name="out")
    schedule = s_tir.Schedule(te.create_prim_func([*sources, result]).with_attr("global_symbol", name))
    (loop,) = schedule.get_loops(schedule.get_sblock("out"))
    outer, inner = schedule.split(loop, [None, THREADS])
    schedule.bind(outer, "blockIdx.x")
    schedule.bind(inner, "threadIdx.x")
    return schedule.mod["main"].with_attr("global_symbol", name)


def build(functions: Sequence[Any]) -> dict[str, Kernel]:
    """Kernels by the names of the functions they come from."""
    target = tvm.target.Target(TARGET)
    module = tvm.IRModule({str(function.attrs["global_symbol"]): function for function in functions})
    _, device_side = lower(module, target)
    return {name.removesuffix("_kernel"): kernel for name, kernel in build_kernels(device_side).items()}


def validation_errors(kernel: Kernel, folder: Path) -> str:
    """What `spirv-val` says about a kernel; nothing if it is valid."""
    return code_errors(kernel.name, kernel.code, folder)


def code_errors(name: str, code: bytes, folder: Path) -> str:
    """What `spirv-val` says about a module; nothing if it is valid."""
    path = folder / f"{name}.spv"
    path.write_bytes(code)
    done = subprocess.run(["spirv-val", "--target-env", "vulkan1.1", str(path)], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"{name}: {done.stdout}{done.stderr}"
