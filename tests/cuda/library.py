"""Scheduled kernels as CUDA text, run by the emulator: each launch with the threads of a block in both
orders, once with asynchronous copies that land when they are waited for, once with such that land at once."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.conformance.launches import LaunchLibrary, scalar_bytes
from tests.cuda.emulator import LATE_COPIES, LATE_PRODUCTS, Emulator, at_sizes
from transpiler.dims import evaluate
from transpiler.errors import TranspileErrors
from transpiler.gpu.cuda import cuda_source
from transpiler.gpu.launches import Launch
from transpiler.group import Lowered
from transpiler.ir import Array
from transpiler.target import Target, load_target

TARGET = load_target("cuda", "sm_80")


class CudaLibrary(LaunchLibrary):
    """Kernels compiled together; `edit` changes their text, for errors that are to be found."""

    def __init__(
        self, kernels: Sequence[Lowered], edit: Callable[[str], str] = lambda text: text, target: Target = TARGET
    ) -> None:
        super().__init__(kernels)
        fitting, code = list(kernels), target.tvm_target()
        try:
            source = cuda_source(fitting, code)
        except TranspileErrors as error:
            for item in fitting:
                reasons = [each.message for each in error.problems if f"{item.kernel.name!r}" in each.message]
                if reasons:
                    self.refused[item.kernel.name] = "; ".join(reasons)
            fitting = [item for item in fitting if item.kernel.name not in self.refused]
            source = cuda_source(fitting, code)
        self.text = edit(source.text)
        self.launches.update(source.launches)
        self._folder = tempfile.TemporaryDirectory(prefix="kernels-")
        self._emulator = Emulator(self.text, Path(self._folder.name))

    def launch(self, name: str, launch: Launch, memory: Sequence[Array], symbols: Mapping[str, int]) -> None:
        """Raises AssertionError if the results depend on the order of the threads: a barrier is missing, or two write
        to one place."""
        grid = [evaluate(size, symbols) for size in launch.grid]
        if 0 in grid:
            return
        scalars = [scalar_bytes(field, symbols) for field in launch.scalars]
        buffers = [memory[place] for place in launch.buffers]
        copies = {place: memory[place].copy() for place in launch.buffers}
        backward = [copies[place] for place in launch.buffers]
        start = functools.partial(
            self._emulator.launch, launch.entry, grid, launch.workgroup, shared=launch.shared_bytes,
            cluster=launch.cluster, maps=[(position, at_sizes(tensor, symbols)) for position, tensor in launch.maps],
        )  # fmt: skip
        start(buffers, scalars, late=LATE_COPIES)
        start(backward, scalars, order=-1, late=LATE_PRODUCTS)
        same = all(np.array_equal(one, two) for one, two in zip(buffers, backward, strict=True))
        assert same, f"{name}: {launch.entry} gives something else with its threads in another order"


def other(pattern: str, new: str) -> Callable[[str], str]:
    """An error in the text of kernels: another text in the place of what is there, which has to be there."""

    def edit(source: str) -> str:
        head, kernel = source.split('extern "C"', 1)
        changed, count = re.subn(pattern, new, kernel, flags=re.DOTALL)
        assert count
        return f'{head}extern "C"{changed}'

    return edit
