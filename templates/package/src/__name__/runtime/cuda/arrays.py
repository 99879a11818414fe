"""Arrays on a device: what a model gives for tensors on it, and how it sees those of other libraries."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..safetensors import bfloat16_array, storage_dtype
from .device import Device
from .dlpack import CUDA, MANAGED, Exported, Imported, exported, imported
from .memory import Event

Array = npt.NDArray[Any]
# Streams as the array API standard numbers them for CUDA; others are handles of the driver.
LEGACY, NO_WAIT = 1, -1


class DeviceArray:
    """An array in the memory of a device, C-contiguous. Other libraries take it without a copy, by
    `torch.from_dlpack(y)`, `cupy.from_dlpack(y)`, `jax.dlpack.from_dlpack(y)`; `y.numpy()` copies it.

    It was, or will be, filled on `stream`, which has to live as long as the array does. `owner` is what keeps
    the memory of another library.
    """

    def __init__(
        self, device: Device, address: int, dtype: str, shape: Sequence[int], stream: int, owner: object
    ) -> None:
        self._device, self.address, self.dtype, self.shape = device, address, dtype, tuple(shape)
        self.stream, self.owner = stream, owner

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}[{', '.join(map(str, self.shape))}], cuda:{self._device.number})"

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * storage_dtype(self.dtype).itemsize

    @property
    def device(self) -> str:
        return f"cuda:{self._device.number}"

    def numpy(self) -> Array:
        """A copy on the host, after what fills the array; bfloat16 as `ml_dtypes` has it, else as float32."""
        device, driver = self._device, self._device.driver
        array = np.empty(self.shape, storage_dtype(self.dtype))
        with device.current():
            device.do("waiting for a call", driver.cuStreamSynchronize(driver.CUstream(self.stream)))
            if array.nbytes:
                result = driver.cuMemcpyDtoH(array.ctypes.data, self.address, array.nbytes)
                device.do("a copy from the device", result)
        return bfloat16_array(array) if self.dtype == "bfloat16" else array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("an array on a device cannot be seen by the host without a copy")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self._device.number

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule as DLPack describes it. Later work on `stream` (None: the legacy default stream, -1:
        nobody waits) sees what fills the array.

        Raises:
            BufferError: another device, or a copy, is asked for.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("this array is given without a copy, on its own device")
        wanted = self.stream if stream == NO_WAIT else handle_of(stream)
        if wanted != self.stream:
            device = self._device
            event = Event(device)
            with device.current():
                event.record(device.driver.CUstream(self.stream))
                event.hold_back(device.driver.CUstream(wanted))
        return exported(Exported(self.address, self._device.number, self.dtype, self.shape), self)


def handle_of(stream: Any) -> int:
    """A stream of the array API standard's numbers, the driver, torch, CuPy or numba as the driver's handle.

    Raises:
        TypeError: it is none.
        ValueError: it is a number that no stream has.
    """
    if stream is None:
        return LEGACY
    if hasattr(stream, "__cuda_stream__"):
        stream = stream.__cuda_stream__()[1]
    for name in ("cuda_stream", "ptr", "handle"):
        stream = getattr(stream, name, stream)
    try:
        number = int(getattr(stream, "value", stream) or 0)
    except (TypeError, ValueError):
        raise TypeError(
            f"stream: expected a CUDA stream or its handle, got {type(stream).__name__}"
        ) from None
    if number < 0:
        raise ValueError(f"stream: {number} is no stream")
    # 0 is what torch and CuPy call the legacy default stream.
    return number or LEGACY


def on_device(value: Any) -> bool:
    """Whether a value is an array in the memory of a CUDA device."""
    if isinstance(value, np.ndarray):
        return False
    where = getattr(value, "__dlpack_device__", None)
    return where is not None and where()[0] in (CUDA, MANAGED)


def take(device: Device, value: Any, name: str, stream: int) -> DeviceArray:
    """An array of another library, whose content is there for later work on `stream`.

    Raises:
        TypeError: it cannot be read.
        ValueError: it is on another device, or not contiguous.
    """
    if isinstance(value, DeviceArray) and value._device is device and value.stream == stream:
        return value
    _, number = value.__dlpack_device__()
    if number != device.number:
        raise ValueError(f"{name}: is on cuda:{number}, the model on cuda:{device.number}")
    with device.current():  # PyTorch gives tensors of the thread's own device alone
        try:
            found: Imported = imported(value.__dlpack__(stream=stream))
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(f"{name}: this {type(value).__name__} cannot be read: {error}") from error
    if not found.contiguous:
        raise ValueError(f"{name}: is not contiguous; pass {name}.contiguous() or a copy of it")
    return DeviceArray(device, found.address, found.dtype, found.shape, stream, found)


def allocate(device: Device, dtype: str, shape: Sequence[int], stream: int) -> DeviceArray:
    """An array without content, for work on `stream`; its memory goes back there. The device is current.

    Raises:
        MemoryError: the device has too little memory.
    """
    array = DeviceArray(device, 0, dtype, shape, stream, None)
    driver, nbytes = device.driver, max(array.nbytes, 1)
    if device.pool is not None:
        result = driver.cuMemAllocFromPoolAsync(nbytes, device.pool, driver.CUstream(stream))
    else:
        result = driver.cuMemAlloc(nbytes)
    array.address = int(device.do("an output", result, nbytes))
    weakref.finalize(array, _free, device, array.address, stream)
    return array


def _free(device: Device, address: int, stream: int) -> None:
    if not device.is_ours() or device.lost:
        return
    driver = device.driver
    with device.current():
        if device.pool is not None:
            driver.cuMemFreeAsync(address, driver.CUstream(stream))
        else:
            driver.cuStreamSynchronize(driver.CUstream(stream))
            driver.cuMemFree(address)
