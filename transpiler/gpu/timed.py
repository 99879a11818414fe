"""`python -m transpiler.gpu.timed FOLDER`: times calls of a list of launches on the first CUDA device.

FOLDER has the machine code, the list, and job.json; what is found goes line by line to the file `results`, so that it
is not lost when a kernel fails: "begins N" before call N first runs, "N seconds" or "N failed". What computes the same
takes turns. Inputs of a call differ in where they lie, as far as the caches of the device would keep them.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transpiler.gpu.runtime import import_runtime

BEGINS, FAILED = "begins", "failed"
FILE = "kernels.fatbin"
# Calls between two readings of the device's clock, each with inputs of its own; copies of them take so many bytes.
REPEATS, COPIED_BYTES = 8, 256 << 20
# Readings of a call: for about so many seconds, within these numbers, after some that are not counted.
SECONDS, LEAST, MOST, WARMING = 0.05, 5, 50, 2


def main(arguments: Sequence[str] | None = None) -> int:
    (text,) = sys.argv[1:] if arguments is None else arguments
    folder = Path(text)
    job = json.loads((folder / "job.json").read_text())
    with (folder / "results").open("a") as results:

        def tell(line: str) -> None:
            results.write(f"{line}\n")
            results.flush()

        timer = Timer(folder, job["launches"])
        end = time.monotonic() + job["seconds"]
        for together in _alike(job["calls"]):
            if time.monotonic() > end:
                break
            for call, seconds in timer.times(together, tell, end).items():
                tell(f"{call} {seconds!r}")
    return 0


def _alike(calls: Mapping[str, Mapping[str, Any]]) -> list[dict[int, list[str]]]:
    """By group the calls with their inputs' dtypes."""
    groups: dict[int, dict[int, list[str]]] = {}
    for call, facts in calls.items():
        groups.setdefault(facts["group"], {})[int(call)] = facts["dtypes"]
    return list(groups.values())


class Timer:
    """Calls of the list `launches` in a folder, on the first device. Raises RuntimeError where there is none."""

    def __init__(self, folder: Path, launches: str) -> None:
        self.device_module, self.memory, self.recording, self.launch_list = (
            import_runtime(name) for name in ("cuda.device", "cuda.memory", "cuda.recording", "launch_list")
        )
        self.device = self.device_module.open_device(None)
        self.code = self.device_module.load_code(self.device, folder / FILE)
        self.list = self.launch_list.LaunchList(folder / launches)
        self.weights = self.memory.DeviceWeights(self.device, np.zeros(0, np.uint8), {})

    def times(self, calls: Mapping[int, Sequence[str]], tell: Any, end: float) -> dict[int, float]:
        """Median seconds of each of the calls, which take turns. What is refused before it runs is told as failed."""
        graphs: dict[int, Any] = {}
        for call, dtypes in calls.items():
            try:
                graphs[call] = self.recorded(call, dtypes)
            except (MemoryError, RuntimeError, ValueError):
                if self.device.lost:
                    raise
                tell(f"{call} {FAILED}")
        first = [self._warm(call, recording, tell) for call, (recording, _) in graphs.items()]
        turns = max(LEAST, min(MOST, int(SECONDS / max(*first, 1e-7)))) if first else 0
        taken: dict[int, list[float]] = {call: [] for call in graphs}
        for turn in range(turns):
            if turn >= LEAST and time.monotonic() > end:
                break
            for call, (recording, repeats) in graphs.items():
                taken[call].append(self.once(recording) / repeats)
        for recording, _ in graphs.values():
            recording.free()
        return {call: statistics.median(values) for call, values in taken.items()}

    def _warm(self, call: int, recording: Any, tell: Any) -> float:
        tell(f"{BEGINS} {call}")
        return min(self.once(recording) for _ in range(WARMING))

    def recorded(self, call: int, dtypes: Sequence[str]) -> tuple[Any, int]:
        """A graph that makes a call several times, and how often."""
        program = self.list.single(0, call, {})
        last = max((region.offset + region.nbytes for region in program.inputs), default=0)
        pitch = -(-last // self.launch_list.ALIGNMENT) * self.launch_list.ALIGNMENT
        repeats = max(1, min(REPEATS, COPIED_BYTES // max(pitch, 1)))

        def moved(region: Any, turn: int) -> Any:
            """Where an input lies in another turn: behind everything."""
            if region not in program.inputs or not turn:
                return region
            return replace(region, offset=program.nbytes + (turn - 1) * pitch + region.offset)

        steps = tuple(
            replace(step, regions=tuple(moved(region, turn) for region in step.regions))
            for turn in range(repeats)
            for step in program.steps
        )
        total = program.nbytes + (repeats - 1) * pitch
        repeated = replace(program, steps=steps, nbytes=total)
        recording = self.recording.Recording(self.code, repeated, self.weights, None, hosted=False)
        rng = np.random.default_rng(0)
        with self.device.current():
            for region, dtype in zip(program.inputs, dtypes, strict=False):
                data = _values(dtype, region.nbytes, rng)
                for turn in range(repeats):
                    recording._work.write(moved(region, turn).offset, data)
        return recording, repeats

    def once(self, recording: Any) -> float:
        """Seconds of a graph by the device's clock."""
        with self.device.current():
            clock = self.recording._Clock(self.device)
            clock.read(recording.stream)
            recording._graph.launch(recording.stream)
            clock.read(recording.stream)
            self.device.do("waiting", self.device.driver.cuStreamSynchronize(recording.stream))
            return float(clock.seconds()[-1])


def _values(dtype: str, nbytes: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Normal floats; zeros of every other dtype, which are valid indices."""
    if dtype in ("float16", "float32", "float64", "bfloat16"):
        size = {"float64": 8, "float32": 4}.get(dtype, 2)
        floats = rng.standard_normal(nbytes // size, np.float32)
        if dtype == "bfloat16":
            return (floats.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return floats.astype(dtype).view(np.uint8)
    return np.zeros(nbytes, np.uint8)


if __name__ == "__main__":
    sys.exit(main())
