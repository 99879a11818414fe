"""The kernels of a package on a Vulkan device, as a model sees them."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import TensorSpec
from ..errors import PackageError
from ..kernels import OpenedDevice, PlainCall
from ..launches import LaunchList, Program
from ..manifest import check_files
from ..profile import Rates
from ..state import State
from .device import Device, choose, list_devices
from .driver import create_instance, load_vulkan
from .memory import Buffer, DeviceWeights
from .pipelines import Pipelines
from .recording import Recording

Array = npt.NDArray[Any]
NAME = "vulkan"
# Recordings that wait for the next call: one for each of the sizes, and callers at once, that come often.
IDLE = 8
# What a kernel writes into its status word (the CPU's kernels do as well).
STATUS_INDEX, STATUS_SINGULAR, STATUS_DIVISION = 1, 2, 3


def open_device(folder: Path, manifest: Mapping[str, Any], wanted: str | None) -> OpenedDevice:
    """The device `wanted` ("vulkan:1"), by default $VULKAN_DEVICE or the best one. Raises PackageError."""
    kernels = folder / "kernels" / NAME
    check_files(folder, manifest, lambda file: file.parent == kernels)
    library = VulkanLibrary(kernels, manifest, wanted)
    return OpenedDevice(NAME, manifest["isas"][0], library, library.pipelines().device.name)


def runnable(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The variants of the package's kernels that this machine runs. Raises PackageError: it has no driver."""
    vk = load_vulkan()
    instance = create_instance(vk)
    try:
        choose(list_devices(vk, instance), None)
    finally:
        vk.vkDestroyInstance(instance, None)
    return [str(name) for name in manifest["isas"]]


class Memory:
    """Memory of a state: the host reads and writes `array`, kernels use `buffer`."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.buffer = Buffer(device, nbytes, "both", "the state")
        self.array: Array = self.buffer.host()[:nbytes]
        self.array[...] = 0


class VulkanLibrary:
    """The kernels of a package on one device.

    The device and its pipelines live as long as somebody has weights, or a state, there.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], wanted: str | None) -> None:
        self.list = LaunchList(folder / "launches.json")
        self.functions, self.calls = self.list.functions, self.list.calls
        self._folder, self._key = folder, str(manifest["sha256"])
        prepared = manifest["weights"]["prepared"].values()
        self.tensors = [(item["offset"], _nbytes(item)) for item in prepared]
        self._wanted = wanted
        self._opening = threading.Lock()
        first = self._open()
        self._pipelines = weakref.ref(first)
        self._first: Pipelines | None = first

    def _open(self) -> Pipelines:
        device = Device(self._wanted)
        return Pipelines(device, self._folder, self.list.device_functions(), self._key)

    def pipelines(self) -> Pipelines:
        with self._opening:
            found = self._pipelines()
            if found is None:
                found = self._open()
                self._pipelines = weakref.ref(found)
            return found

    def sources(self, function: int) -> list[str]:
        """The user's source line of every call."""
        return self.list.sources(function)

    def measure_rates(self, threads: int) -> Rates | None:
        """None: what a GPU can do is not measured."""
        return None

    def session(self, data: Array, weights: Mapping[str, Array], threads: int) -> VulkanSession:
        """The model with these weights; `threads` is for processors."""
        session = VulkanSession(self, self.pipelines(), data, weights)
        self._first = None
        return session

    def allocate_state(self, nbytes: int) -> Memory:
        return Memory(self.pipelines().device, nbytes)


def _nbytes(item: Mapping[str, Any]) -> int:
    return TensorSpec("", item["dtype"], item["shape"]).nbytes


