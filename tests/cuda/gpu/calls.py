"""Kernels in a folder, run and timed one by one through the packages' runtime. Needs no TVM."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transpiler.gpu.runtime import import_runtime
from transpiler.gpu.timed import Timer

Array = npt.NDArray[Any]
FACTS = "facts.json"
# Turns before which the memory of a call, its outputs and its workspace among it, is filled with NaN bits: those
# between show what a call leaves behind for the next one.
POISONED = 3
TOGETHER = 8  # calls of each of two threads


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

    @contextmanager
    def recording(self, name: str) -> Iterator[Any]:
        """A graph of one call on memory of its own."""
        timer = self.timer
        entry = self.facts["calls"][name]
        program = timer.list.single(0, entry["call"], entry.get("sizes", {}))
        recording = timer.recording.Recording(timer.code, program, timer.weights, None, hosted=True)
        try:
            yield recording
        finally:
            recording.free()

    def run(self, name: str, recording: Any, inputs: Sequence[Array], like: Sequence[Array]) -> list[Array]:
        """The outputs of a replay: arrays of the dtypes and shapes of `like`.

        Raises:
            RuntimeError: the device failed, or the kernel reports data that do not fit.
        """
        results = [np.zeros(array.shape, array.dtype) for array in like]
        code, _call = recording.run([np.ascontiguousarray(array) for array in inputs], results)
        if code:
            raise RuntimeError(f"{name} reports {code}")
        return results

    def poison(self, recording: Any) -> None:
        """Fill the memory of a call with NaN bits."""
        with self.timer.device.current():
            recording._work.write(0, np.full(recording.program.nbytes, 0xFF, np.uint8))

    def turns(
        self, name: str, sets: Sequence[Sequence[Array]], like: Sequence[Array], turns: int, *, poisoned: bool = True
    ) -> Iterator[tuple[int, list[Array]]]:
        """Turn by turn, the number of the set of inputs and the outputs. The last turn takes the last set for the first
        time, those before it take turns with the others."""
        others = max(len(sets) - 1, 1)
        with self.recording(name) as recording:
            for turn in range(turns):
                if poisoned and turn % POISONED == 0:
                    self.poison(recording)
                number = len(sets) - 1 if turn == turns - 1 else turn % others
                yield number, self.run(name, recording, sets[number], like)

    def at_once(self, name: str, sets: Sequence[Sequence[Array]], like: Sequence[Array]) -> list[list[list[bytes]]]:
        """By set of inputs the outputs of `TOGETHER` replays; each set has a thread and a stream, which run at once."""
        found: list[list[list[bytes]]] = [[] for _ in sets]
        failed: list[BaseException] = []

        def replay(number: int) -> None:
            try:
                with self.recording(name) as recording:
                    for _ in range(TOGETHER):
                        results = self.run(name, recording, sets[number], like)
                        found[number].append([array.tobytes() for array in results])
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=replay, args=(number,)) for number in range(len(sets))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return found

    def recorded(self, name: str) -> tuple[Any, int]:
        """A graph of several calls on random data, and of how many."""
        entry = self.facts["calls"][name]
        recording: tuple[Any, int] = self.timer.recorded(entry["call"], entry["dtypes"])
        return recording
