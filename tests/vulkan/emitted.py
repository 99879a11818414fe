"""The runtime of emitted packages on single kernels: what dispatches them is what packages ship."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.conformance.kernels import raise_status
from transpiler.dims import evaluate
from transpiler.errors import TranspileErrors
from transpiler.gpu import launch_list
from transpiler.gpu.vulkan import compile_kernel
from transpiler.group import Lowered
from transpiler.ir import Array
from transpiler.ops.dtypes import numpy_dtype
from transpiler.resources import tree
from transpiler.target import Target

NAME = "_emitted_runtime"


@cache
def runtime(module: str) -> Any:
    """A module of the runtime, such as "vulkan.device"."""
    if NAME not in sys.modules:
        folder = tree("templates") / "package" / "src" / "__name__" / "runtime"
        spec = importlib.util.spec_from_file_location(
            NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    return importlib.import_module(f"{NAME}.{module}")


@cache
def device() -> Any:
    return runtime("vulkan.device").Device()


class KernelLibrary:
    """Compiled kernels, callable by name with numpy arrays. `refused` are those that have no SPIR-V, and why."""

    def __init__(self, kernels: Sequence[Lowered], target: Target) -> None:
        self.refused: dict[str, str] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="kernels-")
        folder = Path(self._folder.name)
        entries: dict[str, Any] = {}
        self._kernels = []
        for item in kernels:
            try:
                launches, files = compile_kernel(item, target)
            except TranspileErrors as error:
                self.refused[item.kernel.name] = str(error)
                continue
            entries[item.kernel.name] = launch_list._kernel(item.kernel, launches)
            self._kernels.append(item.kernel)
            for name, code in files.items():
                (folder / name).write_bytes(code)
        calls = [
            {
                "kernel": kernel.name,
                "places": [["arena", 0]] * (len(kernel.inputs) + len(kernel.outputs) + (kernel.workspace != 0)),
                "inputs": len(kernel.inputs),
                "outputs": len(kernel.outputs),
                "checks": kernel.checks_index,
                "in_place": kernel.in_place,
                "source": "",
            }
            for kernel in self._kernels
        ]
        function = {"inputs": [], "outputs": [], "arena": 0, "blocks": [], "calls": calls, "copies": [], "updates": []}
        symbols = sorted({symbol for kernel in self._kernels for symbol in kernel.symbols})
        content = {"format": 1, "symbols": symbols, "kernels": entries, "functions": {"all": function}}
        (folder / "launches.json").write_text(json.dumps(content))
        self._list = runtime("launches").LaunchList(folder / "launches.json")
        pipelines = runtime("vulkan.pipelines").Pipelines
        self._pipelines = pipelines(device(), folder, self._list.device_functions(), "conformance")
        self._weights = runtime("vulkan.memory").DeviceWeights(device(), np.zeros(0, np.uint8), [])

    def run(self, name: str, *inputs: Array, sizes: Mapping[str, int] | None = None) -> tuple[Array, ...]:
        """Outputs of one call; raises what the kernel reported."""
        index = [kernel.name for kernel in self._kernels].index(name)
        kernel, symbols = self._kernels[index], sizes or {}
        arrays = [np.ascontiguousarray(array) for array in inputs]
        arrays = [array.view(np.uint16) if array.dtype.name == "bfloat16" else array for array in arrays]
        outputs = []
        for type_ in kernel.outputs:
            shape = tuple(evaluate(dim, symbols) for dim in type_.shape)
            outputs.append(np.empty(shape, np.uint16 if type_.dtype == "bfloat16" else numpy_dtype(type_.dtype)))
        program = self._list.single(0, index, symbols)
        recording = runtime("vulkan.recording").Recording(self._pipelines, program, self._weights, None)
        try:
            recording._work.host()[program.upload[1] :] = 0xFF  # what is not written is NaN
            status, _ = recording.run(arrays, outputs)
        finally:
            recording.free()
        raise_status(status, name)
        return tuple(outputs)
