"""Measures a built package's error against what was recorded of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transpiler.checks import compare, tolerance_of
from transpiler.draw import Array
from transpiler.recorded import Recording


@dataclass(frozen=True)
class CaseError:
    """The largest error of one output in one case; `message` is set if it is not PyTorch's.

    `roundings` is the part of the tolerance that does not depend on PyTorch's own error. The relative errors are of the
    tensor: see `checks.Comparison`.
    """

    output: str
    case: str
    max_abs_error: float
    tolerance: float
    excluded: int
    message: str = ""
    function: str = "forward"
    roundings: float = 0.0
    max_relative_error: float = 0.0
    rms_relative_error: float = 0.0


def measure(recording: Recording, run: Callable[[Sequence[Array]], Sequence[Array]]) -> tuple[CaseError, ...]:
    """Run the built package (flat inputs to flat outputs and the new state) on every case and compare."""
    errors: list[CaseError] = []
    for case in recording.cases:
        got = run([array.copy() for array in case.drawn.arrays])
        for expected, array in zip((*case.outputs, *case.state), got, strict=True):
            found = compare(expected, array, f"case {case.name!r}")
            errors.append(
                CaseError(
                    expected.name,
                    case.name,
                    found.max_error,
                    expected.tolerance,
                    expected.excluded,
                    found.message,
                    recording.function,
                    tolerance_of(expected.float64, expected.float64, expected.dtype, expected.precision),
                    found.max_relative,
                    found.rms_relative,
                )
            )
    return tuple(errors)


def worst_errors(errors: Sequence[CaseError]) -> dict[str, CaseError]:
    """Per output the case with the largest error for the size of its values, the first of equal ones.

    PyTorch's own error, of which the tolerance has a share, differs between two runs: how much of the tolerance is used
    up would name one case today and another one tomorrow.
    """
    worst: dict[str, CaseError] = {}
    for error in errors:
        best = worst.get(error.output)
        if best is None or _ratio(error) > _ratio(best):
            worst[error.output] = error
    return worst


def _ratio(error: CaseError) -> float:
    if error.max_abs_error == 0:
        return 0.0
    return error.max_abs_error / error.roundings if error.roundings else float("inf")
