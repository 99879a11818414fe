"""Calls on a GPU, recorded once for given sizes and replayed: what sessions of all kinds of GPU share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from .arguments import TensorSpec
from .errors import PackageError
from .idle import Idle, Waiting
from .kernels import Library, PlainCall
from .launch_list import ALIGNMENT, LaunchList
from .launches import Program
from .state import State

Array = npt.NDArray[Any]
# What a kernel writes into its status word (the CPU's kernels do as well, but for the last).
STATUS_INDEX, STATUS_SINGULAR, STATUS_DIVISION, STATUS_TURNS = 1, 2, 3, 4


class Replay(Waiting, Protocol):
    """A program with memory of its own. One thread at a time runs it."""

    def run(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> tuple[int, int]:
        """Replay; `outputs` are filled. (0, -1), or what a kernel reports of data that do not fit, and its
        call."""


class ReplayLibrary(Library, Protocol):
    list: LaunchList


R = TypeVar("R", bound=Replay)
T = TypeVar("T")


class ReplaySession(ABC, Generic[R]):
    """The model over one set of weights. Whoever runs it holds a reference; the last one frees it."""

    has_streams = False

    def __init__(self, library: ReplayLibrary, weights: Mapping[str, Array]) -> None:
        self.list, self.weights = library.list, weights
        self._idle: Idle[R] = Idle()

    @property
    @abstractmethod
    def library(self) -> ReplayLibrary: ...

    @abstractmethod
    def record(self, program: Program, state: State | None) -> R:
        """A new recording. Raises MemoryError where the device has too little memory."""

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
            IndexError, ZeroDivisionError, RuntimeError: the data do not fit; or what a recording raises.
        """
        key = (function, symbols)
        recording = self._idle.take(key, state)
        if recording is None:
            program = self.list.program(function, self.list.sizes(symbols))
            recording = self.made(partial(self.record, program, state))
        self._replay(key, recording, function, state, buffers)

    def call(self, function: int, index: int, buffers: Sequence[Array], symbols: bytes | None = None) -> None:
        """One call of a function on arrays of the caller's. Raises as `run` does."""
        key = (function, symbols, f"call {index}")
        recording = self._idle.take(key, None)
        if recording is None:
            program = self.list.single(function, index, self.list.sizes(symbols))
            recording = self.made(partial(self.record, program, None))
        # In place, the output's old content is an input too.
        given = buffers[: len(recording.program.inputs)]
        results = buffers[len(buffers) - len(recording.program.outputs) :]
        self._replay(key, recording, function, None, [*given, *results])

    def _replay(
        self, key: object, recording: R, function: int, state: State | None, buffers: Sequence[Array]
    ) -> None:
        count = len(recording.program.inputs)
        try:
            code, call = recording.run(buffers[:count], buffers[count:])
        except BaseException:
            if state is not None and self.list.writes_state(function):
                state.lose("the device failed")
            recording.free()
            raise
        self._idle.give_back(key, recording, state)
        if code:
            self.fail(code, function, call, state)

    def plain_call(
        self, function: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> PlainCall:
        """A function of the inputs of a function without state and without sizes that vary. Raises as `run`
        does, and TypeError or ValueError for an input that does not fit."""
        count, name = len(inputs), self.list.functions[function]

        def call(values: Sequence[Any]) -> tuple[Array, ...]:
            if len(values) != count:
                raise TypeError(f"{name}: expected {count} arrays, got {len(values)}")
            taken = [*map(TensorSpec.take, inputs, values)]
            results = (*map(TensorSpec.allocate, outputs),)
            self.run(function, None, [*taken, *results])
            return results

        return call

    def made(self, make: Callable[[], T]) -> T:
        """What `make` makes; recordings that wait are given up where there is too little memory for it."""
        try:
            return make()
        except MemoryError:
            if not self._idle.drop():
                raise
        return make()

    def fail(self, code: int, function: int, call: int, state: State | None) -> None:
        """Raises the exception for what a kernel reports; a state that was half-written is lost."""
        where = f"in kernel {self.list.calls[function][call]} ({self.list.sources(function)[call]})"
        what = {
            STATUS_SINGULAR: "a matrix is singular, not positive definite or not finite",
            STATUS_DIVISION: "integer division by zero",
            STATUS_TURNS: "loops of more turns than this driver allows a shader (65,535)",
        }.get(code, "index out of bounds")
        text = f"{what} {where}"
        if state is not None and self.list.writes_state(function):
            state.lose(text)
        if code == STATUS_DIVISION:
            raise ZeroDivisionError(text)
        if code == STATUS_TURNS:
            raise PackageError(text)
        raise RuntimeError(text) if code == STATUS_SINGULAR else IndexError(text)


def status_words(host: Array, program: Program) -> Array:
    """int32[checked calls]: the status words in the bytes that the host exchanges with the device."""
    status = program.status
    words = host[status.offset : status.offset + status.nbytes].view(np.int32)
    return words[:: ALIGNMENT // words.itemsize]


def reported(words: Array, program: Program) -> tuple[int, int]:
    """(0, -1), or the first word that is not 0, and its call."""
    if words.any():
        first = int(np.flatnonzero(words)[0])
        return int(words[first]), program.checked[first]
    return 0, -1
