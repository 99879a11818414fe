"""What is recorded of PyTorch: how it is called, and the results that the generated tests compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transpiler.cases import Argument, Drawn, Inputs, State
from transpiler.checks import Expected
from transpiler.dims import Dim
from transpiler.draw import Array


class Eager(Protocol):
    """The user's own module in its own precision; `weights` replaces its state_dict for this call.

    If `state` is given (the content of all states by key), the call starts from it, and the new contents, in the order
    of their keys, follow the outputs.
    """

    def __call__(
        self, flat_inputs: Sequence[Array], *, weights: Mapping[str, Array] | None, state: Mapping[str, Array] | None
    ) -> Sequence[Array]: ...


class Reference(Protocol):
    """The exported graph, in float64 if `double`; also returns the FX values named in `capture_values`. `state` is as
    in `Eager`."""

    def __call__(
        self,
        flat_inputs: Sequence[Array],
        *,
        double: bool,
        capture_values: Sequence[str],
        weights: Mapping[str, Array] | None,
        state: Mapping[str, Array] | None,
    ) -> tuple[Sequence[Array], Mapping[str, Array]]: ...


class Rounded(Protocol):
    """The exported graph in float32, with what a lower precision may round rounded to it; as `Reference` else."""

    def __call__(
        self,
        inputs: Sequence[Array],
        /,
        *,
        capture_values: Sequence[str],
        weights: Mapping[str, Array] | None,
        state: Mapping[str, Array] | None,
    ) -> tuple[Sequence[Array], Mapping[str, Array]]: ...


@dataclass(frozen=True)
class Lower:
    """A lower precision than float32: its name, and PyTorch's results in it.

    `shaken(seed)`, of a model that decides by values that may be rounded (an argmax, a comparison), runs it with noise
    of the size of their roundings: where that changes a result, nothing can be said of it.
    """

    precision: str
    run: Rounded
    shaken: Callable[[int], Rounded] | None = None


@dataclass(frozen=True)
class OutputSpec:
    """A flat output."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None = None  # None: whatever PyTorch gives


@dataclass(frozen=True)
class Recorded:
    """PyTorch's outputs for one case's inputs, and the state that a call from the initial one leaves."""

    drawn: Drawn
    outputs: tuple[Expected, ...]
    state: tuple[Expected, ...] = ()

    @property
    def name(self) -> str:
        return self.drawn.name


@dataclass(frozen=True)
class Reload:
    """Outputs with redrawn weights for the inputs of `case`; `note` says why they prove little, if so."""

    case: str
    state: State
    outputs: tuple[Expected, ...]
    changes_outputs: bool
    note: str = ""


@dataclass(frozen=True)
class Taps:
    """Intermediate values by module path, for the inputs of `case`."""

    case: str
    values: Mapping[str, Expected]


@dataclass(frozen=True)
class Recording:
    """Everything the generated tests of a function compare with; `dropped` says which cases PyTorch refuses, and why.

    `state` are the program's states, in the order of their keys. `random`, for a model that draws random numbers: the
    moments of PyTorch's own runs, see `verify.record_random`.
    """

    arguments: tuple[Argument, ...]
    inputs: Inputs
    cases: tuple[Recorded, ...]
    reload: Reload | None = None
    taps: Taps | None = None
    dropped: tuple[str, ...] = ()
    function: str = "forward"
    state: tuple[OutputSpec, ...] = ()
    random: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Step:
    """One call of a sequence: the inputs of a case, PyTorch's outputs and the state after the call."""

    function: str
    case: str
    outputs: tuple[Expected, ...]
    state: tuple[Expected, ...]
