"""What every target gives to a model: its kernels behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from .arguments import TensorSpec
from .function import Function
from .profile import Rates
from .state import Memory, State

Array = npt.NDArray[Any]
PlainCall = Callable[[Sequence[Any]], tuple[Array, ...]]


class Library(Protocol):
    """The kernels of a package on one device. `calls` are the kernels of every function's calls, in order."""

    functions: tuple[str, ...]
    calls: tuple[tuple[str, ...], ...]

    def session(self, data: Array, weights: Mapping[str, Array], threads: int) -> Session:
        """The model with these weights: all of them in `data`, and by name."""

    def allocate_state(self, nbytes: int) -> Memory:
        """Zeros that a state is kept in."""

    def sources(self, function: int) -> list[str]:
        """The user's source line of every call."""

    def measure_rates(self, threads: int) -> Rates | None:
        """What the device can do with so many threads; None where that is not known."""


class Session(Protocol):
    """The model over one set of weights. Whoever runs it holds a reference; the last one frees it.

    `symbols` are the values of sizes that vary, as `Symbols.packed` gives them. `has_streams`: it is a
    `StreamSession`.
    """

    weights: Mapping[str, Array]
    has_streams: bool

    @property
    def library(self) -> Library: ...

    def set_threads(self, threads: int) -> None: ...

    def run(
        self, function: int, state: State | None, buffers: Sequence[Array], symbols: bytes | None = None
    ) -> None:
        """A whole function on its inputs and then its outputs, which it fills; `state`, if it has one, moves
        on."""

    def plain_call(
        self, function: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> PlainCall:
        """The shortest way from arrays to arrays."""

    def run_timed(
        self,
        function: int,
        state: State,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        symbols: bytes | None = None,
        threads: int = 1,
    ) -> tuple[Array, Array]:
        """As `run`; when every call starts and ends, and when the threads that helped did."""

    def call(self, function: int, index: int, buffers: Sequence[Array], symbols: bytes | None = None) -> None:
        """One call of a function on arrays of the caller's."""


class StreamSession(Protocol):
    """A session on a device whose memory and streams other libraries use, too."""

    def takes(self, inputs: Sequence[Any]) -> bool:
        """Whether some of the inputs are tensors there: then the outputs are, too."""

    def run_on_device(
        self, callee: Function, state: State | None, inputs: Sequence[Any], more: Sequence[Array], stream: Any
    ) -> tuple[Any, ...]:
        """A whole function on arrays of the host and tensors on the device, and `more` arrays behind them."""


@dataclass(frozen=True)
class OpenedDevice:
    """A target whose kernels are loaded: its name, the instruction set (or variant) that was chosen, what the
    device calls itself, and better devices that cannot run the package, with the reasons."""

    name: str
    isa: str
    library: Library
    hardware: str = ""
    passed_over: Mapping[str, str] = field(default_factory=dict)


class KernelLibrary:
    """Base of `Kernels`: runs kernels one by one, in the plan's order, for one pass of a function.

    `plans` names the kernel of every call, per function. `tape`, if given, collects the outputs of every
    call. `sizes` are the values of the symbols, which `symbols` holds for the native library.
    """

    plans: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(
        self,
        session: Session,
        tape: list[tuple[Array, ...]] | None = None,
        sizes: Mapping[str, int] | None = None,
        symbols: bytes | None = None,
        *,
        function: str | None = None,
    ) -> None:
        functions = session.library.functions
        self._function = 0 if function is None else functions.index(function)
        self._plan = self.plans[functions[self._function]]
        self._session = session
        self._tape = tape
        self.sizes = sizes or {}
        self._symbols = symbols
        self._position = 0
        self.changed = False  # whether a kernel has run in place

    def launch(
        self,
        kernel: str,
        inputs: tuple[Array, ...],
        outputs: tuple[Array, ...],
        *,
        in_place: bool = False,
    ) -> None:
        """Run `kernel` on arrays of exactly its types; error texts are those of the plan's next call.

        A kernel that runs `in_place` finds the old content in `outputs` and changes a part of it.
        """
        index = self._position
        if index >= len(self._plan) or self._plan[index] != kernel:
            index = self._plan.index(kernel)
        self._position += 1
        arrays = [np.ascontiguousarray(array) for array in inputs]
        self._session.call(self._function, index, arrays + list(outputs), self._symbols)
        self.changed = self.changed or in_place
        if self._tape is not None:
            self._tape.append(outputs)
