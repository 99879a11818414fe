"""Lowered samples share kernels: one library for a batch of plans, and plans run through it in this process.

The plan is followed step by step, with its own offsets in one arena, so that a wrong lifetime or a wrong view shows.
Memory starts as NaN bits, and 64 bytes behind every buffer must stay untouched.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.conformance.kernels import STUB, raise_status
from transpiler.compile import compile_kernels
from transpiler.group import Group, Lowered
from transpiler.ir import Array, TensorType, Value, fixed_size
from transpiler.link import SPECIAL_FILES
from transpiler.memory import aligned
from transpiler.ops.dtypes import numpy_dtype
from transpiler.plan import KernelPlan, storage_of
from transpiler.resources import tree
from transpiler.schedule import schedule
from transpiler.target import Target

GUARD = 64


class KernelPool:
    """Every distinct kernel once, under a name of its own; `schedule` can stand in for the target's scheduler."""

    def __init__(self, prefix: str = "k") -> None:
        self.kernels: dict[tuple[object, ...], Lowered] = {}
        self._prefix = prefix

    def schedule(self, group: Group, target: Target, name: str) -> Lowered:
        """The group's kernel under the pool's name. Raises LookupError if the target has no schedule."""
        key = group.key()
        if key not in self.kernels:
            self.kernels[key] = schedule(group, target, f"{self._prefix}{len(self.kernels)}_{name}")
        own = self.kernels[key]
        return replace(own, kernel=replace(own.kernel, name=name))

    def symbols(self, lowered: Sequence[Lowered]) -> dict[str, str]:
        """A plan's names of its kernels -> the names in the library."""
        own = {id(item.function): item.kernel.name for item in self.kernels.values()}
        return {item.kernel.name: own[id(item.function)] for item in lowered}


@cache
def _fixed_objects() -> dict[str, bytes]:
    """The stand-in for the runtime and the special functions, compiled once."""
    sources = tree("templates") / "runtime" / "cpu"
    with tempfile.TemporaryDirectory(prefix="databases-") as name:
        folder = Path(name)
        (folder / "stub.c").write_text(STUB)
        files = [folder / "stub.c", *(sources / file for file in SPECIAL_FILES)]
        _run_cc(["-O1", "-fPIC", "-c", *map(str, files)], folder)
        return {path.name: path.read_bytes() for path in sorted(folder.glob("*.o"))}


def kernel_library(kernels: Sequence[Lowered], target: Target) -> ctypes.CDLL:
    """The kernels, compiled and loaded."""
    objects = dict(_fixed_objects())
    objects |= {f"k{number}.o": data for number, data in enumerate(compile_kernels(kernels, target, workers=1))}
    with tempfile.TemporaryDirectory(prefix="databases-") as name:
        folder = Path(name)
        for file, data in objects.items():
            (folder / file).write_bytes(data)
        _run_cc(["-shared", "-o", "kernels.so", *objects, "-lm"], folder)
        return ctypes.CDLL(str(folder / "kernels.so"))


def _run_cc(arguments: Sequence[str], folder: Path) -> None:
    subprocess.run(["cc", *arguments], cwd=folder, check=True, capture_output=True)


class _Memory:
    """Poisoned bytes, aligned, with a guard behind them."""

    def __init__(self, size: int) -> None:
        whole = np.full(size + GUARD + 64, 0xFF, np.uint8)
        start = -whole.ctypes.data % 64
        self.size, self.all = size, whole[start : start + size + GUARD]
        self.address = self.all.ctypes.data

    def check(self, what: str) -> None:
        if not (self.all[self.size :] == 0xFF).all():
            raise MemoryError(f"a kernel wrote past the end of {what}")


def run_plan(
    plan: KernelPlan, symbols: Mapping[str, str], library: Any, weights: Mapping[str, Array], inputs: Sequence[Array]
) -> list[Array]:
    """The plan's outputs for flat inputs.

    Raises:
        IndexError, ZeroDivisionError: a kernel reported data that do not fit.
        MemoryError: a kernel wrote behind a buffer.
        RuntimeError: a kernel failed.
    """
    held = [_filled(np.ascontiguousarray(array)) for array in inputs]
    before = [memory.all.copy() for memory in held]
    outputs = [_Memory(value.type.bytes) for value in plan.outputs]
    arena, packed = _Memory(fixed_size(plan.arena_bytes)), _packed(plan, weights)
    homes = {"input": held, "output": outputs, "weight": [packed], "arena": [arena]}

    def address(value: Value) -> int:
        place = storage_of(plan, value)
        return homes[place.kind][place.index].address + fixed_size(place.offset)

    status = np.zeros(1, np.int32)
    for call in plan.calls():
        kernel = plan.kernel(call.kernel)
        pointers = [address(value) for value in (*call.inputs, *call.outputs)]
        pointers += [arena.address + fixed_size(call.workspace_offset)] * bool(kernel.workspace)
        pointers += [status.ctypes.data] * kernel.checks_index
        function = getattr(library, symbols[call.kernel])
        if function(*(ctypes.c_void_p(pointer) for pointer in pointers)) != 0:
            raise RuntimeError(f"{call.kernel} failed")
        raise_status(int(status[0]), call.kernel)
    for what, memories in homes.items():
        for memory in memories:
            memory.check(f"an {what}")
    for memory, bytes_before in zip(held, before, strict=True):
        if not np.array_equal(memory.all, bytes_before):
            raise MemoryError("a kernel wrote into an input")
    return [_result(plan, index, homes) for index in range(len(plan.outputs))]


def _result(plan: KernelPlan, index: int, homes: Mapping[str, Sequence[_Memory]]) -> Array:
    value = plan.outputs[index]
    place = storage_of(plan, value)
    start, type_ = fixed_size(place.offset), value.type
    memory = homes[place.kind][place.index].all
    return _view(memory[start : start + type_.bytes].copy(), type_)


def _view(data: Array, type_: TensorType) -> Array:
    return data.view(numpy_dtype(type_.dtype)).reshape(type_.static_shape())


def _filled(array: Array) -> _Memory:
    memory = _Memory(array.nbytes)
    memory.all[: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    return memory


def _packed(plan: KernelPlan, weights: Mapping[str, Array]) -> _Memory:
    memory = _Memory(plan.weight_bytes)
    offset = 0
    for value in plan.weights:
        data = np.frombuffer(np.ascontiguousarray(weights[value.name]).tobytes(), np.uint8)
        memory.all[offset : offset + data.size] = data
        offset += aligned(value.type.bytes)
    return memory
