"""What is asked of the transpiler, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transpiler.errors import TranspileError, TranspileErrors, UsageError
from transpiler.naming import DEFAULT_VERSION
from transpiler.specs import DynamicSpec, InputSpec

if TYPE_CHECKING:
    from transpiler.measuring import CaseError
    from transpiler.testing import TestReport


Precision = Literal["float32", "tf32", "float16", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "float16", "bfloat16")
Tune = Literal["none", "fast", "full"]
TUNE: tuple[Tune, ...] = ("none", "fast", "full")


@dataclass(frozen=True)
class Request:
    """What to transpile and how. `model` is a path, an nn.Module or an ExportedProgram.

    Raises UsageError for words that are not known.
    """

    model: Any
    args: tuple[Any, ...] | None = None
    kwargs: Mapping[str, Any] | None = None
    functions: Mapping[str, Any] | None = None
    targets: tuple[str, ...] = ("cpu",)
    name: str | None = None
    version: str = DEFAULT_VERSION
    out: Path = Path("generated")
    entry: str | None = None
    init: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[InputSpec, ...] = ()
    dynamic: tuple[DynamicSpec, ...] = ()
    dynamic_shapes: Any = None
    weights: Any = None  # a path, or a mapping of state_dict keys to arrays
    taps: str | None = None
    isas: tuple[str, ...] = ()  # none: all that the triple has; "native": the best one of this machine
    archs: tuple[str, ...] = ()  # of GPUs; none: all that the target has
    triple: str | None = None  # of the machine that is built for; this one's by default
    glibc: str | None = None  # the oldest version that the package shall run with; this machine's by default
    rng: bool = False
    tune: Tune = "none"
    tuning_record: Path | None = None
    exact: bool = False
    precision: Precision = "float32"
    test: bool = True

    def __post_init__(self) -> None:
        for what, word, known in (("precision", self.precision, PRECISIONS), ("tune", self.tune, TUNE)):
            if word not in known:
                raise UsageError(f"bad-{what}", f"Unknown {what} {word!r}; known: {', '.join(known)}.")


@dataclass(frozen=True)
class Report:
    """The package's folder, the measured error per output (of the target that is closest to its tolerance, and by
    target in `by_target`), and the generated tests' result.

    `tests` is None if they were not run, because nobody wanted them or, if `foreign`, this machine could not. `absent`
    are the targets that this machine has no device for. `kernels` are those of the first target.
    """

    path: Path
    name: str
    errors: Mapping[str, CaseError]
    tests: TestReport | None
    kernels: int
    warnings: tuple[str, ...]
    foreign: bool = False
    by_target: Mapping[str, Mapping[str, CaseError]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


class TestsFailed(TranspileErrors):
    """The generated tests failed: the package is in `path`, the previous one is untouched."""

    def __init__(self, path: Path, report: TestReport) -> None:
        self.path, self.report = path, report
        error = TranspileError(
            "tests-failed",
            f"The generated tests failed: {report.failed} of {report.failed + report.passed}.",
            notes=[f"the failed package is in {path}"],
            hints=[f"read it with: python -m pytest {path / 'tests'}"],
        )
        super().__init__(error.problems)
