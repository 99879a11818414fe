"""Scheduled kernels on a Vulkan device."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conformance.launches import LaunchLibrary, scalar_bytes
from tests.vulkan.device import Device, Pipeline, padded
from tests.vulkan.kernels import code_errors
from transpiler.dims import evaluate
from transpiler.errors import TranspileErrors
from transpiler.gpu.launches import Launch
from transpiler.gpu.vulkan import compile_kernel
from transpiler.group import Lowered
from transpiler.ir import Array
from transpiler.target import Target

MAX_GROUPS, MAX_BINDINGS = 65535, 32  # of lavapipe


class VulkanLibrary(LaunchLibrary):
    """Kernels of the Vulkan target, compiled one by one, valid as far as `spirv-val` knows."""

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
            self._files.update({f"{name}/{file}": code for file, code in files.items()})
            for launch in self.launches[name]:
                missing = set(self._code(launch)[1]) - device.available
                assert not missing, f"{name} needs {missing}"
        if shutil.which("spirv-val"):
            with tempfile.TemporaryDirectory() as folder:
                for file, code in self._files.items():
                    assert not (errors := code_errors(file.replace("/", "."), code, Path(folder))), errors

    def _code(self, launch: Launch) -> tuple[str, tuple[str, ...]]:
        """The file for this device, and what it needs."""
        if launch.fallback is None or self.device.available.issuperset(launch.features):
            return launch.file, launch.features
        return launch.fallback

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
        arrays, pieces = self.bound(launch, memory)
        count = sum(map(len, pieces))
        assert count <= MAX_BINDINGS, f"{name} has {count} bindings"
        key = f"{name}/{self._code(launch)[0]}"
        if key not in self._pipelines:
            self._pipelines[key] = Pipeline(
                self.device, self._files[key], launch.entry, count, launch.scalar_bytes, split=count > len(arrays)
            )
        self._pipelines[key].run(arrays, bytes(push), grid, pieces)

    def bound(self, launch: Launch, memory: Sequence[Array]) -> tuple[list[Array], list[list[tuple[int, int]]]]:
        """The buffers of a launch, and the offset and the bytes of each binding of every one."""
        arrays = [memory[place] for place in launch.buffers]
        windows = launch.windows or (1,) * len(arrays)
        return arrays, [
            _pieces(array, count, launch.window_bytes) for array, count in zip(arrays, windows, strict=True)
        ]

    def close(self) -> None:
        """Frees the device's objects."""
        for pipeline in self._pipelines.values():
            pipeline.close()
        self._pipelines.clear()


def _pieces(array: Array, count: int, window: int) -> list[tuple[int, int]]:
    """Offset and bytes of every binding of a buffer; those behind its end show a word of the beginning."""
    nbytes = padded(array)
    if count == 1:
        return [(0, nbytes)]
    return [
        (start, min(nbytes - start, window)) if start < nbytes else (0, 4) for start in range(0, count * window, window)
    ]