class VulkanSession:
    """The model over one set of weights. Whoever runs it holds a reference; the last one frees it."""

    def __init__(
        self, library: VulkanLibrary, pipelines: Pipelines, data: Array, weights: Mapping[str, Array]
    ) -> None:
        self.library = library
        self.weights = weights
        self._pipelines = pipelines
        self._on_device = DeviceWeights(pipelines.device, data, library.tensors)
        self._idle: OrderedDict[object, list[Recording]] = OrderedDict()
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _free, self._idle, self._on_device)

    def set_threads(self, threads: int) -> None:
        """Nothing: the device has its own."""

    def run(
        self,
        function: int,
        state: State | None,
        buffers: Sequence[Array],
        symbols: bytes | None = None,
    ) -> None:
        """A whole function on its inputs and then its outputs, which it fills; `state`, if it has one, moves
        on; `symbols` are the values of sizes that vary.

        Raises:
            IndexError, ZeroDivisionError, RuntimeError: the data do not fit; or what `Recording` raises.
        """
        memory = _buffer(state)
        key = (function, symbols, id(memory))
        recording = self._take(key)
        if recording is None:
            program = self.library.list.program(function, self.library.list.sizes(symbols))
            recording = self._record(program, memory)
            self._pipelines.save()
        self._replay(key, recording, function, state, buffers)

    def _replay(
        self, key: object, recording: Recording, function: int, state: State | None, buffers: Sequence[Array]
    ) -> None:
        count = len(recording.program.inputs)
        try:
            code, call = recording.run(buffers[:count], buffers[count:])
        except BaseException:
            if state is not None and self.library.list.writes_state(function):
                state.lose("the device failed")
            recording.free()
            raise
        self._give_back(key, recording)
        if code:
            self._raise(code, function, call, state)

    def call(self, function: int, index: int, buffers: Sequence[Array], symbols: bytes | None = None) -> None:
        """One call of a function on arrays of the caller's. Raises as `run` does."""
        key = (function, symbols, f"call {index}")
        recording = self._take(key)
        if recording is None:
            program = self.library.list.single(function, index, self.library.list.sizes(symbols))
            recording = self._record(program, None)
        # In place, the output's old content is an input too.
        given = buffers[: len(recording.program.inputs)]
        results = buffers[len(buffers) - len(recording.program.outputs) :]
        self._replay(key, recording, function, None, [*given, *results])

    def plain_call(
        self, function: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> PlainCall:
        """A function of the inputs of a function without state and without sizes that vary. Raises as `run`
        does, and TypeError or ValueError for an input that does not fit."""
        count, name = len(inputs), self.library.functions[function]

        def call(values: Sequence[Any]) -> tuple[Array, ...]:
            if len(values) != count:
                raise TypeError(f"{name}: expected {count} arrays, got {len(values)}")
            taken = [*map(TensorSpec.take, inputs, values)]
            results = (*map(TensorSpec.allocate, outputs),)
            self.run(function, None, [*taken, *results])
            return results

        return call

    def run_timed(
        self,
        function: int,
        state: State,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        symbols: bytes | None = None,
        threads: int = 1,
    ) -> tuple[Array, Array]:
        """As `run`; float64[calls, 2]: start and end of every call in seconds by the device's clock, and no
        helpers. Every call waits for the one before.

        Raises:
            PackageError: the device has no clock.
        """
        device = self._pipelines.device
        if not device.timestamp_bits:
            raise PackageError(f"{device.name} has no clock (timestampValidBits is 0): there is no profile")
        program = self.library.list.program(function, self.library.list.sizes(symbols))
        recording = Recording(self._pipelines, program, self._on_device, _buffer(state), timed=True)
        try:
            code, call = recording.run(inputs, outputs)
            times = recording.times()
        finally:
            recording.free()
        if code:
            self._raise(code, function, call, state)
        seconds = np.zeros((len(self.library.calls[function]), 2), np.float64)
        for place, index in enumerate(recording.calls):
            seconds[index] = times[place], times[place + 1]
        return seconds, np.zeros((len(seconds), 1, 2), np.float64)

    def _raise(self, code: int, function: int, call: int, state: State | None) -> None:
        """The exception for what a kernel reports; a state that was half-written is lost."""
        library = self.library
        where = f"in kernel {library.calls[function][call]} ({library.sources(function)[call]})"
        what = {
            STATUS_SINGULAR: "a matrix is singular, not positive definite or not finite",
            STATUS_DIVISION: "integer division by zero",
        }.get(code, "index out of bounds")
        text = f"{what} {where}"
        if state is not None and library.list.writes_state(function):
            state.lose(text)
        if code == STATUS_DIVISION:
            raise ZeroDivisionError(text)
        raise RuntimeError(text) if code == STATUS_SINGULAR else IndexError(text)

    # --- recordings ---------------------------------------------------------------------------------------

    def _record(self, program: Program, memory: Buffer | None) -> Recording:
        """A new recording; those that wait are given up where there is too little memory for it."""
        try:
            return Recording(self._pipelines, program, self._on_device, memory)
        except MemoryError:
            if not self._drop_idle():
                raise
        return Recording(self._pipelines, program, self._on_device, memory)

    def _drop_idle(self) -> bool:
        """Give up all recordings that wait; whether there were any."""
        with self._lock:
            dropped = [item for waiting in self._idle.values() for item in waiting]
            self._idle.clear()
        for item in dropped:
            item.free()
        return bool(dropped)

    def _take(self, key: object) -> Recording | None:
        with self._lock:
            waiting = self._idle.get(key)
            if not waiting:
                return None
            recording = waiting.pop()
            if not waiting:
                del self._idle[key]
            return recording

    def _give_back(self, key: object, recording: Recording) -> None:
        """Keep a recording for the next call; the one that was not used for longest makes room."""
        with self._lock:
            self._idle.setdefault(key, []).append(recording)
            self._idle.move_to_end(key)
            dropped = []
            while sum(map(len, self._idle.values())) > IDLE:
                oldest = next(iter(self._idle))
                dropped.append(self._idle[oldest].pop(0))
                if not self._idle[oldest]:
                    del self._idle[oldest]
        for item in dropped:
            item.free()


def _buffer(state: State | None) -> Buffer | None:
    """The state's memory on the device."""
    memory = None if state is None else state.memory
    return memory.buffer if isinstance(memory, Memory) else None


def _free(idle: OrderedDict[object, list[Recording]], weights: DeviceWeights) -> None:
    for recordings in idle.values():
        for recording in recordings:
            recording.free()
    idle.clear()
    weights.free()
