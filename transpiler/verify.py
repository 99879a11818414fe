"""Records what PyTorch computes, measures our error against it, and runs the generated tests.

PyTorch is reached only through the two callables that `record` is given; nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from transpiler.cases import DRAWS, Argument, Drawn, Inputs, State, draw_inputs, draw_state
from transpiler.checks import Expected, comparable, compare, is_float, part_norms, same_kind, tolerance_of
from transpiler.draw import Array, numpy_dtype, sample_positions, seed_of
from transpiler.errors import TranspileError
from transpiler.testing import TestReport, run_generated_tests

__all__ = [
    "Argument", "CaseError", "OutputSpec", "Recorded", "Recording", "Reload", "Taps", "TestReport",
    "draw_inputs", "expect", "measure", "record", "run_generated_tests", "worst_errors",
]  # fmt: skip

# Outputs of up to WHOLE elements are kept whole; of larger ones a sample, and the norms of all their parts.
WHOLE = 65536
SAMPLE = 16384
PARTS = 256
TAP_SAMPLE = 64


class Eager(Protocol):
    """The user's own module in its own precision; `weights` replaces its state_dict for this call."""

    def __call__(self, flat_inputs: Sequence[Array], *, weights: Mapping[str, Array] | None) -> Sequence[Array]: ...


class Reference(Protocol):
    """The exported graph, in float64 if `double`; also returns the FX values named in `capture_values`."""

    def __call__(
        self,
        flat_inputs: Sequence[Array],
        *,
        double: bool,
        capture_values: Sequence[str],
        weights: Mapping[str, Array] | None,
    ) -> tuple[Sequence[Array], Mapping[str, Array]]: ...


@dataclass(frozen=True)
class OutputSpec:
    """A flat output."""

    name: str
    dtype: str


@dataclass(frozen=True)
class Recorded:
    """PyTorch's outputs for one case's inputs."""

    drawn: Drawn
    outputs: tuple[Expected, ...]

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
    """Everything the generated tests compare with; `dropped` says which cases PyTorch refuses, and why."""

    arguments: tuple[Argument, ...]
    inputs: Inputs
    cases: tuple[Recorded, ...]
    reload: Reload | None = None
    taps: Taps | None = None
    dropped: tuple[str, ...] = ()


def expect(name: str, dtype: str, torch: Array, float64: Array, *, whole: int, sample: int, parts: int) -> Expected:
    """What to keep of a tensor: all of it up to `whole` elements, else `sample` of them and `parts` norms."""
    torch = np.asarray(torch, dtype=numpy_dtype(dtype))
    double = np.asarray(float64, dtype=np.float64 if is_float(dtype) else torch.dtype)
    if torch.shape != double.shape:
        raise ValueError(f"{name}: PyTorch gives shape {torch.shape}, its float64 graph {double.shape}")
    with np.errstate(all="ignore"):
        usable = comparable(torch, double)
        tolerance = tolerance_of(torch, double, dtype)
        excluded = int(np.count_nonzero(~usable & ~same_kind(torch, double)))
        flat, flat64 = torch.reshape(-1), double.reshape(-1)
        positions = norms = requested = None
        if torch.size > whole:
            requested = sample
            positions = sample_positions(seed_of(name), torch.size, sample)
            norms = part_norms(double, usable, parts)
            flat, flat64 = flat[positions], flat64[positions]
    return Expected(
        name, dtype, torch.shape, flat.copy(), flat64.copy(), tolerance, excluded, positions, norms, requested
    )


def _expect_output(spec: OutputSpec, torch: Array, float64: Array) -> Expected:
    return expect(spec.name, spec.dtype, torch, float64, whole=WHOLE, sample=SAMPLE, parts=PARTS)


