"""Scheduled kernels on a device, one by one, through NVIDIA's driver (or its stand-in)."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.conformance.launches import LaunchLibrary, scalar_bytes
from transpiler.dims import evaluate
from transpiler.gpu.cuda import FILE, compile_kernels
from transpiler.gpu.here import has_cuda
from transpiler.gpu.launches import Launch
from transpiler.group import Lowered
from transpiler.ir import Array
from transpiler.target import Target, load_targets


def variant_here() -> str:
    """The best variant that a device of this machine runs. Raises RuntimeError: none."""
    for target in load_targets("cuda"):
        if has_cuda(target.gpu.arch):
            return target.variant.name
    raise RuntimeError("this machine has no device for any variant of the CUDA target")


class DeviceLibrary(LaunchLibrary):
    """Kernels of one variant on the first device."""

    def __init__(self, kernels: Sequence[Lowered], target: Target) -> None:
        from cuda.bindings import driver

        super().__init__(kernels)
        self._driver = driver
        name = target.variant.name
        compiled = compile_kernels({name: kernels}, [target])[name]
        self.launches.update(compiled.launches)
        self._folder = tempfile.TemporaryDirectory(prefix="kernels-")
        for file, content in compiled.files.items():
            (Path(self._folder.name) / file).write_bytes(content)
        self._do(driver.cuInit(0))
        self._device = self._do(driver.cuDeviceGet(0))
        self._do(driver.cuCtxPushCurrent(self._do(driver.cuDevicePrimaryCtxRetain(self._device))))
        path = str(Path(self._folder.name) / FILE).encode()
        self._library = self._do(driver.cuLibraryLoadFromFile(path, None, None, 0, None, None, 0))

    def __enter__(self) -> DeviceLibrary:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._driver.cuLibraryUnload(self._library)
        self._driver.cuCtxPopCurrent()
        self._driver.cuDevicePrimaryCtxRelease(self._device)

    def _do(self, result: tuple[Any, ...]) -> Any:
        if result[0]:
            raise RuntimeError(f"the driver says {result[0].name}")
        return result[1] if len(result) == 2 else None

    def launch(self, name: str, launch: Launch, memory: Sequence[Array], symbols: Mapping[str, int]) -> None:
        grid = [evaluate(size, symbols) for size in launch.grid]
        if 0 in grid:
            return
        driver, used = self._driver, [memory[place] for place in launch.buffers]
        handle = self._do(driver.cuLibraryGetKernel(self._library, launch.entry.encode()))
        handle = self._do(driver.cuKernelGetFunction(handle))
        if launch.shared_bytes:
            kind = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._do(driver.cuFuncSetAttribute(handle, kind, launch.shared_bytes))
        buffers = [int(self._do(driver.cuMemAlloc(array.nbytes))) for array in used]
        try:
            for address, array in zip(buffers, used, strict=True):
                self._do(driver.cuMemcpyHtoD(address, array.ctypes.data, array.nbytes))
            values: list[Any] = [ctypes.c_uint64(address) for address in buffers]
            for scalar in launch.scalars:
                data = scalar_bytes(scalar, symbols)
                values.append(ctypes.create_string_buffer(data, len(data)))
            places = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
            arguments = ctypes.addressof(places)
            self._do(driver.cuLaunchKernel(handle, *grid, *launch.workgroup, launch.shared_bytes, 0, arguments, 0))
            for address, array in zip(buffers, used, strict=True):
                self._do(driver.cuMemcpyDtoH(array.ctypes.data, address, array.nbytes))
        finally:
            for address in buffers:
                driver.cuMemFree(address)
