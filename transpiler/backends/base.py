"""What a backend is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from transpiler.progress import Progress
from transpiler.target import Target

if TYPE_CHECKING:
    from transpiler.artifacts import Artifacts
    from transpiler.c_compiler import Compiler
    from transpiler.errors import Location
    from transpiler.lower import LoweredProgram


@dataclass(frozen=True)
class Job:
    """What is to be compiled for a target: the program, lowered for each of its variants, best first.

    `compiler` is that of C, for a target that needs one. `name` and `version` are the package's.
    """

    lowered: Mapping[str, LoweredProgram]
    targets: Sequence[Target]
    name: str
    version: str
    compiler: Compiler | None
    progress: Progress


class Backend(ABC):
    """How kernels for a target are compiled, and what is said of it in texts.

    `title` is what it is called, `needs` what a package needs where it runs, `environment` the variables that its
    runtime looks at. `requires` are the packages from PyPI that its runtime needs besides numpy.
    `streams`: calls take one, and tensors on the device. `tuned`: variants of its kernels can be timed.
    """

    title: ClassVar[str]
    needs: ClassVar[str]
    environment: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    streams: ClassVar[bool] = False
    tuned: ClassVar[bool] = False

    @abstractmethod
    def runs_here(self, target: Target) -> bool:
        """Whether this machine has a device that can run the kernels of this variant."""

    @abstractmethod
    def compile(self, job: Job) -> Artifacts:
        """Raises TranspileErrors: what cannot be compiled, all of it."""

    @abstractmethod
    def check(self, lowered: LoweredProgram, target: Target) -> None:
        """Raises TranspileErrors for kernels that have no form on the target."""


def kernel_places(lowered: LoweredProgram) -> dict[str, tuple[Location, ...]]:
    """Kernel -> the source lines that it computes."""
    places: dict[str, tuple[Location, ...]] = {}
    for plan in lowered.plans:
        for call in plan.calls():
            places[call.kernel] = tuple(dict.fromkeys((*places.get(call.kernel, ()), *call.covers)))
    return places