def record(
    arguments: Sequence[Argument],
    examples: Sequence[Array],
    outputs: Sequence[OutputSpec],
    *,
    eager: Eager,
    reference: Reference,
    state: Mapping[str, Array],
    aliases: Mapping[str, str] | None = None,
    taps: Mapping[str, str] | None = None,
    draws: int = DRAWS,
    sizes: Sequence[tuple[str, Mapping[str, int]]] = (),
) -> Recording:
    """Run PyTorch on every case.

    Args:
        eager, reference: `functools.partial(run_eager, captured)` and the same of `run_reference`.
        state: the model's state_dict; `aliases` maps tied keys to the key that stores the tensor.
        taps: module path -> name of the FX value that is its output.
        sizes: names and values of the sizes that vary, a case each.

    Raises:
        TranspileError: "dynamic-shape": the graph that was traced is not the module at some size.
        Exception: whatever PyTorch raises for the user's own example. A drawn case that it refuses is
        dropped.
    """
    inputs = draw_inputs(arguments, examples, draws, sizes)
    cases: list[Recorded] = []
    dropped: list[str] = []
    at = dict(sizes)
    for drawn in inputs.cases:
        try:
            if drawn.resized:
                _check_traced(drawn, at[drawn.name], eager, reference)
            cases.append(Recorded(drawn, _outputs(outputs, drawn.arrays, eager, reference, None)))
        except Exception as error:
            if drawn.name == "example" or isinstance(error, TranspileError):
                raise
            dropped.append(f"{drawn.name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    # A drawn case shows more than an example that may be all zeros.
    chosen = next((case for case in cases if case.name.startswith("drawn")), cases[0])
    return Recording(
        tuple(arguments),
        inputs,
        tuple(cases),
        _reload(outputs, chosen, eager, reference, draw_state(state, aliases or {})) if state else None,
        _taps(chosen.drawn, reference, taps) if taps else None,
        tuple(dropped),
    )


def _outputs(
    specs: Sequence[OutputSpec],
    inputs: Sequence[Array],
    eager: Eager,
    reference: Reference,
    state: Mapping[str, Array] | None,
) -> tuple[Expected, ...]:
    torch = eager([array.copy() for array in inputs], weights=state)
    double, _ = reference([array.copy() for array in inputs], double=True, capture_values=(), weights=state)
    return tuple(_expect_output(*item) for item in zip(specs, torch, double, strict=True))


def _check_traced(drawn: Drawn, sizes: Mapping[str, int], eager: Eager, reference: Reference) -> None:
    """Whether the traced graph does at other sizes what the module does: torch.export may have fixed a branch.

    Raises:
        TranspileError: "dynamic-shape".
    """
    where = ", ".join(f"{name} = {value}" for name, value in sizes.items())
    wanted = eager([array.copy() for array in drawn.arrays], weights=None)
    try:
        got, _ = reference([array.copy() for array in drawn.arrays], double=False, capture_values=(), weights=None)
        reason = "" if all(map(_alike, wanted, got)) else "its results differ"
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if reason:
        raise TranspileError(
            "dynamic-shape",
            f"The traced model is not the model at {where}: {reason}",
            notes=["torch.export traced it at the sizes of the example inputs, and fixed what depends on them"],
            hints=["narrow the bounds, as in --dynamic x.0=batch:2..64, or avoid branches on sizes in forward"],
        )


def _alike(wanted: Array, got: Array) -> bool:
    """Equal but for rounding: a wrong branch shows in the first digits."""
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return False
    if not is_float(wanted.dtype.name):
        return True  # a tie of an argmax may fall either way
    scale = float(np.max(np.abs(wanted[np.isfinite(wanted)]), initial=0.0))
    return bool(np.allclose(wanted, got, rtol=1e-2, atol=1e-2 * scale, equal_nan=True))


def _reload(
    specs: Sequence[OutputSpec], case: Recorded, eager: Eager, reference: Reference, state: State
) -> Reload | None:
    outputs = _outputs(specs, case.drawn.arrays, eager, reference, state.arrays())
    changed = any(
        not np.array_equal(new.torch, old.torch, equal_nan=new.torch.dtype.kind == "f")
        for new, old in zip(outputs, case.outputs, strict=True)
    )
    note = ""
    if not changed:
        note = "the new weights give the same outputs"
    elif not all(np.isfinite(item.torch).all() for item in outputs if is_float(item.dtype)):
        note = "some outputs are not finite with the new weights"
    return Reload(case.name, state, outputs, changed, note)


def _taps(drawn: Drawn, reference: Reference, taps: Mapping[str, str]) -> Taps:
    names = sorted(set(taps.values()))
    inputs = [array.copy() for array in drawn.arrays]
    _, single = reference(inputs, double=False, capture_values=names, weights=None)
    _, double = reference([array.copy() for array in drawn.arrays], double=True, capture_values=names, weights=None)
    values = {
        path: expect(path, single[fx].dtype.name, single[fx], double[fx], whole=TAP_SAMPLE, sample=TAP_SAMPLE, parts=1)
        for path, fx in sorted(taps.items())
        if fx in single and fx in double
    }
    return Taps(drawn.name, values)


# --- measuring ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaseError:
    """The largest error of one output in one case; `message` is set if it is not PyTorch's."""

    output: str
    case: str
    max_abs_error: float
    tolerance: float
    excluded: int
    message: str = ""


def measure(recording: Recording, run: Callable[[Sequence[Array]], Sequence[Array]]) -> tuple[CaseError, ...]:
    """Run the built package (flat inputs to flat outputs) on every case and compare."""
    errors: list[CaseError] = []
    for case in recording.cases:
        got = run([array.copy() for array in case.drawn.arrays])
        for expected, array in zip(case.outputs, got, strict=True):
            found = compare(expected, array, f"case {case.name!r}")
            errors.append(
                CaseError(
                    expected.name,
                    case.name,
                    found.max_error,
                    expected.tolerance,
                    expected.excluded,
                    found.message,
                )
            )
    return tuple(errors)


def worst_errors(errors: Sequence[CaseError]) -> dict[str, CaseError]:
    """Per output the case that comes closest to its tolerance."""
    worst: dict[str, CaseError] = {}
    for error in errors:
        best = worst.get(error.output)
        if best is None or _ratio(error) > _ratio(best):
            worst[error.output] = error
    return worst


def _ratio(error: CaseError) -> float:
    if error.max_abs_error == 0:
        return 0.0
    return error.max_abs_error / error.tolerance if error.tolerance else float("inf")
