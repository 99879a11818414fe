"""A call as a command buffer: recorded once for given sizes, replayed as often as one likes."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PackageError
from ..launches import Copy, Dispatch, Program, Region
from ..replay import reported, status_words
from .device import Device
from .driver import LOST, explained
from .memory import Buffer, DeviceWeights
from .pipelines import Pipeline, Pipelines

Array = npt.NDArray[Any]
FOREVER = (1 << 64) - 1
BRIEF = 100e-6  # seconds
NOT_READY = 1  # VK_NOT_READY


class Recording:
    """The commands of a program with memory of their own. One thread at a time runs it.

    `timed`: every call waits for the one before, and the device's clock is read between them.

    Raises:
        MemoryError: the device has too little memory, or gives too little at once.
        PackageError: these sizes exceed a limit of the device; the text names the kernel and the limit.
    """

    def __init__(
        self,
        pipelines: Pipelines,
        program: Program,
        weights: DeviceWeights,
        state: Buffer | None,
        *,
        timed: bool = False,
    ) -> None:
        self.device, self.program = pipelines.device, program
        device, vk = self.device, self.device.vk
        device.check()
        self._pipelines, self._weights, self._state = pipelines, weights, state  # kept alive
        for step in program.steps:
            check_step(device, step)
        made = [
            pipelines.get(step.function, split=is_split(device, step)) if isinstance(step, Dispatch) else None
            for step in program.steps
        ]
        self._work = Buffer(device, program.nbytes, "device", "the values of a call")
        self._staging = None
        if self._work.array is None:
            self._staging = Buffer(device, program.shared_bytes, "host", "inputs and outputs")
        host = (self._staging or self._work).host()
        self._inputs = [host[region.offset : region.offset + region.nbytes] for region in program.inputs]
        self._outputs = [host[region.offset : region.offset + region.nbytes] for region in program.outputs]
        self._status = status_words(host, program)
        self._handles: list[tuple[str, Any]] = []
        self._submitted = False
        self._finalizer = weakref.finalize(self, _destroy, device, self._handles)
        self._timed = timed
        self.calls = (
            sorted({step.call for step in program.steps if isinstance(step, Dispatch)}) if timed else []
        )
        with explained(vk, "recording a call"):
            self._record(made)
        self._fence_array = vk.ffi.new("VkFence[]", [self._fence])
        self._submit = vk.ffi.new("VkSubmitInfo*")
        self._commands = vk.ffi.new("VkCommandBuffer[]", [self._command])
        self._submit.sType = vk.VK_STRUCTURE_TYPE_SUBMIT_INFO
        self._submit.commandBufferCount = 1
        self._submit.pCommandBuffers = self._commands
        # The wrappers of the package cost as much as a small kernel.
        library = vk._vulkan.lib
        self._queue_submit, self._wait = library.vkQueueSubmit, library.vkWaitForFences
        self._reset, self._status_of = library.vkResetFences, library.vkGetFenceStatus
        self._is_brief = True

    # --- recording ----------------------------------------------------------------------------------------

    def _record(self, made: Sequence[Pipeline | None]) -> None:
        device, vk, program = self.device, self.device.vk, self.program
        pool = vk.vkCreateCommandPool(
            device.handle, vk.VkCommandPoolCreateInfo(queueFamilyIndex=device.family), None
        )
        self._handles.append(("vkDestroyCommandPool", pool))
        self._fence = vk.vkCreateFence(device.handle, vk.VkFenceCreateInfo(), None)
        self._handles.append(("vkDestroyFence", self._fence))
        info = vk.VkCommandBufferAllocateInfo(commandPool=pool, level=0, commandBufferCount=1)
        self._command = command = vk.vkAllocateCommandBuffers(device.handle, info)[0]
        sets = self._descriptors(made)
        transfer = vk.VK_PIPELINE_STAGE_TRANSFER_BIT
        steps = vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT
        if any(isinstance(step, Copy) for step in program.steps):
            steps |= transfer
        vk.vkBeginCommandBuffer(command, vk.VkCommandBufferBeginInfo())
        if self._timed:
            self._start_clock()
        if self._staging is not None:
            self._copy_shared(self._staging, self._work, program.upload)
            self._barrier(transfer, steps | transfer)
        call, bound = -1, None
        for step, wait, pipeline, descriptors in zip(
            program.steps, program.needs_barrier(), made, sets, strict=True
        ):
            new_call = isinstance(step, Dispatch) and step.call != call
            if wait or (self._timed and new_call):
                self._barrier(steps, steps)
            if isinstance(step, Copy):
                self._copy(step)
                continue
            assert pipeline is not None
            if self._timed and new_call:
                self._read_clock(self.calls.index(step.call))
            call = step.call
            if pipeline.handle != bound:
                vk.vkCmdBindPipeline(command, vk.VK_PIPELINE_BIND_POINT_COMPUTE, pipeline.handle)
                bound = pipeline.handle
            vk.vkCmdBindDescriptorSets(
                command, vk.VK_PIPELINE_BIND_POINT_COMPUTE, pipeline.layout, 0, 1, [descriptors], 0, None
            )
            if step.scalars:
                data = vk.ffi.new("char[]", step.scalars)
                vk.vkCmdPushConstants(
                    command, pipeline.layout, vk.VK_SHADER_STAGE_COMPUTE_BIT, 0, len(step.scalars), data
                )
            vk.vkCmdDispatch(command, *groups(device, step))
        if self._timed:
            self._barrier(steps, steps)
            self._read_clock(len(self.calls))
        if self._staging is not None:
            self._barrier(steps, transfer)
            self._copy_shared(self._work, self._staging, program.download)
        self._barrier(steps if self._staging is None else transfer, vk.VK_PIPELINE_STAGE_HOST_BIT)
        vk.vkEndCommandBuffer(command)

    def _descriptors(self, made: Sequence[Pipeline | None]) -> list[Any]:
        """A set for every dispatch, None for copies."""
        device, vk = self.device, self.device.vk
        kind = vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER
        dispatches = [step for step in self.program.steps if isinstance(step, Dispatch)]
        if not dispatches:
            return [None] * len(self.program.steps)
        count = sum(step.function.bindings for step in dispatches)
        info = vk.VkDescriptorPoolCreateInfo(
            maxSets=len(dispatches),
            pPoolSizes=[vk.VkDescriptorPoolSize(type=kind, descriptorCount=max(count, 1))],
        )
        pool = vk.vkCreateDescriptorPool(device.handle, info, None)
        self._handles.append(("vkDestroyDescriptorPool", pool))
        sets: list[Any] = []
        for step, pipeline in zip(self.program.steps, made, strict=True):
            if isinstance(step, Copy):
                sets.append(None)
                continue
            assert pipeline is not None
            info = vk.VkDescriptorSetAllocateInfo(descriptorPool=pool, pSetLayouts=[pipeline.set_layout])
            descriptors = vk.vkAllocateDescriptorSets(device.handle, info)[0]
            writes = []
            for index, region in enumerate(bindings(device, step)):
                buffer, offset = self._locate(region)
                place = vk.VkDescriptorBufferInfo(buffer=buffer.handle, offset=offset, range=_range(region))
                writes.append(
                    vk.VkWriteDescriptorSet(
                        dstSet=descriptors,
                        dstBinding=index,
                        descriptorCount=1,
                        descriptorType=kind,
                        pBufferInfo=[place],
                    )
                )
            if writes:
                vk.vkUpdateDescriptorSets(device.handle, len(writes), writes, 0, None)
            sets.append(descriptors)
        return sets

    def _locate(self, region: Region) -> tuple[Buffer, int]:
        match region.memory:
            case "work":
                return self._work, region.offset
            case "weights":
                return self._weights.locate(region.offset)
        assert self._state is not None, "a plan with state, and none was given"
        return self._state, region.offset

    def _copy(self, step: Copy) -> None:
        source, start = self._locate(step.source)
        target, place = self._locate(step.target)
        if step.source.nbytes:
            self._copy_bytes(source, start, target, place, step.source.nbytes)

    def _copy_shared(self, source: Buffer, target: Buffer, part: tuple[int, int]) -> None:
        start, end = part
        if end > start:
            self._copy_bytes(source, start, target, start, end - start)

    def _copy_bytes(self, source: Buffer, start: int, target: Buffer, place: int, nbytes: int) -> None:
        vk = self.device.vk
        region = vk.VkBufferCopy(srcOffset=start, dstOffset=place, size=nbytes)
        vk.vkCmdCopyBuffer(self._command, source.handle, target.handle, 1, [region])

    def _barrier(self, before: int, after: int) -> None:
        """What comes later in the stages `after` waits for those `before`, and sees what they wrote."""
        vk = self.device.vk
        read, written = 0, 0
        for stage, reads, writes in (
            (
                vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                vk.VK_ACCESS_SHADER_READ_BIT,
                vk.VK_ACCESS_SHADER_WRITE_BIT,
            ),
            (
                vk.VK_PIPELINE_STAGE_TRANSFER_BIT,
                vk.VK_ACCESS_TRANSFER_READ_BIT,
                vk.VK_ACCESS_TRANSFER_WRITE_BIT,
            ),
            (vk.VK_PIPELINE_STAGE_HOST_BIT, vk.VK_ACCESS_HOST_READ_BIT, 0),
        ):
            written |= writes if before & stage else 0
            read |= reads | writes if after & stage else 0
        barrier = vk.VkMemoryBarrier(srcAccessMask=written, dstAccessMask=read)
        vk.vkCmdPipelineBarrier(self._command, before, after, 0, 1, [barrier], 0, None, 0, None)

    # --- the clock ----------------------------------------------------------------------------------------

    def _start_clock(self) -> None:
        vk = self.device.vk
        count = len(self.calls) + 1
        info = vk.VkQueryPoolCreateInfo(queryType=vk.VK_QUERY_TYPE_TIMESTAMP, queryCount=count)
        self._clock = vk.vkCreateQueryPool(self.device.handle, info, None)
        self._handles.append(("vkDestroyQueryPool", self._clock))
        vk.vkCmdResetQueryPool(self._command, self._clock, 0, count)

    def _read_clock(self, index: int) -> None:
        vk = self.device.vk
        vk.vkCmdWriteTimestamp(self._command, vk.VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, self._clock, index)

    def times(self) -> list[float]:
        """The device's clock in seconds before every call and after the last one, of a timed recording."""
        vk, count = self.device.vk, len(self.calls) + 1
        data = vk.ffi.new("uint64_t[]", count)
        flags = vk.VK_QUERY_RESULT_64_BIT | vk.VK_QUERY_RESULT_WAIT_BIT
        with explained(vk, "reading the clock"):
            vk.vkGetQueryPoolResults(self.device.handle, self._clock, 0, count, 8 * count, data, 8, flags)
        mask = (1 << self.device.timestamp_bits) - 1
        first = int(data[0]) & mask
        tick = self.device.limits.timestampPeriod * 1e-9
        return [((int(value) & mask) - first) % (mask + 1) * tick for value in data]

    # --- running ------------------------------------------------------------------------------------------

    def run(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> tuple[int, int]:
        """Replay; `outputs` are filled. (0, -1), or what a kernel reports of data that do not fit, and its
        call.

        Raises:
            RuntimeError: the device was lost.
        """
        for place, array in zip(self._inputs, inputs, strict=True):
            place[...] = _bytes(array)
        if self._status.size:
            self._status[...] = 0
        self.replay()
        for place, array in zip(self._outputs, outputs, strict=True):
            _bytes(array)[...] = place
        return reported(self._status, self.program) if self._status.size else (0, -1)

    def replay(self) -> None:
        device = self.device
        device.check()
        start = perf_counter()
        with device.submitting:
            self._submitted = True
            code = self._queue_submit(device.queue, 1, self._submit, self._fence)
        if not code:
            code = self._finish(start)
        self._is_brief = perf_counter() - start < BRIEF
        if not code:
            code = self._reset(device.handle, 1, self._fence_array)
        self._submitted = False
        if code:
            self._fail(code)

    def _finish(self, start: float) -> int:
        """Waits until the device is done; the driver's result. A call that was brief the last time is asked
        for: falling asleep and being woken costs more than a small kernel."""
        device, code = self.device, NOT_READY
        while self._is_brief and code == NOT_READY and perf_counter() - start < BRIEF:
            code = self._status_of(device.handle, self._fence)
        if code == NOT_READY:
            code = self._wait(device.handle, 1, self._fence_array, 1, FOREVER)
        return int(code)

    def _fail(self, code: int) -> None:
        if code == self.device.vk.VK_ERROR_DEVICE_LOST:
            self.device.lost = True
            raise RuntimeError(LOST)
        if code in (self.device.vk.VK_ERROR_OUT_OF_DEVICE_MEMORY, self.device.vk.VK_ERROR_OUT_OF_HOST_MEMORY):
            raise MemoryError("the device has too little memory to run a call")
        raise RuntimeError(f"the Vulkan driver failed at running a call: VkResult {code}")

    def free(self) -> None:
        """Give the memory back. Nobody may run it any more."""
        if self._submitted and self.device.is_ours() and not self.device.lost:
            # The caller was interrupted before the device had finished; it still uses what is freed here.
            with suppress(self.device.vk.VkError, self.device.vk.VkException), self.device.submitting:
                self.device.vk.vkQueueWaitIdle(self.device.queue)
        self._finalizer()
        self._inputs, self._outputs = [], []
        self._status = np.zeros(0, np.int32)
        self._work.free()
        if self._staging is not None:
            self._staging.free()


def _destroy(device: Device, handles: list[tuple[str, Any]]) -> None:
    if not device.is_ours():
        return
    for name, handle in reversed(handles):
        getattr(device.vk, name)(device.handle, handle, None)


def _bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def _range(region: Region) -> int:
    """The bytes of a binding: whole words, at least one."""
    return max(-(-region.nbytes // 4) * 4, 4)


def is_split(device: Device, step: Dispatch) -> bool:
    """Whether a buffer is larger than the device binds, so that those with windows are bound in pieces."""
    return any(region.nbytes > device.binding_bytes for region in step.regions)


def bindings(device: Device, step: Dispatch) -> list[Region]:
    """What every binding of a launch shows. Windows that are not used show the beginning."""
    function, split = step.function, is_split(device, step)
    shown = []
    for region, count in zip(step.regions, function.windows or (1,) * len(step.regions), strict=True):
        nothing = Region(region.memory, region.offset, 0)
        if count == 1 or not split:
            shown += [region, *[nothing] * (count - 1)]
            continue
        for start in range(0, count * function.window_bytes, function.window_bytes):
            nbytes = min(region.nbytes - start, function.window_bytes)
            shown.append(Region(region.memory, region.offset + start, nbytes) if nbytes > 0 else nothing)
    return shown


def groups(device: Device, step: Dispatch) -> tuple[int, int, int]:
    """The workgroups on each axis; where the function allows it, those of axis 0 go on along another one."""
    grid = list(step.grid)
    folded = step.function.folded
    most = device.limits.maxComputeWorkGroupCount
    if folded is not None and grid[0] > most[0]:
        grid[folded] = -(-grid[0] // most[0])
        grid[0] = most[0]
    return grid[0], grid[1], grid[2]


def check_step(device: Device, step: Dispatch | Copy) -> None:
    """Raises PackageError for what exceeds a limit of the device: before anything runs."""
    if isinstance(step, Copy):
        return
    function, limits, most = step.function, device.limits, device.binding_bytes
    name = f"kernel {function.kernel}"
    for region, count in zip(step.regions, function.windows or (1,) * len(step.regions), strict=True):
        pieces = count * function.window_bytes if function.window_bytes <= most else 0
        if region.nbytes > max(most, pieces):
            raise PackageError(
                f"{name} reads or writes a tensor of {region.nbytes:,} bytes; {device.name} takes "
                f"{max(most, pieces):,} at most (maxStorageBufferRange): use smaller sizes or another "
                "device; where sizes vary, narrower bounds at build time let a tensor be bound in pieces"
            )
    for axis, count in enumerate(groups(device, step)):
        if count > limits.maxComputeWorkGroupCount[axis]:
            raise PackageError(
                f"{name} takes {count:,} workgroups; {device.name} takes "
                f"{limits.maxComputeWorkGroupCount[axis]:,} at most (maxComputeWorkGroupCount[{axis}]): "
                "use smaller sizes"
            )
