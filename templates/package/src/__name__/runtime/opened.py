"""A package that is open on a device: its functions, weights and threads."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn, SupportsIndex

import numpy.typing as npt

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
from .function import Function
from .kernels import PlainCall, Session
from .manifest import check_files, check_own_weights, for_target, functions_of, read_manifest
from .plans import TargetPlan
from .processors import checked_threads
from .profile import Rates
from .random import Random
from .state import State
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


class OpenedPackage(TargetPlan):
    """What is open while a model is: its device's library, its functions, its weights, and its own state.

    `Package` adds the calls, and says what the arguments are.
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
        self.passed_over.update(opened.passed_over)
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
        """The instruction sets, or variants, of its target that a device runs, best first.

        Args:
            device: as of the model; by default the best of the package's first target.

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

    @property
    def _plan(self) -> TargetPlan:
        return self._target_plan or self

    @cached_property
    def _keeps_state(self) -> bool:
        return bool(self.manifest["state"]["buffers"])

    def seed(self, seed: int) -> None:
        """Start the sequence of random numbers anew: the n-th call after it gives the same for the same seed.

        Raises:
            ValueError: the model draws no random numbers.
        """
        if self._random is None:
            raise ValueError("this model draws no random numbers: there is nothing to seed")
        self._random = Random(seed)

    def measure_rates(self) -> Rates | None:
        """What this machine can do with the threads of this model, to compare `profile` with; None if that is
        not known."""
        return self._library.measure_rates(self.threads)

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

    def _owned(self) -> State:
        state = self._state
        if state is None:
            raise RuntimeError("the model is closed")
        return state

    def _initial_state(self, weights: Mapping[str, Array]) -> State:
        described = self.manifest["state"]
        return State(described["buffers"], described["bytes"], weights, self._library.allocate_state)

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
