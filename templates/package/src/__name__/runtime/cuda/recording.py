"""A call as a graph: made once for given sizes, launched as often as one likes.

The graph is built node by node, not captured: capturing forbids what other threads do meanwhile, and a
stream would put kernels in a row that need not wait for each other.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..launches import Copy, Dispatch, Program, Region
from ..replay import reported, status_words
from .arrays import DeviceArray
from .device import Code, Device, check_grid
from .memory import Buffer, DeviceState, DeviceWeights, Event, Pinned
from .tensor_maps import Descriptor

Array = npt.NDArray[Any]
# Tensors of other libraries that calls on streams may still read; our own go back in the stream's order.
MOST_HELD = 64


class Recording:
    """A program with memory of its own. One thread at a time runs it.

    `hosted`: its inputs come from the host and its outputs go there, as a part of the graph; else they are
    copied within the device, on the caller's stream.

    Raises:
        MemoryError: the device has too little memory.
        PackageError: these sizes exceed a limit of the device; the text names the kernel.
    """

    def __init__(
        self,
        code: Code,
        program: Program,
        weights: DeviceWeights,
        state: DeviceState | None,
        *,
        hosted: bool,
        graph: bool = True,
    ) -> None:
        self.device, self.program, self.hosted = code.device, program, hosted
        self._code, self._weights, self._state = code, weights, state  # kept alive
        for step in program.steps:
            if isinstance(step, Dispatch):
                check_grid(self.device, step)
        self._held: list[object] = []  # inputs that the device may still read
        self._work = Buffer(self.device, program.nbytes, "the values of a call")
        self._staging = Pinned(self.device, program.shared_bytes, "inputs and outputs")
        host = self._staging.array
        self._inputs = [host[region.offset : region.offset + region.nbytes] for region in program.inputs]
        self._outputs = [host[region.offset : region.offset + region.nbytes] for region in program.outputs]
        self._status = status_words(host, program)
        self._event = Event(self.device)
        self._graph = _Graph(self) if graph else None
        # Made last, so that what is freed first at the end of a process is what uses the rest.
        with self.device.current():
            flag = self.device.driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
            self.stream = self.device.do("making a stream", self.device.driver.cuStreamCreate(flag))
        self._finalizer = weakref.finalize(self, _finish, self.device, self.stream, self._event.handle)

    # --- where things are ---------------------------------------------------------------------------------

    def address(self, region: Region) -> int:
        """On the device."""
        match region.memory:
            case "work":
                return self._work.address + region.offset
            case "weights":
                return self._weights.address + region.offset
        assert self._state is not None, "a plan with state, and none was given"
        return self._state.buffer.address + region.offset

    def shared(self, part: tuple[int, int]) -> tuple[int, int, int]:
        """Of a part of what host and device exchange: address on the host, on the device, bytes."""
        start, end = part
        return self._staging.address + start, self._work.address + start, end - start

    # --- running ------------------------------------------------------------------------------------------

    def run(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> tuple[int, int]:
        """Inputs and outputs are the host's; `outputs` are filled. (0, -1), or what a kernel reports of data
        that do not fit, and its call.

        Raises:
            RuntimeError: the device failed.
        """
        assert self._graph is not None
        with self.device.current():  # first: a forked process does not even have the pinned memory
            self._fill(inputs)
            self._begin(self.stream)
            self._graph.launch(self.stream)
            self._finish()
        return self._results(outputs)

    def launch(
        self, inputs: Sequence[Array | DeviceArray], outputs: Sequence[DeviceArray], stream: Any
    ) -> tuple[int, int]:
        """As `run`, on a stream: inputs are the host's or the device's, outputs the device's. It returns
        before the device has finished, unless kernels check their data."""
        assert self._graph is not None
        device, driver = self.device, self.device.driver
        with device.current():
            hosted = any(not isinstance(array, DeviceArray) for array in inputs)
            if hosted or len(self._held) > MOST_HELD or self._event.passed():
                self._event.wait()
                self._held.clear()
            self._event.hold_back(stream)
            self._begin(stream)
            for array, place, region in zip(inputs, self._inputs, self.program.inputs, strict=True):
                if not region.nbytes:
                    continue
                if isinstance(array, DeviceArray):
                    result = driver.cuMemcpyDtoDAsync(
                        self.address(region), array.address, region.nbytes, stream
                    )
                    if array.owner is not None:
                        self._held.append(array)
                else:
                    place[...] = _bytes(array)
                    source = self._staging.address + region.offset
                    result = driver.cuMemcpyHtoDAsync(self.address(region), source, region.nbytes, stream)
                device.do("a copy of an input", result)
            self._graph.launch(stream)
            for array, region in zip(outputs, self.program.outputs, strict=True):
                if region.nbytes:
                    result = driver.cuMemcpyDtoDAsync(
                        array.address, self.address(region), region.nbytes, stream
                    )
                    device.do("a copy of an output", result)
            if self.program.checked:
                region = self.program.status
                target = self._staging.address + region.offset
                result = driver.cuMemcpyDtoHAsync(target, self.address(region), region.nbytes, stream)
                device.do("a copy from the device", result)
            self._end(stream)
            if self.program.checked:
                self._event.wait()
                self._held.clear()
                return reported(self._status, self.program)
        return 0, -1

    def _fill(self, inputs: Sequence[Array]) -> None:
        for place, array in zip(self._inputs, inputs, strict=True):
            place[...] = _bytes(array)
        self._status[...] = 0

    def _results(self, outputs: Sequence[Array]) -> tuple[int, int]:
        for place, array in zip(self._outputs, outputs, strict=True):
            _bytes(array)[...] = place
        return reported(self._status, self.program)

    def _begin(self, stream: Any) -> None:
        """Calls on one state come one after the other, on whatever streams."""
        if self._state is not None:
            self._state.event.hold_back(stream)

    def _end(self, stream: Any) -> None:
        self._event.record(stream)
        if self._state is not None:
            self._state.event.record(stream)
            self._state.changed = True

    def _finish(self) -> None:
        """Wait for all work of the own stream, and so for what that has waited for."""
        self.device.do("running a call", self.device.driver.cuStreamSynchronize(self.stream))
        self._event.pending = False
        if self._state is not None:
            self._state.event.pending = False
            self._state.changed = True

    def run_timed(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> tuple[int, int, list[float]]:
        """As `run`, kernel by kernel, and the device's clock in seconds before every call that launches
        something and after the last one."""
        self._fill(inputs)
        with self.device.current():
            self._begin(self.stream)
            self._copy_shared(self.program.upload, to_device=True)
            times = _Clock(self.device)
            call = -1
            for step in self.program.steps:
                if isinstance(step, Dispatch) and step.call != call:
                    times.read(self.stream)
                    call = step.call
                self._step(step)
            times.read(self.stream)
            self._copy_shared(self.program.download, to_device=False)
            self._finish()
            return (*self._results(outputs), times.seconds())

    def _copy_shared(self, part: tuple[int, int], *, to_device: bool) -> None:
        driver = self.device.driver
        host, there, nbytes = self.shared(part)
        if nbytes > 0 and to_device:
            self.device.do("a copy of inputs", driver.cuMemcpyHtoDAsync(there, host, nbytes, self.stream))
        elif nbytes > 0:
            self.device.do("a copy of outputs", driver.cuMemcpyDtoHAsync(host, there, nbytes, self.stream))

    def _step(self, step: Dispatch | Copy) -> None:
        device, driver = self.device, self.device.driver
        if isinstance(step, Copy):
            if step.source.nbytes:
                target, source = self.address(step.target), self.address(step.source)
                result = driver.cuMemcpyDtoDAsync(target, source, step.source.nbytes, self.stream)
                device.do("a copy", result)
            return
        arguments = KernelArguments(self, step)
        handle, shared = self._code.get(step.function), step.function.shared_bytes
        if step.function.cluster > 1:
            result = driver.cuLaunchKernelEx(self._configuration(step), handle, arguments.address, 0)
        else:
            result = driver.cuLaunchKernel(
                handle, *step.grid, *step.function.workgroup, shared, self.stream, arguments.address, 0
            )
        device.do(f"launching kernel {step.function.kernel}", result)

    def _configuration(self, step: Dispatch) -> Any:
        """Of a launch whose blocks are clusters."""
        driver = self.device.driver
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        attribute.value = cluster_dimension(driver, step.function.cluster)
        found = driver.CUlaunchConfig()
        found.gridDimX, found.gridDimY, found.gridDimZ = step.grid
        found.blockDimX, found.blockDimY, found.blockDimZ = step.function.workgroup
        found.sharedMemBytes, found.hStream = step.function.shared_bytes, self.stream
        found.attrs, found.numAttrs = [attribute], 1
        return found

    def free(self) -> None:
        """Give the memory back. Nobody may run it any more."""
        self._finalizer()
        self._held.clear()
        if self._graph is not None:
            self._graph.free()
        self._inputs, self._outputs = [], []
        self._status = np.zeros(0, np.int32)
        self._work.free()
        self._staging.free()


class KernelArguments:
    """The arguments of a launch as the driver takes them: addresses of each, at `address`. Descriptors of
    tensors hold the addresses of the recording's memory, which never move."""

    def __init__(self, recording: Recording, step: Dispatch) -> None:
        function = step.function
        pointers = [recording.address(region) for region in step.regions]
        self._pointers = (ctypes.c_uint64 * len(pointers))(*pointers)
        self._scalars = ctypes.create_string_buffer(step.scalars, max(len(step.scalars), 1))
        described = pointers[len(pointers) - len(step.maps) :]
        self._maps = [
            Descriptor(recording.device, f"describing a tensor of kernel {function.kernel}", tensor, address)
            for tensor, address in zip(step.maps, described, strict=True)
        ]
        own = len(pointers) - len(step.maps)
        places = [ctypes.addressof(self._pointers) + 8 * index for index in range(own)]
        for rule, made in zip(function.maps, self._maps, strict=True):
            places.insert(rule.argument, made.address)
        places += [ctypes.addressof(self._scalars) + scalar.offset for scalar in function.scalars]
        self._places = (ctypes.c_void_p * max(len(places), 1))(*places)
        self.address = ctypes.addressof(self._places)


