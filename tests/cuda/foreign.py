"""Tensors of another library on the device, such as torch's: filled on a stream of its own, given through DLPack."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from transpiler.ir import Array


class Library:
    """What another library does on the device of a model, in the same process."""

    def __init__(self, model: Any) -> None:
        runtime = f"{type(model).__module__.rpartition('.')[0]}.runtime.cuda"
        self.arrays, self.dlpack, self.memory = (
            importlib.import_module(f"{runtime}.{name}") for name in ("arrays", "dlpack", "memory")
        )
        self.device = model._library.device
        self.pinned: list[Any] = []  # what streams may not have read yet

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *error: object) -> None:
        with self.device.current():
            self.device.do("waiting", self.device.driver.cuCtxSynchronize())
        self.pinned.clear()

    def stream(self) -> int:
        """A new stream, which waits for no other."""
        with self.device.current():
            return int(self.device.do("a stream", self.device.driver.cuStreamCreate(1)))

    def destroy(self, stream: int) -> None:
        driver = self.device.driver
        with self.device.current():
            self.device.do("waiting", driver.cuStreamSynchronize(driver.CUstream(stream)))
            self.device.do("a stream", driver.cuStreamDestroy(driver.CUstream(stream)))

    def tensor(self, values: Array, stream: int = 1, strides: Sequence[int] | None = None) -> Tensor:
        return Tensor(self, values, stream, strides)

    def versioned(self, values: Array, major: int = 1) -> Versioned:
        return Versioned(self, values, 1, None, major)

    def managed(self, values: Array) -> Managed:
        return Managed(self, values, 1, None)

    def read(self, value: Any, stream: int = 1) -> Array:
        """The content of what speaks DLPack, for work on `stream`."""
        found = self.dlpack.imported(value.__dlpack__(stream=stream))
        copy = self.arrays.DeviceArray(self.device, found.address, found.dtype, found.shape, stream, found)
        result: Array = copy.numpy()
        return result


class Tensor:
    """A tensor whose content is copied there on its stream, when the stream comes to it."""

    def __init__(self, library: Library, values: Array, stream: int, strides: Sequence[int] | None) -> None:
        device, driver = library.device, library.device.driver
        self._library, self._strides, self.exports = library, strides, 0
        pinned = library.memory.Pinned(device, values.nbytes, "values")
        library.pinned.append(pinned)
        pinned.array[...] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._event = library.memory.Event(device)
        there = driver.CUstream(stream)
        with device.current():
            # Its memory comes from the legacy stream, which outlives the others.
            self.array = library.arrays.allocate(device, values.dtype.name, values.shape, 1)
            self.array.__dlpack__(stream=stream)
            device.do("a copy", driver.cuMemcpyHtoDAsync(self.array.address, pinned.address, values.nbytes, there))
            self._event.record(there)

    def __dlpack_device__(self) -> tuple[int, int]:
        where: tuple[int, int] = self.array.__dlpack_device__()
        return where

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.exports += 1
        device = self._library.device
        with device.current():
            self._event.hold_back(device.driver.CUstream(1 if stream is None else stream))
        capsule = self.array.__dlpack__(stream=-1)
        if self._strides is not None:
            address = self._library.dlpack._pointer(capsule, b"dltensor")
            managed = self._library.dlpack._Managed.from_address(address)
            self._kept = (self._library.dlpack.ctypes.c_int64 * len(self._strides))(*self._strides)
            managed.tensor.strides = self._kept
        return capsule


class Managed(Tensor):
    """One in memory that the driver moves between host and device, of a library that gives tensors of the thread's own
    device alone, as PyTorch does."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 13, self._library.device.number

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        error, context = self._library.device.driver.cuCtxGetCurrent()
        if error or int(context) != int(self._library.device.context):
            raise BufferError("can't export tensors on a different CUDA device")
        return super().__dlpack__(stream=stream)


class Versioned(Tensor):
    """One that gives capsules of DLPack's version 1, read-only, as newer libraries may; `given` of them are not given
    back yet."""

    def __init__(self, library: Library, values: Array, stream: int, strides: Sequence[int] | None, major: int) -> None:
        super().__init__(library, values, stream, strides)
        self.major, self.given = major, 0
        self._kept_alive: list[Any] = []

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        dlpack, ctypes = self._library.dlpack, self._library.dlpack.ctypes
        old = super().__dlpack__(stream=stream)
        managed = dlpack._Versioned()
        managed.major, managed.minor, managed.flags = self.major, 2, 1
        managed.tensor = dlpack._Managed.from_address(dlpack._pointer(old, b"dltensor")).tensor
        deleter = dlpack._Deleter(self._taken_back)
        managed.deleter = ctypes.cast(deleter, ctypes.c_void_p)
        self.given += 1
        self._kept_alive.append((old, managed, deleter))
        return dlpack._new(ctypes.addressof(managed), b"dltensor_versioned", None)

    def _taken_back(self, address: int) -> None:
        self.given -= 1
