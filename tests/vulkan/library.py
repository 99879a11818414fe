"""Scheduled kernels on a Vulkan device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.conformance.launches import LaunchLibrary, scalar_bytes
from tests.vulkan.device import Device, Pipeline
from transpiler.dims import evaluate
from transpiler.errors import TranspileErrors
from transpiler.gpu.launches import Launch
from transpiler.gpu.vulkan import compile_kernel
from transpiler.group import Lowered
from transpiler.ir import Array
from transpiler.target import Target

MAX_GROUPS = 65535


class VulkanLibrary(LaunchLibrary):
    """Kernels of the Vulkan target, compiled one by one."""

    def __init__(self, kernels: Sequence[Lowered], target: Target, device: Device) -> None:
        super().__init__(kernels)
        self.device = device
        self._files: dict[str, bytes] = {}
        self._pipelines: dict[str, Pipeline] = {}
        for item in kernels:
            name = item.kernel.name
            try:
                self.launches[name], files = compile_kernel(item, target)
            except TranspileErrors as error:
                self.refused[name] = "; ".join(problem.message for problem in error.problems)
                continue
            missing = {feature for launch in self.launches[name] for feature in launch.features} - device.available
            assert not missing, f"{name} needs {missing}"
            self._files.update({f"{name}/{file}": code for file, code in files.items()})

    def launch(self, name: str, launch: Launch, memory: Sequence[Array], symbols: Mapping[str, int]) -> None:
        grid = [evaluate(size, symbols) for size in launch.grid]
        if 0 in grid:
            return
        if launch.folded is not None and grid[0] > MAX_GROUPS:
            grid[launch.folded], grid[0] = -(-grid[0] // MAX_GROUPS), MAX_GROUPS
        push = bytearray(launch.scalar_bytes)
        for field in launch.scalars:
            value = scalar_bytes(field, symbols)
            push[field.offset : field.offset + len(value)] = value
        key = f"{name}/{launch.file}"
        if key not in self._pipelines:
            self._pipelines[key] = Pipeline(
                self.device, self._files[key], launch.entry, len(launch.buffers), launch.scalar_bytes
            )
        self._pipelines[key].run([memory[place] for place in launch.buffers], bytes(push), grid)

    def close(self) -> None:
        """Frees the device's objects."""
        for pipeline in self._pipelines.values():
            pipeline.close()
        self._pipelines.clear()
