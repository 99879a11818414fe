"""Kernels in a folder, run and timed one by one through the packages' runtime. Needs no TVM."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transpiler.gpu.runtime import import_runtime
from transpiler.gpu.timed import Timer

Array = npt.NDArray[Any]
FACTS = "facts.json"


class Calls:
    """`facts.json` says which call of the list of launches is which. Raises RuntimeError: no device runs them."""

    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
        device = import_runtime("cuda.device")
        variant = device.choose_variant(device.open_device(None), self.facts["variants"])
        self.timer = Timer(folder, f"launches.{variant}.json")

    @property
    def names(self) -> list[str]:
        return list(self.facts["calls"])

    def run(self, name: str, inputs: Sequence[Array], outputs: Sequence[Array], turns: int) -> list[list[bytes]]:
        """The outputs of `turns` replays, in memory that was full of NaN bits before the first one.

        Args:
            outputs: arrays of their dtypes and shapes.

        Raises:
            RuntimeError: the device failed, or the kernel reports data that do not fit.
        """
        timer = self.timer
        program = timer.list.single(0, self.facts["calls"][name]["call"], {})
        recording = timer.recording.Recording(timer.code, program, timer.weights, None, hosted=True)
        found = []
        try:
            with timer.device.current():
                recording._work.write(0, np.full(program.nbytes, 0xFF, np.uint8))
            for _ in range(turns):
                results = [np.full(array.shape, 0, array.dtype) for array in outputs]
                code, _call = recording.run([np.ascontiguousarray(array) for array in inputs], results)
                if code:
                    raise RuntimeError(f"{name} reports {code}")
                found.append([array.tobytes() for array in results])
        finally:
            recording.free()
        return found

    def recorded(self, name: str) -> tuple[Any, int]:
        """A graph of several calls on random data, and of how many."""
        entry = self.facts["calls"][name]
        recording: tuple[Any, int] = self.timer.recorded(entry["call"], entry["dtypes"])
        return recording
