"""Memory of a device and memory that it copies from and to: allocations, the weights, states."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..state import Memory
from .device import Device

Array = npt.NDArray[Any]
MINIMUM = 256


class Buffer:
    """`nbytes` bytes of the device, from `address` on. The content is undefined."""

    def __init__(self, device: Device, nbytes: int, what: str) -> None:
        self.device, self.nbytes = device, max(nbytes, MINIMUM)
        with device.current():
            result = device.driver.cuMemAlloc(self.nbytes)
            self.address = int(device.do(what, result, self.nbytes))
        self._finalizer = weakref.finalize(self, _free, device, self.address)

    def write(self, offset: int, data: Array) -> None:
        """Copy bytes there; they are there on return. The device is current."""
        driver = self.device.driver
        if data.nbytes:
            result = driver.cuMemcpyHtoD(self.address + offset, data.ctypes.data, data.nbytes)
            self.device.do("a copy to the device", result)
            # The driver returns when it has read pageable memory, not when the last copy is done.
            self.device.do("a copy to the device", driver.cuStreamSynchronize(driver.CUstream(0)))

    def read(self, offset: int, data: Array) -> None:
        """Fill `data` with bytes from there. The device is current."""
        if data.nbytes:
            result = self.device.driver.cuMemcpyDtoH(data.ctypes.data, self.address + offset, data.nbytes)
            self.device.do("a copy from the device", result)

    def free(self) -> None:
        """Give the memory back. Nothing on the device may use it any more."""
        self._finalizer()


def _free(device: Device, address: int) -> None:
    if device.is_ours() and not device.lost:
        with device.current():
            device.driver.cuMemFree(address)


class Pinned:
    """`nbytes` bytes of the host as `array`, which the device copies from and to without a detour."""

    def __init__(self, device: Device, nbytes: int, what: str) -> None:
        size = max(nbytes, MINIMUM)
        with device.current():
            text = f"{what} ({size:,} bytes of pinned memory of the host)"
            self.address = int(device.do(text, device.driver.cuMemHostAlloc(size, 0)))
        self._finalizer = weakref.finalize(self, _free_pinned, device, self.address)
        memory = (ctypes.c_uint8 * size).from_address(self.address)
        self.array: Array = np.frombuffer(memoryview(memory), np.uint8)[:nbytes]

    def free(self) -> None:
        """Give the memory back. Nobody may use the array any more."""
        self.array = np.zeros(0, np.uint8)
        self._finalizer()


def _free_pinned(device: Device, address: int) -> None:
    if device.is_ours() and not device.lost:
        with device.current():
            device.driver.cuMemFreeHost(address)


class Event:
    """A point in the work of a stream. `pending` until somebody has seen that the device has passed it."""

    def __init__(self, device: Device) -> None:
        self.device, driver = device, device.driver
        self.pending = False
        with device.current():
            flag = driver.CUevent_flags.CU_EVENT_DISABLE_TIMING.value
            self.handle = device.do("making an event", driver.cuEventCreate(flag))
        self._finalizer = weakref.finalize(self, _destroy_event, device, self.handle)

    def record(self, stream: Any) -> None:
        """The end of all work that the stream has now. The device is current."""
        self.pending = True
        self.device.do("recording an event", self.device.driver.cuEventRecord(self.handle, stream))

    def wait(self) -> None:
        """Until the device has passed it. The device is current."""
        if self.pending:
            self.device.do("waiting for a call", self.device.driver.cuEventSynchronize(self.handle))
            self.pending = False

    def hold_back(self, stream: Any) -> None:
        """Later work of the stream waits for it, the host does not. The device is current."""
        if self.pending:
            result = self.device.driver.cuStreamWaitEvent(stream, self.handle, 0)
            self.device.do("waiting for a call", result)

    def passed(self) -> bool:
        """Whether the device has passed it. The device is current."""
        if self.pending:
            code = self.device.driver.cuEventQuery(self.handle)[0]
            self.pending = code.name == "CUDA_ERROR_NOT_READY"
        return not self.pending


def _destroy_event(device: Device, handle: Any) -> None:
    if device.is_ours() and not device.lost:
        with device.current():
            device.driver.cuEventDestroy(handle)


class DeviceWeights:
    """The weights on the device, all in one buffer, as they lie in `data`.

    `address` is where the first byte of `data` would be: before and behind the tensors `weights` are those of
    other targets, which stay on the host.
    """

    def __init__(self, device: Device, data: Array, weights: Mapping[str, Array]) -> None:
        starts = {array.ctypes.data - data.ctypes.data: array.nbytes for array in weights.values()}
        first = min(starts, default=0)
        last = max((start + nbytes for start, nbytes in starts.items()), default=0)
        self.buffer = Buffer(device, last - first, "the weights")
        self.address = self.buffer.address - first
        with device.current():
            self.buffer.write(0, data[first:last])


class DeviceState(Memory):
    """Memory of a state: kernels use `buffer`, the host has a copy that is brought up to date when it is
    asked for."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.buffer = Buffer(device, nbytes, "the state")
        self.array: Array = np.zeros(nbytes, np.uint8)
        self.event = Event(device)  # of the last call that used it
        self.changed = False  # on the device, since the host looked
        self.store()

    def fetch(self) -> None:
        if self.changed:
            with self.buffer.device.current():
                self.event.wait()
                self.buffer.read(0, self.array)
            self.changed = False

    def store(self) -> None:
        with self.buffer.device.current():
            self.event.wait()
            self.buffer.write(0, self.array)
        self.changed = False


_sharing = threading.Lock()
_shared: weakref.WeakValueDictionary[tuple[object, ...], DeviceWeights] = weakref.WeakValueDictionary()


def shared_weights(
    device: Device, data: Array, weights: Mapping[str, Array], file: Iterable[object] | None
) -> DeviceWeights:
    """The weights on the device. Models of a process share those of a file, which `file` identifies."""
    if file is None:
        return DeviceWeights(device, data, weights)
    key = (os.getpid(), device.number, *file)
    with _sharing:
        found = _shared.get(key)
        if found is None or found.buffer.device is not device:
            found = _shared[key] = DeviceWeights(device, data, weights)
        return found
