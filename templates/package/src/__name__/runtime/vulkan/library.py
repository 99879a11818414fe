"""The kernels of a package on a Vulkan device, as a model sees them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import TensorSpec
from ..errors import PackageError
from ..idle import Idle
from ..kernels import OpenedDevice
from ..launch_list import LaunchList
from ..launches import Program
from ..manifest import check_files
from ..profile import Rates
from ..replay import ReplaySession
from ..state import Memory, State
from .device import Device, available
from .memory import Buffer, DeviceWeights
from .pipelines import Pipelines
from .recording import Recording
from .variants import offered, open_able, runnable_variants

Array = npt.NDArray[Any]
NAME = "vulkan"


def open_device(folder: Path, manifest: Mapping[str, Any], wanted: str | None) -> OpenedDevice:
    """The device `wanted` ("vulkan:1"), by default $VULKAN_DEVICE or the best one. Raises PackageError."""
    kernels = folder / "kernels" / NAME
    check_files(folder, manifest, lambda file: file.parent == kernels)
    library = VulkanLibrary(kernels, manifest, wanted)
    return OpenedDevice(NAME, library.variant, library, library.pipelines().device.name, library.passed_over)


def runnable(folder: Path, manifest: Mapping[str, Any], wanted: str | None) -> list[str]:
    """The variants of the package's kernels that the device runs. Raises PackageError as `open_device`."""
    lists = _read_lists(folder / "kernels" / NAME, manifest)
    device, _, _ = open_able(wanted, lists)
    return runnable_variants(device, lists)


def _read_lists(folder: Path, manifest: Mapping[str, Any]) -> dict[str, LaunchList]:
    """By variant, in the order of the manifest."""
    return {variant: LaunchList(folder / f"launches.{variant}.json") for variant in manifest["isas"]}


def devices(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The devices that drivers of this machine know, in words. Raises PackageError: there are none."""
    return list(map(str, available()))


class DeviceState(Memory):
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
        lists = _read_lists(folder, manifest)
        # What a model computes is the same in all variants.
        alone = next(iter(lists.values())).small
        device, self.variant, self.passed_over = open_able(wanted, offered(lists), alone=alone)
        self._open = partial(Device, str(device.found.number), alone=alone)
        self.list = lists[self.variant]
        self.functions, self.calls = self.list.functions, self.list.calls
        self._folder, self._key = folder, str(manifest["sha256"])
        prepared = manifest["weights"]["prepared"].values()
        self.tensors = [(item["offset"], _nbytes(item)) for item in prepared]
        self._opening = threading.Lock()
        first = self._make(device)
        self._pipelines = weakref.ref(first)
        self._first: Pipelines | None = first

    def _make(self, device: Device) -> Pipelines:
        return Pipelines(device, self._folder, self._key)

    def pipelines(self) -> Pipelines:
        with self._opening:
            found = self._pipelines()
            if found is None:
                found = self._make(self._open())
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

    def allocate_state(self, nbytes: int) -> DeviceState:
        return DeviceState(self.pipelines().device, nbytes)


def _nbytes(item: Mapping[str, Any]) -> int:
    return TensorSpec("", item["dtype"], item["shape"]).nbytes


class VulkanSession(ReplaySession[Recording]):
    """The model over one set of weights. Whoever runs it holds a reference; the last one frees it."""

    def __init__(
        self, library: VulkanLibrary, pipelines: Pipelines, data: Array, weights: Mapping[str, Array]
    ) -> None:
        super().__init__(library, weights)
        self._library, self._pipelines = library, pipelines
        self._on_device = DeviceWeights(pipelines.device, data, library.tensors)
        self._finalizer = weakref.finalize(self, _free, self._idle, self._on_device)

    @property
    def library(self) -> VulkanLibrary:
        return self._library

    def record(self, program: Program, state: State | None) -> Recording:
        recording = Recording(self._pipelines, program, self._on_device, _buffer(state))
        self._pipelines.save()
        return recording

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
            self.fail(code, function, call, state)
        seconds = np.zeros((len(self.library.calls[function]), 2), np.float64)
        for place, index in enumerate(recording.calls):
            seconds[index] = times[place], times[place + 1]
        return seconds, np.zeros((len(seconds), 1, 2), np.float64)


def _buffer(state: State | None) -> Buffer | None:
    """The state's memory on the device."""
    memory = None if state is None else state.memory
    return memory.buffer if isinstance(memory, DeviceState) else None


def _free(idle: Idle[Recording], weights: DeviceWeights) -> None:
    idle.drop()
    weights.free()
