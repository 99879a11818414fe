"""Scheduled kernels on a Vulkan device, called by name with numpy arrays: what `KernelLibrary` is for the CPU."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import ir, tirx

from tests.conformance.kernels import raise_status
from tests.vulkan.device import Device
from tests.vulkan.kernels import TARGET
from transpiler.dims import evaluate
from transpiler.group import Lowered
from transpiler.ir import Array
from transpiler.ops.dtypes import numpy_dtype
from transpiler.spirv.build import build_kernels, lower
from transpiler.spirv.kernel import Kernel

GUARD = 64  # bytes behind every buffer that must stay as they are
_BINARY: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "FloorDiv": operator.floordiv,
    "FloorMod": operator.mod, "Min": min, "Max": max,
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A device kernel, the PrimFunc's parameters behind its bindings, its scalars and workgroups as expressions."""

    kernel: Kernel
    buffers: tuple[int, ...]
    scalars: tuple[Any, ...]
    groups: tuple[Any, ...]


def launches(lowered: Lowered) -> list[Launch]:
    """The device kernels of a scheduled kernel in order."""
    module = tvm.IRModule({lowered.kernel.name: lowered.function})
    host, device = lower(module, tvm.target.Target(TARGET))
    kernels = build_kernels(device) if device.functions else {}
    function = host[lowered.kernel.name]
    positions = {parameter: number for number, parameter in enumerate(function.params)}
    found: list[Launch] = []

    def root(x: Any) -> Any:
        while isinstance(x, ir.Call):
            x = x.args[0]
        return x

    def walk(node: Any) -> None:
        match type(node).__name__:
            case "SeqStmt":
                for child in node.seq:
                    walk(child)
            case "AttrStmt":
                walk(node.body)
            case "DeclBuffer":
                positions[node.buffer] = positions[root(node.data)]
            case "Evaluate" if isinstance(node.value, ir.Call) and node.value.op.name.endswith("call_ffi_kernel"):
                found.append(_launch(node.value, kernels, lambda x: positions[root(x)]))
            case "Evaluate" | "Return":
                pass
            case kind:
                raise AssertionError(f"{lowered.kernel.name}: {kind} on the host: {node}")

    walk(function.body)
    return found


def _launch(call: Any, kernels: Mapping[str, Kernel], position: Callable[[Any], int]) -> Launch:
    name, *arguments = call.args
    tags = [str(tag) for tag in call.attrs.launch_params]
    values, sizes = arguments[: len(arguments) - len(tags)], arguments[len(arguments) - len(tags) :]
    kernel = kernels[str(name.value)]
    groups: list[Any] = [1, 1, 1]
    for tag, size in zip(tags, sizes, strict=True):
        if tag.startswith("blockIdx"):
            groups["xyz".index(tag[-1])] = size
    return Launch(
        kernel,
        tuple(position(values[binding.parameter]) for binding in kernel.buffers),
        tuple(values[field.parameter] for field in kernel.push),
        tuple(groups),
    )


def number(x: Any, symbols: Mapping[str, int]) -> int:
    """An expression over the symbols."""
    kind = type(x).__name__
    if isinstance(x, int):
        return x
    if isinstance(x, tirx.IntImm):
        return int(x.value)
    if kind == "Var":
        return symbols[x.name]
    if kind in _BINARY:
        return _BINARY[kind](number(x.a, symbols), number(x.b, symbols))
    if kind == "Cast":
        return number(x.value, symbols)
    if kind == "Call":
        left, right = (number(item, symbols) for item in x.args)
        return left >> right if "right" in x.op.name else left << right
    raise AssertionError(f"{kind} in the size of a launch: {x}")


class VulkanLibrary:
    """Built kernels, callable by name with numpy arrays."""

    def __init__(self, kernels: Sequence[Lowered], device: Device) -> None:
        self.kernels = {item.kernel.name: item.kernel for item in kernels}
        self.launches = {item.kernel.name: launches(item) for item in kernels}
        self.device = device

    def run(self, name: str, *inputs: Array, sizes: Mapping[str, int] | None = None) -> tuple[Array, ...]:
        """Outputs of one call; raises what the kernel reported. Memory that it writes starts as NaN bits."""
        kernel, symbols = self.kernels[name], sizes or {}
        shapes = [tuple(evaluate(dim, symbols) for dim in type_.shape) for type_ in kernel.outputs]
        memory = [np.concatenate([np.ascontiguousarray(x).reshape(-1).view(np.uint8), _guard()]) for x in inputs]
        sizes_ = [
            int(np.prod(shape)) * numpy_dtype(type_.dtype).itemsize
            for shape, type_ in zip(shapes, kernel.outputs, strict=True)
        ]
        memory += [np.full(size + GUARD, 0xFF, np.uint8) for size in sizes_]
        if kernel.workspace != 0:
            memory.append(np.full(evaluate(kernel.workspace, symbols) + GUARD, 0xFF, np.uint8))
        status = np.zeros(1, np.int32)
        if kernel.checks_index:
            memory.append(status.view(np.uint8))
        before = [item.copy() for item in memory]
        for launch in self.launches[name]:
            groups = [number(size, symbols) for size in launch.groups]
            if 0 in groups:
                continue
            if launch.kernel.folded is not None and groups[0] > 65535:
                groups[launch.kernel.folded] = -(-groups[0] // 65535)
                groups[0] = 65535
            scalars = [number(value, symbols) for value in launch.scalars]
            self.device.run(launch.kernel, [memory[p] for p in launch.buffers], scalars, tuple(groups))
        for number_, (old, new) in enumerate(zip(before, memory, strict=True)):
            kept = old if number_ < len(inputs) else old[-GUARD:]
            if new is not memory[-1] or not kernel.checks_index:
                assert np.array_equal(kept, new[len(new) - len(kept) :]), f"{name} wrote outside of its buffers"
        raise_status(int(status[0]), name)
        first = len(inputs)
        return tuple(
            memory[first + n][:size].view(numpy_dtype(type_.dtype)).reshape(shape).copy()
            for n, (size, shape, type_) in enumerate(zip(sizes_, shapes, kernel.outputs, strict=True))
        )


def _guard() -> Array:
    return np.full(GUARD, 0xA5, np.uint8)
