"""The kernels of a package on a CUDA device, as a model sees them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import TensorSpec
from ..function import Function
from ..idle import Idle
from ..kernels import OpenedDevice
from ..launch_list import LaunchList
from ..launches import Dispatch, Program
from ..manifest import check_files
from ..profile import Rates
from ..replay import ReplaySession
from ..sizes import Sizes
from ..state import HostMemory, Memory, State
from .arrays import DeviceArray, allocate, handle_of, on_device, take
from .device import choose_variant, list_devices, load_code
from .device import open_device as open_cuda
from .memory import DeviceState, DeviceWeights, shared_weights
from .recording import Recording

Array = npt.NDArray[Any]
NAME, FILE = "cuda", "kernels.fatbin"


def open_device(folder: Path, manifest: Mapping[str, Any], wanted: str | None) -> OpenedDevice:
    """The device `wanted` ("cuda:1"), by default the first. Raises PackageError."""
    kernels = folder / "kernels" / NAME
    check_files(folder, manifest, lambda file: file.parent == kernels)
    library = CudaLibrary(kernels, manifest["isas"], wanted)
    return OpenedDevice(NAME, library.variant, library, library.device.name)


def devices(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The devices that the driver knows, in words. Raises PackageError: there are none."""
    return list_devices()


def runnable(folder: Path, manifest: Mapping[str, Any], wanted: str | None) -> list[str]:
    """The variant of the package's kernels that the device `wanted` runs, by default the first.

    Raises:
        PackageError: there is no such device, or it runs none of them.
    """
    return [choose_variant(open_cuda(wanted), manifest["isas"])]


class CudaLibrary:
    """The kernels of a package on one device."""

    def __init__(self, folder: Path, variants: Sequence[str], wanted: str | None) -> None:
        self.device = open_cuda(wanted)
        self.variant = choose_variant(self.device, variants)
        self.list = LaunchList(folder / f"launches.{self.variant}.json")
        self.functions, self.calls = self.list.functions, self.list.calls
        self.code = load_code(self.device, folder / FILE)

    def sources(self, function: int) -> list[str]:
        """The user's source line of every call."""
        return self.list.sources(function)

    def measure_rates(self, threads: int) -> Rates | None:
        """None: what a GPU can do is not measured."""
        return None

    def session(self, data: Array, weights: Mapping[str, Array], threads: int) -> CudaSession:
        """The model with these weights; `threads` is for processors."""
        return CudaSession(self, data, weights)

    def allocate_state(self, nbytes: int) -> Memory:
        return DeviceState(self.device, nbytes) if nbytes else HostMemory(0)


class CudaSession(ReplaySession[Recording]):
    """The model over one set of weights. Whoever runs it holds a reference; the last one frees it."""

    has_streams = True

    def __init__(self, library: CudaLibrary, data: Array, weights: Mapping[str, Array]) -> None:
        super().__init__(library, weights)
        self._library, self.device = library, library.device
        self._on_device: DeviceWeights = shared_weights(
            library.device, data, weights, getattr(weights, "file_key", None)
        )
        self._finalizer = weakref.finalize(self, Idle.drop, self._idle)

    @property
    def library(self) -> CudaLibrary:
        return self._library

    def record(self, program: Program, state: State | None) -> Recording:
        return self._record(program, state, hosted=True)

    def _record(self, program: Program, state: State | None, *, hosted: bool) -> Recording:
        return Recording(self._library.code, program, self._on_device, _memory(state), hosted=hosted)

    # --- tensors on the device ----------------------------------------------------------------------------

    def takes(self, inputs: Sequence[Any]) -> bool:
        """Whether some of the inputs are on a device: then the outputs are, too."""
        return any(map(on_device, inputs))

    def run_on_device(
        self,
        callee: Function,
        state: State | None,
        inputs: Sequence[Any],
        more: Sequence[Array],
        stream: Any,
    ) -> tuple[DeviceArray, ...]:
        """A whole function on arrays of the host and tensors on the device, and `more` arrays behind them;
        the outputs are on the device. It waits for nothing, but where kernels check their data.

        Args:
            stream: of the driver, torch or CuPy; None: the legacy default stream.

        Raises:
            TypeError, ValueError: an input that does not fit, or no stream for a call.
            MemoryError: the device has too little memory; the state is as it was.
            IndexError, ZeroDivisionError, RuntimeError: the data do not fit; or what `Recording` raises.
        """
        if len(inputs) != len(callee.inputs):
            raise TypeError(f"{callee.name}: expected {len(callee.inputs)} arrays, got {len(inputs)}")
        handle = handle_of(stream)
        with self.device.current():
            self.device.check_stream(handle)
        taken = [self._take(spec, value, handle) for spec, value in zip(callee.inputs, inputs, strict=True)]
        sizes = callee.symbols.bind(taken) if callee.symbols.all else {}
        symbols = callee.symbols.packed(sizes) if callee.symbols.all else None
        key = ("on device", callee.index, symbols)
        recording = self._idle.take(key, state)
        if recording is None:
            program = self.list.program(callee.index, self.list.sizes(symbols))
            recording = self.made(partial(self._record, program, state, hosted=False))
        try:
            outputs = self.made(partial(self._outputs, callee, sizes, handle))
        except BaseException:  # nothing has run yet
            self._idle.give_back(key, recording, state)
            raise
        try:
            there = self.device.driver.CUstream(handle)
            code, call = recording.launch([*taken, *more], outputs, there)
        except BaseException:
            if state is not None and self.list.writes_state(callee.index):
                state.lose("the device failed")
            recording.free()
            raise
        self._idle.give_back(key, recording, state)
        if code:
            self.fail(code, callee.index, call, state)
        return tuple(outputs)

    def _outputs(self, callee: Function, sizes: Sizes, stream: int) -> list[DeviceArray]:
        with self.device.current():
            return [
                allocate(self.device, spec.dtype, spec.shape_at(sizes), stream) for spec in callee.outputs
            ]

    def _take(self, spec: TensorSpec, value: Any, stream: int) -> Any:
        if not on_device(value):
            return spec.take(value)
        array = take(self.device, value, spec.name, stream)
        if array.dtype != spec.dtype:
            raise spec.wrong_dtype(array.dtype)
        spec.check_shape(array.shape)
        return array

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
        helpers. Every kernel is launched by itself and waits for the one before."""
        program = self.list.program(function, self.list.sizes(symbols))
        recording = Recording(
            self._library.code, program, self._on_device, _memory(state), hosted=True, graph=False
        )
        try:
            code, call, times = recording.run_timed(inputs, outputs)
        finally:
            recording.free()
        if code:
            self.fail(code, function, call, state)
        seconds = np.zeros((len(self.list.calls[function]), 2), np.float64)
        launched = dict.fromkeys(step.call for step in program.steps if isinstance(step, Dispatch))
        for place, index in enumerate(launched):
            seconds[index] = times[place], times[place + 1]
        return seconds, np.zeros((len(seconds), 1, 2), np.float64)


def _memory(state: State | None) -> DeviceState | None:
    """The state's memory on the device."""
    memory = None if state is None else state.memory
    return memory if isinstance(memory, DeviceState) else None
