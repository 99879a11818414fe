"""The base of a generated `Model`: loading, checked calls, weights, taps."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn, SupportsIndex, cast

import numpy.typing as npt

from .arguments import check_names, flatten
from .devices import (
    DEVICE_FAULTS,
    TargetDevices,
    machine_devices,
    none_opened,
    open_device,
    runnable,
    target_of,
    wanted_devices,
)
from .errors import DamagedError, WeightsError
from .function import Arguments, Function
from .kernels import PlainCall, Session, StreamSession
from .manifest import check_files, check_own_weights, for_target, functions_of, read_manifest
from .plans import TargetPlan
from .processors import checked_threads
from .profile import Event, Rates
from .random import Random
from .state import State
from .taps import Taken, check_path
from .weights import (
    Weights,
    is_prepared,
    map_prepared,
    own_weights,
    prepare_file,
    prepare_state,
    read_constants,
    read_state,
    write_prepared,
)

Array = npt.NDArray[Any]


class Package(TargetPlan):
    """A model: call it with arrays, get arrays.

    A model that keeps state (`model.state`) runs one call at a time; `model.session()` gives another owner of
    state over the same weights, and different sessions run at once. Without state, any number of calls do.

    Args:
        weights: None for the package's own; a safetensors file or a mapping with PyTorch's state_dict names.
        threads: how many threads a call may use; by default all processors that this process may use.
        device: one of the package's targets, such as "cpu", or a device of it, such as "vulkan:1"; by default
            the best of the first target. Of a list, the first that can run the model is taken, with a warning
            if that is not the first of all.
        seed: of the random numbers, for a model that draws some; 0 by default.
        native: False runs `forward` kernel by kernel instead of the native plan; the bits are the same.
        verify: also hash the weights, which reads the whole file.

    Raises:
        ValueError: the package has no kernels for a device; the text lists what it and this machine have.
        PackageError: the package is damaged or cannot run on this machine, or on that device.
        WeightsError: the weights do not fit.
    """

    folder: ClassVar[Path]
    # What is different from target to target, if there are several; else the model has it itself.
    plans: ClassVar[Mapping[str, type[TargetPlan]]] = {}

    def __init__(
        self,
        weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        *,
        threads: int | None = None,
        device: str | Sequence[str] | None = None,
        seed: int | None = None,
        native: bool = True,
        verify: bool = False,
    ) -> None:
        package = read_manifest(self.folder)
        check_files(self.folder, package, lambda file: file.suffix == ".py")
        self._threads = checked_threads(threads)
        self.native = native
        self._random = Random() if package["rng"] else None
        if seed is not None:
            self.seed(seed)
        self._loading = threading.Lock()
        if verify:
            check_files(self.folder, package, lambda file: True)
        self.passed_over: dict[str, str] = {}
        devices = wanted_devices(self.folder, package, device)
        for name in devices:
            try:
                self._start(package, name, weights, verify)
                break
            except (DamagedError, WeightsError):
                raise
            except DEVICE_FAULTS as error:
                if len(devices) == 1:
                    raise
                self.passed_over[name] = str(error)
        else:
            raise none_opened(self.passed_over)
        if self.passed_over:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.passed_over.items())
            warnings.warn(f"running on {self.device}; {why}", RuntimeWarning, stacklevel=2)

    def _start(
        self,
        package: Mapping[str, Any],
        device: str,
        weights: str | os.PathLike[str] | Mapping[str, Any] | None,
        verify: bool,
    ) -> None:
        """Open a device, and bring the weights there."""
        target = target_of(device)
        self.manifest = for_target(package, target)
        self._target_plan = self.plans[target]() if self.plans else None
        opened = open_device(self.folder, self.manifest, device)
        self.device, self.isa, self._library = opened.name, opened.isa, opened.library
        self._hardware = opened.hardware
        entries = functions_of(self.manifest)
        self._functions = {
            name: Function(name, index, entries[name]) for index, name in enumerate(self._library.functions)
        }
        self._main = self._functions[self.manifest["function"]]
        self._session: Session | None = None
        self._plain: Mapping[str | None, PlainCall] = {}
        self._state: State | None = None
        if weights is not None:
            self._load(weights, None)
            return
        path = own_weights(self.folder, self.manifest)
        if verify and path.parent != self.folder:
            check_own_weights(path, self.manifest)
        self._open(*map_prepared(path, self.manifest["weights"]))

    def __repr__(self) -> str:
        passed = "".join(f"; not on {name}: {why}" for name, why in self.passed_over.items())
        return (
            f"<{type(self).__name__} of {self.manifest['name']} on {self.device} ({self.hardware}){passed}>"
        )

    @classmethod
    def runnable_isas(cls, device: str | None = None) -> list[str]:
        """The instruction sets, or variants, of a target that this machine runs, best first.

        Args:
            device: by default the first target of the package.

        Raises:
            ValueError: the package has no kernels for the device.
            PackageError: the package is for other machines, or damaged.
        """
        manifest = read_manifest(cls.folder)
        (name,) = wanted_devices(cls.folder, manifest, device)
        return runnable(cls.folder, manifest, name)

    @classmethod
    def devices(cls) -> list[TargetDevices]:
        """Every target of the package, the default one first, with the devices that this machine has for it.

        Whether one has all that the kernels need is known when it is opened.

        Raises:
            PackageError: the package is damaged.
        """
        return machine_devices(cls.folder)

    # --- running ------------------------------------------------------------------------------------------
    # The generated model adds, per function, the typed call, its plan kernel by kernel, and `_bind` for taps.

    def infer(self, *inputs: Any, function: str | None = None, stream: Any = None) -> tuple[Array, ...]:
        """The flat outputs for the flat inputs of a function, by default of the main one; the state moves on.

        On a device that has streams, with a `stream` or with inputs on the device, the outputs are there, and
        the call does not wait for them.

        Raises:
            TypeError, ValueError: an input that does not fit the signature, or a stream where there are none.
            IndexError: an index (of an embedding, a gather) is out of bounds.
            ZeroDivisionError: integers were divided by zero.
        """
        plain = self._plain.get(function)
        if plain is not None and self.native and stream is None:
            return plain(inputs)
        callee = self._function(function)
        running = self._running()
        if stream is not None or (running.has_streams and cast(StreamSession, running).takes(inputs)):
            return self._infer_on_device(callee, running, inputs, stream)
        call = self._take(callee, inputs)
        if not self._keeps_state:
            outputs = self._run(callee, self._running(), self._owned(), call)
        else:
            with self._owned().turn() as state:
                outputs = self._run(callee, self._running(), state, call)
        if callee.gives_bfloat16:
            return tuple(spec.give(array) for spec, array in zip(callee.outputs, outputs, strict=True))
        return outputs

    def _infer_on_device(
        self, callee: Function, session: Session, inputs: Sequence[Any], stream: Any
    ) -> tuple[Array, ...]:
        if not session.has_streams:
            raise TypeError(f"stream: {self.device} has none")
        if not self.native:
            raise TypeError("kernel by kernel a model takes arrays in CPU memory, and no stream")
        draws = self._random is not None and callee.entry["random"]
        more = [self._random.next()] if self._random is not None and draws else []
        there = cast(StreamSession, session)
        if not self._keeps_state:
            return there.run_on_device(callee, None, inputs, more, stream)
        with self._owned().turn() as state:
            return there.run_on_device(callee, state, inputs, more, stream)

    def _take(self, callee: Function, inputs: Iterable[Any]) -> Arguments:
        """The arguments of a call: the checked inputs, and the random generator's state if it draws."""
        call = callee.take(inputs)
        if self._random is not None and callee.entry["random"]:
            call.arrays.append(self._random.next())
        return call

    def seed(self, seed: int) -> None:
        """Start the sequence of random numbers anew: the n-th call after it gives the same for the same seed.

        Raises:
            ValueError: the model draws no random numbers.
        """
        if self._random is None:
            raise ValueError("this model draws no random numbers: there is nothing to seed")
        self._random = Random(seed)

    def _run(self, callee: Function, session: Session, state: State, call: Arguments) -> tuple[Array, ...]:
        if not self.native:
            return self._step_by_step(callee, session, state, call)
        outputs = tuple([spec.allocate(call.sizes) for spec in callee.outputs])
        session.run(callee.index, state, [*call.arrays, *outputs], call.symbols)
        return outputs

    def _step_by_step(
        self,
        callee: Function,
        session: Session,
        state: State,
        call: Arguments,
        tape: list[tuple[Array, ...]] | None = None,
    ) -> tuple[Array, ...]:
        kernels = self._plan.kernels(session, tape, call.sizes, call.symbols, function=callee.name)
        cells = [state.cells] if self._keeps_state else []
        run: Callable[..., tuple[Array, ...]] = getattr(self._plan, callee.plan)
        state.memory.fetch()
        try:
            return run(kernels, Weights(session.weights), *cells, *call.arrays)
        except Exception as error:
            if kernels.changed:
                state.lose(str(error))
            raise
        finally:
            state.memory.store()

    @property
    def _plan(self) -> TargetPlan:
        return self._target_plan or self

    @cached_property
    def _keeps_state(self) -> bool:
        return bool(self.manifest["state"]["buffers"])

    def _function(self, name: str | None) -> Function:
        if name is None:
            return self._main
        if name not in self._functions:
            raise ValueError(f"function: there is no {name!r}; known: {', '.join(self._functions)}")
        return self._functions[name]

    @property
    def functions(self) -> list[str]:
        """The names of the model's functions; `forward` is what calling the model runs."""
        return list(self._functions)

    def flatten(self, arguments: Mapping[str, Any], function: str | None = None) -> list[Any]:
        """The flat inputs of nested arguments, in order; wrong nesting is a TypeError or ValueError."""
        callee = self._function(function)
        flat: list[Any] = [None] * len(callee.inputs)
        structures: Mapping[str, Any] = callee.entry["arguments"]
        check_names("arguments", structures, arguments)
        for name, value in arguments.items():
            flatten(structures[name], value, name, flat.__setitem__)
        return flat

    def profile(self, *inputs: Any, function: str | None = None) -> list[tuple[str, float]]:
        """One native run on flat inputs: (kernel, seconds) of every call, in order.

        The state stays as it is.
        """
        return [
            (event.kernel, event.end - event.start) for event in self.timeline(*inputs, function=function)
        ]

    def measure_rates(self) -> Rates | None:
        """What this machine can do with the threads of this model, to compare `profile` with; None if that is
        not known."""
        return self._library.measure_rates(self.threads)

    def timeline(self, *inputs: Any, function: str | None = None) -> list[Event]:
        """As `profile`: when every call starts and ends, on which threads, and the source line that it comes
        from."""
        callee = self._function(function)
        session = self._running()
        state = self._owned().copy(session.weights)
        call = self._take(callee, inputs)
        outputs = [spec.allocate(call.sizes) for spec in callee.outputs]
        seconds, lanes = session.run_timed(
            callee.index, state, call.arrays, outputs, call.symbols, self.threads
        )
        sources = self._library.sources(callee.index)
        kernels = self._library.calls[callee.index]
        named = zip(kernels, seconds.tolist(), sources, lanes.tolist(), strict=True)
        return [
            Event(kernel, start, end, source, {n: (*lane,) for n, lane in enumerate(helped) if lane[1]})
            for kernel, (start, end), source, helped in named
        ]

    # --- state --------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What calls leave for later ones: the buffers that PyTorch's forward writes, by their names there.

        `model.state["k_cache"]` is a copy, assigning to it sets that buffer. See also `load_state`, `reset`
        and `session`.
        """
        return self._owned()

    def load_state(self, state: str | os.PathLike[str] | Mapping[str, Any]) -> None:
        """Set all of the state, from a mapping (`dict(model.state)` is one) or a safetensors file.

        Raises:
            TypeError, ValueError: a name that is missing or unknown, or a value that does not fit; nothing
                changes then.
        """
        self._owned().replace(read_state(state))

    def reset(self) -> None:
        """The state as it was before the first call: PyTorch's buffers as the weights hold them."""
        self._owned().reset(self._running().weights)

    def session(self) -> Any:
        """A model of its own with the initial state and seed, over the same library, weights and threads.

        What is done to one (calls, `load_state`, `load_weights`, `close`) is not seen by the other.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._state = self._initial_state(self._running().weights)
        other._random = self._random and self._random.copy()
        other._loading = threading.Lock()
        return other

    def _owned(self) -> State:
        state = self._state
        if state is None:
            raise RuntimeError("the model is closed")
        return state

    def _initial_state(self, weights: Mapping[str, Array]) -> State:
        described = self.manifest["state"]
        return State(described["buffers"], described["bytes"], weights, self._library.allocate_state)

    # --- weights ------------------------------------------------------------------------------------------

    def load_weights(self, weights: str | os.PathLike[str] | Mapping[str, Any], strict: bool = True) -> None:
        """Use other weights, given by PyTorch's state_dict names. Running calls finish on the old ones.

        A file that was made with a wheel has them in the layout of the kernels: it is mapped, not copied.

        The state starts again, from the buffers among the weights. With `strict=False` unexpected keys are
        ignored and missing ones keep their values.

        Raises:
            WeightsError: lists every missing, unexpected and mismatched key; the old weights stay.
            RuntimeError: the model is closed.
        """
        with self._loading:  # two at once would hold three copies, and one could lose what the other set
            current = self._running().weights
            self._load(weights, None if strict else current)

    def _load(
        self, weights: str | os.PathLike[str] | Mapping[str, Any], current: Mapping[str, Array] | None
    ) -> None:
        """Without `current`, where missing keys are found, there must be exactly the keys that are needed."""
        layout = self.manifest["weights"]
        if isinstance(weights, str | os.PathLike) and is_prepared(Path(weights)):
            self._open(*map_prepared(Path(weights), layout))
        else:
            state = read_state(weights)
            self._open(
                *prepare_state(
                    state, layout, self._plan.prepare, read_constants(self.folder, self.manifest), current
                )
            )

    def _open(self, data: Array, weights: Weights) -> None:
        # One assignment swaps them: a running call holds the session that it started with.
        session = self._library.session(data, weights, self._threads)
        # Tensors on the device take another way.
        plain = {} if self._keeps_state or session.has_streams else self._plain_calls(session)
        if self._state is None:
            self._session, self._plain, self._state = session, plain, self._initial_state(weights)
        else:
            with self._state.turn(lost=True) as state:
                self._session, self._plain = session, plain
                state.reset(weights)
        session.set_threads(self._threads)  # which may have been set while this one was made

    def save_prepared(self, path: str | os.PathLike[str]) -> None:
        """Write the weights in the layout of the kernels: a file that `Model(weights=)` maps on this device.

        Raises:
            OSError: the file cannot be written.
        """
        write_prepared(path, [(self.manifest["weights"], self._running().weights)])

    @classmethod
    def prepare_file(
        cls, weights: str | os.PathLike[str] | Mapping[str, Any], path: str | os.PathLike[str]
    ) -> None:
        """Write PyTorch's weights in the layouts of all targets: a file that C programs open, and that
        `Model(weights=)` maps on every device. No device is needed to make it.

        Raises:
            WeightsError: lists every missing, unexpected and mismatched key.
            OSError: the file cannot be written.
        """
        package = read_manifest(cls.folder)
        check_files(cls.folder, package, lambda file: file.suffix == ".py")
        plans = {target: cls.plans.get(target, cls).prepare for target in package["targets"]}
        prepare_file(cls.folder, package, plans, weights, path)

    def _plain_calls(self, session: Session) -> Mapping[str | None, PlainCall]:
        """Calls of the functions that need nothing but their inputs checked; None stands for the main one."""
        plain = [callee for callee in self._functions.values() if callee.is_plain]
        calls: dict[str | None, PlainCall] = {
            callee.name: session.plain_call(callee.index, callee.inputs, callee.outputs) for callee in plain
        }
        return {**calls, None: calls[self._main.name]} if self._main.is_plain else calls

    # --- intermediate values ------------------------------------------------------------------------------

    @property
    def taps(self) -> list[str]:
        """The PyTorch module paths whose outputs are values of their own, sorted; of the main function."""
        return self.taps_of(self._main.name)

    def taps_of(self, function: str) -> list[str]:
        """The module paths that `tap(path, function)` takes, sorted."""
        return sorted(self._function(function).entry["taps"])

    def tap(self, path: str, function: str | None = None) -> Callable[..., Array]:
        """A function of the model's arguments that returns the output of the PyTorch module at `path`.

        It runs on a copy of the state, which stays as it is.

        Raises:
            TapError: there is no such value; the text names the nearest one that exists.
        """
        callee = self._function(function)
        check_path(path, callee.entry)

        def run(*args: Any, **kwargs: Any) -> Array:
            (value,) = self.tap_values([path], getattr(self, callee.bind)(*args, **kwargs), callee.name)
            return value

        return run

    def tap_values(
        self, paths: Sequence[str], inputs: Sequence[Any], function: str | None = None
    ) -> list[Array]:
        """The outputs of the modules at `paths` (members of `taps`) for flat inputs, from one run.

        It runs on a copy of the state, which stays as it is.
        """
        callee = self._function(function)
        session = self._running()
        call = self._take(callee, inputs)
        tape: list[tuple[Array, ...]] = []
        state = self._owned().copy(session.weights)
        state.memory.fetch()
        before = {name: array.copy() for name, array in state.cells.items()}
        self._step_by_step(callee, session, state, call, tape)
        taken = Taken(tape, call.arrays, call.sizes, session.weights, before)
        return [taken.value(callee.entry["taps"][path]) for path in paths]

    # --- resources ----------------------------------------------------------------------------------------

    @property
    def hardware(self) -> str:
        """What the model runs on, in words."""
        return self._hardware or f"{self.isa}, {self.threads} threads"

    @property
    def threads(self) -> int:
        """How many threads a call may use; may be set at any time."""
        return self._threads

    @threads.setter
    def threads(self, count: int | None) -> None:
        self._threads = checked_threads(count)
        if self._session is not None:
            self._session.set_threads(self._threads)

    def close(self) -> None:
        """Give the memory back; later calls raise RuntimeError. Calls and loads that are running finish."""
        with self._loading:
            self._session = self._state = None
            self._plain = {}

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        raise TypeError(
            "a model holds native memory and is neither copied nor pickled: make one in every process that "
            "uses it (they share the memory of the weights file), or take model.session()"
        )

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _running(self) -> Session:
        session = self._session
        if session is None:
            raise RuntimeError("the model is closed")
        return session
