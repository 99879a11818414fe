"""Memory of a device: buffers, and the weights in some of them."""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from .device import Device
from .driver import explained

Array = npt.NDArray[Any]
MINIMUM = 256
# Weights are spread over buffers of about this size.
PIECE = 1 << 28
# Of what is not for this device, so much is copied rather than beginning another buffer.
GAP = 1 << 16


class Buffer:
    """`nbytes` bytes; `array` are those that the host sees, None in memory of the device alone.

    `purpose`: "device", where kernels compute; "host", to copy from and to; "both", which the host writes
    and kernels read all the time.

    Raises:
        MemoryError: the device has too little memory, or gives too little at once.
        RuntimeError: the device is lost, or another process's.
    """

    def __init__(self, device: Device, nbytes: int, purpose: str, what: str) -> None:
        device.check()
        vk = device.vk
        self.device, self.nbytes = device, max(-(-nbytes // MINIMUM) * MINIMUM, MINIMUM)
        if self.nbytes > device.largest_allocation:
            raise MemoryError(
                f"{device.name} gives at most {device.largest_allocation:,} bytes at once "
                f"(maxMemoryAllocationSize); {what} takes {self.nbytes:,}"
            )
        usage = (
            vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT
            | vk.VK_BUFFER_USAGE_TRANSFER_SRC_BIT
            | vk.VK_BUFFER_USAGE_TRANSFER_DST_BIT
        )
        with explained(vk, what, self.nbytes):
            info = vk.VkBufferCreateInfo(size=self.nbytes, usage=usage)
            self.handle = vk.vkCreateBuffer(device.handle, info, None)
        self._finalizer = weakref.finalize(self, _free, device, self.handle, None)
        needs = vk.vkGetBufferMemoryRequirements(device.handle, self.handle)
        memory, visible = _allocate(device, needs, purpose, f"{what} of {self.nbytes:,} bytes")
        self._finalizer.detach()
        self._finalizer = weakref.finalize(self, _free, device, self.handle, memory)
        with explained(vk, what, self.nbytes):
            vk.vkBindBufferMemory(device.handle, self.handle, memory, 0)
            self.array: Array | None = None
            if visible:
                mapped = vk.vkMapMemory(device.handle, memory, 0, self.nbytes, 0)
                self.array = np.frombuffer(mapped, np.uint8)[: self.nbytes]

    def host(self) -> Array:
        """The bytes that the host sees."""
        assert self.array is not None
        return self.array

    def free(self) -> None:
        """Give the memory back. Nobody may use it any more."""
        self.array = None
        self._finalizer()


def _allocate(device: Device, needs: Any, purpose: str, what: str) -> tuple[Any, bool]:
    """Memory for a buffer, and whether the host sees it: of the best type that has so much.

    Raises:
        MemoryError: none has; the text names those that were tried.
    """
    vk, tried = device.vk, []
    for index, visible in _memory_types(device, needs.memoryTypeBits, purpose):
        heap = device.heap_bytes(index)
        tried.append(f"type {index} of a heap of {heap:,} bytes")
        if needs.size > heap:
            continue
        try:
            with explained(vk, what):
                info = vk.VkMemoryAllocateInfo(allocationSize=needs.size, memoryTypeIndex=index)
                return vk.vkAllocateMemory(device.handle, info, None), visible
        except MemoryError as error:
            if isinstance(error.__cause__, vk.VkErrorOutOfHostMemory):
                raise
    if not tried:
        raise MemoryError(f"{device.name} has no memory for buffers of this kind: {what}")
    raise MemoryError(f"the device has too little memory for {what} (tried: {', '.join(tried)})")


def _memory_types(device: Device, allowed: int, purpose: str) -> list[tuple[int, bool]]:
    """The types to try, and whether the host shall see the memory. What kernels compute in is elsewhere than
    on the device only if that has none of its own: over the bus they would be slow without a word."""
    wishes = {
        "device": [(True, True)] * device.mapped + [(True, False)],
        "host": [(False, True)],
        "both": [(True, True), (False, True)],
    }
    found: dict[int, bool] = {}
    for local, visible in wishes[purpose]:
        for index in device.memory_types(allowed, local=local, visible=visible):
            found.setdefault(index, visible)
    if not found and purpose == "device":
        found = dict.fromkeys(device.memory_types(allowed, local=False, visible=False), False)
    return list(found.items())


def _free(device: Device, buffer: Any, memory: Any) -> None:
    if not device.is_ours():
        return
    device.vk.vkDestroyBuffer(device.handle, buffer, None)
    if memory is not None:
        device.vk.vkFreeMemory(device.handle, memory, None)


class DeviceWeights:
    """The weights on the device, in buffers that hold whole tensors.

    `tensors` are (offset, bytes) of each in `data`, the weights as the host has them.
    """

    def __init__(self, device: Device, data: Array, tensors: Iterable[tuple[int, int]]) -> None:
        device.check()
        self._starts: list[int] = []
        self._buffers: list[Buffer] = []
        for start, end in _pieces(sorted(tensors)):
            buffer = Buffer(device, end - start, "device", "weights")
            self._starts.append(start)
            self._buffers.append(buffer)
            upload(device, buffer, data[start:end])

    def locate(self, offset: int) -> tuple[Buffer, int]:
        """The buffer of the tensor at `offset` of the weights, and where it is there."""
        index = bisect.bisect_right(self._starts, offset) - 1
        return self._buffers[index], offset - self._starts[index]

    def free(self) -> None:
        for buffer in self._buffers:
            buffer.free()


def _pieces(tensors: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, end) of runs of tensors of about PIECE bytes."""
    pieces: list[tuple[int, int]] = []
    for offset, nbytes in tensors:
        # Between the tensors of this target may lie those of another.
        near = pieces and offset - pieces[-1][1] <= GAP
        if near and offset + nbytes - pieces[-1][0] <= PIECE:
            pieces[-1] = (pieces[-1][0], offset + nbytes)
        else:
            pieces.append((offset, offset + nbytes))
    return pieces


def upload(device: Device, buffer: Buffer, data: Array) -> None:
    """Fill a buffer: at once where the host sees it, else through another in steps."""
    if buffer.array is not None:
        buffer.array[: data.nbytes] = data
        return
    vk = device.vk
    staging = Buffer(device, min(data.nbytes, PIECE), "host", "a copy of weights to the device")
    with explained(vk, "a copy to the device"):
        pool = vk.vkCreateCommandPool(
            device.handle, vk.VkCommandPoolCreateInfo(queueFamilyIndex=device.family), None
        )
    try:
        for start in range(0, data.nbytes, staging.nbytes):
            part = data[start : start + staging.nbytes]
            staging.host()[: part.nbytes] = part
            with explained(vk, "a copy to the device"):
                info = vk.VkCommandBufferAllocateInfo(commandPool=pool, level=0, commandBufferCount=1)
                command = vk.vkAllocateCommandBuffers(device.handle, info)[0]
                vk.vkBeginCommandBuffer(command, vk.VkCommandBufferBeginInfo())
                region = vk.VkBufferCopy(srcOffset=0, dstOffset=start, size=part.nbytes)
                vk.vkCmdCopyBuffer(command, staging.handle, buffer.handle, 1, [region])
                vk.vkEndCommandBuffer(command)
                with device.submitting:
                    vk.vkQueueSubmit(device.queue, 1, [vk.VkSubmitInfo(pCommandBuffers=[command])], None)
                    vk.vkQueueWaitIdle(device.queue)
    finally:
        vk.vkDestroyCommandPool(device.handle, pool, None)
        staging.free()