def cluster_dimension(driver: Any, blocks: int) -> Any:
    """The value of a launch's attribute: so many blocks along the first axis are a cluster."""
    value = driver.CUkernelNodeAttrValue()  # a CUlaunchAttributeValue, too
    value.clusterDim.x, value.clusterDim.y, value.clusterDim.z = blocks, 1, 1
    return value


class _Graph:
    """The steps of a recording. Those between two barriers of the program do not wait for each other."""

    def __init__(self, recording: Recording) -> None:
        self._recording, self.device = recording, recording.device
        driver, program = self.device.driver, recording.program
        with self.device.current():
            self._handle = self.device.do("recording a call", driver.cuGraphCreate(0))
            try:
                self._build(program)
                result = driver.cuGraphInstantiate(self._handle, 0)
                self._ready = self.device.do("recording a call", result)
            finally:
                driver.cuGraphDestroy(self._handle)
        del self._recording
        self._finalizer = weakref.finalize(self, _destroy_graph, self.device, self._ready)

    def _build(self, program: Program) -> None:
        recording = self._recording
        before: list[Any] = []  # what every node waits for
        if recording.hosted:
            host, there, nbytes = recording.shared(program.upload)
            if nbytes > 0:
                before = [self._copy_node([], there, host, nbytes, "to the device")]
        elif program.status.nbytes:
            before = [self._zeros([], recording.address(program.status), program.status.nbytes)]
        made: list[Any] = []
        for step, wait in zip(program.steps, program.needs_barrier(), strict=True):
            if wait and made:
                before, made = made, []
            node = self._node(before, step)
            if node is not None:
                made.append(node)
        if recording.hosted:
            host, there, nbytes = recording.shared(program.download)
            if nbytes > 0:
                self._copy_node(made or before, host, there, nbytes, "from the device")

    def _node(self, before: Sequence[Any], step: Dispatch | Copy) -> Any:
        recording = self._recording
        if isinstance(step, Copy):
            source, target = recording.address(step.source), recording.address(step.target)
            nbytes = step.source.nbytes
            return self._copy_node(before, target, source, nbytes, "on the device") if nbytes else None
        driver = self.device.driver
        parameters = driver.CUDA_KERNEL_NODE_PARAMS()
        parameters.func = recording._code.get(step.function)
        parameters.gridDimX, parameters.gridDimY, parameters.gridDimZ = step.grid
        parameters.blockDimX, parameters.blockDimY, parameters.blockDimZ = step.function.workgroup
        parameters.sharedMemBytes = step.function.shared_bytes
        arguments = KernelArguments(recording, step)
        parameters.kernelParams = arguments.address
        what = f"recording kernel {step.function.kernel}"
        result = driver.cuGraphAddKernelNode(self._handle, list(before), len(before), parameters)
        node = self.device.do(what, result)
        if step.function.cluster > 1:
            kind = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            value = cluster_dimension(driver, step.function.cluster)
            self.device.do(what, driver.cuGraphKernelNodeSetAttribute(node, kind, value))
        return node

    def _copy_node(self, before: Sequence[Any], target: int, source: int, nbytes: int, way: str) -> Any:
        driver = self.device.driver
        kinds = driver.CUmemorytype
        copy = driver.CUDA_MEMCPY3D()
        copy.WidthInBytes, copy.Height, copy.Depth = nbytes, 1, 1
        if way == "to the device":
            copy.srcMemoryType, copy.srcHost = kinds.CU_MEMORYTYPE_HOST, source
        else:
            copy.srcMemoryType, copy.srcDevice = kinds.CU_MEMORYTYPE_DEVICE, source
        if way == "from the device":
            copy.dstMemoryType, copy.dstHost = kinds.CU_MEMORYTYPE_HOST, target
        else:
            copy.dstMemoryType, copy.dstDevice = kinds.CU_MEMORYTYPE_DEVICE, target
        context = self.device.context
        result = driver.cuGraphAddMemcpyNode(self._handle, list(before), len(before), copy, context)
        return self.device.do("recording a copy", result)

    def _zeros(self, before: Sequence[Any], address: int, nbytes: int) -> Any:
        driver = self.device.driver
        fill = driver.CUDA_MEMSET_NODE_PARAMS()
        fill.dst, fill.value, fill.elementSize, fill.width, fill.height = address, 0, 1, nbytes, 1
        context = self.device.context
        result = driver.cuGraphAddMemsetNode(self._handle, list(before), len(before), fill, context)
        return self.device.do("recording zeros", result)

    def launch(self, stream: Any) -> None:
        """The device is current."""
        self.device.do("running a call", self.device.driver.cuGraphLaunch(self._ready, stream))

    def free(self) -> None:
        self._finalizer()


