"""The base of a generated `Model`: checked calls, state, taps."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy.typing as npt

from .arguments import check_names, flatten
from .function import Arguments, Function
from .kernels import Session, StreamSession
from .opened import OpenedPackage
from .profile import Event
from .state import State
from .taps import Taken, check_path
from .weights import Weights, read_state

Array = npt.NDArray[Any]


class Package(OpenedPackage):
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
