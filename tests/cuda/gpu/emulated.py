"""The kernels that the tests over the emulator run, whatever they are: collected while those tests run, with their
inputs and what they gave, which the tests have compared with their references. So a new schedule is checked on a GPU
from the day it has tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.cuda.library import CudaLibrary
from transpiler.group import Lowered

Array = npt.NDArray[Any]
HERE = Path(__file__).parent.parent
LARGEST = 1 << 22  # bytes of what is kept of a call
OFTEN = 3  # calls of a kernel that are kept


@dataclass
class Run:
    """A kernel with the sizes that vary, and sets of inputs with what they gave."""

    lowered: Lowered
    sizes: Mapping[str, int]
    sets: list[dict[str, Sequence[Array]]] = field(default_factory=list)


def files_with_kernels() -> dict[str, Path]:
    """By name those that run kernels, but for the tests of what is done here."""
    files = [file for file in sorted(HERE.glob("test_*.py")) if file.stem != "test_on_gpu"]
    return {f"emulated.{file.stem.removeprefix('test_')}": file for file in files if "CudaLibrary(" in file.read_text()}


def collected(file: Path) -> list[dict[str, Run]]:
    """The kernels of a file of tests, in parts: in one, no two have a name. Raises RuntimeError: tests failed."""
    with recording() as runs:
        code = pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", str(file)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"tests of {file.name} failed")
    return in_parts(runs)


@contextmanager
def recording() -> Iterator[list[Run]]:
    """What libraries of kernels run meanwhile, if nobody has planted an error in their text."""
    found: dict[tuple[int, str], Run] = {}
    make, run = CudaLibrary.__init__, CudaLibrary.run

    def made(library: CudaLibrary, kernels: Sequence[Lowered], *args: Any, **options: Any) -> None:
        make(library, kernels, *args, **options)
        planted = bool(args) or "edit" in options
        library.own = {} if planted else {item.kernel.name: item for item in kernels}

    def ran(library: CudaLibrary, name: str, *inputs: Array, sizes: Any = None, threads: int = 2) -> tuple[Array, ...]:
        outputs: tuple[Array, ...] = run(library, name, *inputs, sizes=sizes, threads=threads)
        lowered = library.own.get(name)
        nbytes = sum(array.nbytes for array in (*inputs, *outputs))
        if lowered is not None and not lowered.kernel.in_place and nbytes <= LARGEST:
            key = id(lowered), repr(sizes)
            item = found.setdefault(key, Run(lowered, dict(sizes or {})))
            if len(item.sets) < OFTEN:
                copies = [np.array(array) for array in inputs]
                item.sets.append({"input": copies, "single": outputs, "double": [_wide(array) for array in outputs]})
        return outputs

    runs: list[Run] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CudaLibrary, "__init__", made)
        patch.setattr(CudaLibrary, "run", ran)
        yield runs
    runs += found.values()


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind not in "biu" else array


def in_parts(runs: Sequence[Run]) -> list[dict[str, Run]]:
    """Kernels of one name, or the same at other sizes, are in parts of their own."""
    parts: list[dict[str, Run]] = []
    for item in runs:
        name = item.lowered.kernel.name
        free = next((part for part in parts if name not in part), None)
        if free is None:
            free = {}
            parts.append(free)
        free[name] = item
    return parts