class _Clock:
    """The device's clock, read between the steps of a stream."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._events: list[Any] = []

    def read(self, stream: Any) -> None:
        device, driver = self.device, self.device.driver
        flag = driver.CUevent_flags.CU_EVENT_DEFAULT.value
        self._events.append(device.do("making an event", driver.cuEventCreate(flag)))
        device.do("reading the clock", driver.cuEventRecord(self._events[-1], stream))

    def seconds(self) -> list[float]:
        """What was read, counted from the first time on. The stream has finished."""
        device, driver = self.device, self.device.driver
        try:
            return [
                device.do("reading the clock", driver.cuEventElapsedTime(self._events[0], event)) * 1e-3
                for event in self._events
            ]
        finally:
            for event in self._events:
                driver.cuEventDestroy(event)


def _finish(device: Device, stream: Any, event: Any) -> None:
    """The device may still be at it: a call on another stream, or one whose caller was interrupted."""
    if device.is_ours() and not device.lost:
        with device.current():
            device.driver.cuEventSynchronize(event)
            device.driver.cuStreamSynchronize(stream)
            device.driver.cuStreamDestroy(stream)


def _destroy_graph(device: Device, graph: Any) -> None:
    if device.is_ours() and not device.lost:
        with device.current():
            device.driver.cuGraphExecDestroy(graph)


def _bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)
