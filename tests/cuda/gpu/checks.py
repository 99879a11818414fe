"""Whether what runs on the device is right: kernels against float64, packages by their own tests, fresh inputs,
replays, streams and threads at once, NVIDIA's checkers of memory and races."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.cuda.gpu import sanitizer
from tests.cuda.gpu.calls import FACTS, POISONED
from tests.cuda.gpu.kernels import KEPT, REPLAYS, family, folders
from tests.cuda.gpu.results import Part
from transpiler.checks import Expected, compare, tolerance_of
from transpiler.loading import load_package
from transpiler.testing import run_generated_tests

Array = npt.NDArray[Any]


def checks(work: Path, results: Path, parts: Sequence[str], end: float, only: str, tool: str | None) -> list[str]:
    """What is wrong, by name. Parts: kernels, suites, sanitizer."""
    wrong = []
    for name in parts:
        part = Part(results, f"check.{name}", end, only)
        if name == "sanitizer":
            sanitizer.check(work, part, tool)
        else:
            part.run(_items(work, name))
        wrong += [f"{name} {key}" for key in part.failed]
    return wrong


def _items(work: Path, name: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    if name == "suites":
        for folder in sorted(path for path in (work / "suites").glob("*") if path.is_dir()):
            yield folder.name, lambda folder=folder: {"problems": suite(folder)}
        return
    for folder in folders(work):
        yield folder.name, lambda folder=folder: _family(folder)


def _family(folder: Path) -> dict[str, Any]:
    facts = json.loads((folder / FACTS).read_text())
    return {"problems": family(folder), "kernels": len(facts["calls"]), "units": facts["units"]}


# --- packages


class Cases:
    """Sets of inputs of a package and what they have to give."""

    def __init__(self, file: Path, precision: str) -> None:
        arrays = dict(np.load(file))
        self.inputs: list[list[Array]] = []
        self._expected: list[list[Expected]] = []
        for number in range(len({key.partition("/")[0] for key in arrays})):

            def numbered(kind: str, number: int = number) -> list[Array]:
                count = sum(key.startswith(f"{number}/{kind}/") for key in arrays)
                return [arrays[f"{number}/{kind}/{place}"] for place in range(count)]

            self.inputs.append(numbered("input"))
            pairs = zip(numbered("torch"), numbered("float64"), strict=True)
            self._expected.append([_expected(place, *pair, precision) for place, pair in enumerate(pairs)])

    def problems(self, number: int, outputs: Sequence[Array], when: str) -> list[str]:
        """What is wrong with the outputs for the set `number`."""
        found = zip(self._expected[number], outputs, strict=True)
        return [text for text in (compare(expected, output, when).message for expected, output in found) if text]


def _expected(place: int, torch: Array, float64: Array, precision: str) -> Expected:
    dtype = torch.dtype.name
    with np.errstate(all="ignore"):
        tolerance = tolerance_of(torch, float64, dtype, precision)
    return Expected(
        f"output {place}", dtype, torch.shape, torch.reshape(-1), float64.reshape(-1), tolerance, 0,
        precision=precision,
    )  # fmt: skip


def suite(folder: Path) -> list[str]:
    """The generated tests; then fresh inputs, replays in memory that is full of NaNs, streams and threads at once."""
    tests = run_generated_tests(folder)
    problems = [] if tests.ok else [tests.output[-1500:]]
    with load_package(folder, folder.name).Model() as runner:
        if runner.manifest["rng"] or runner.manifest["built"]["cuda"]["state"]["buffers"]:
            return problems  # a call is not what the one before it was
        cases = Cases(folder / KEPT, runner.manifest["precision"])
        known: dict[int, list[bytes]] = {}
        found = _replays(runner, cases, known)
        for check in () if found else (_on_two_streams, _in_two_threads, _on_streams_of_torch):
            found += check(runner, cases, known)
    return [*problems, *found]


def _replays(runner: Any, cases: Cases, known: dict[int, list[bytes]]) -> list[str]:
    """A hundred calls: the first, the second and the last are the first ones of their inputs."""
    last = len(cases.inputs) - 1
    for turn in range(REPLAYS):
        if turn % POISONED == 0:
            poison(runner)
        number = last if turn == REPLAYS - 1 else turn % last
        outputs = runner.infer(*cases.inputs[number])
        data = [array.tobytes() for array in outputs]
        if number not in known:
            found = cases.problems(number, outputs, f"call {turn + 1}")
            if found:
                return found
        elif known[number] != data:
            return [f"call {turn + 1} gives other bits than one before it with the same inputs"]
        known[number] = data
    return []


def poison(runner: Any) -> int:
    """Fill the memory of every call that waits for its replay with NaN bits: inputs, outputs, the arena. How many."""
    count = 0
    session = runner._running()
    for waiting in session._idle._waiting.values():
        for recording in waiting:
            with session.device.current():
                recording._work.write(0, np.full(recording.program.nbytes, 0xFF, np.uint8))
            count += 1
    return count


def _on_two_streams(runner: Any, cases: Cases, known: dict[int, list[bytes]]) -> list[str]:
    """Arrays of the host, by turns on two streams of the driver; nobody waits before the end."""
    device = runner._running().device
    driver = device.driver
    with device.current():
        flag = driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
        streams = [device.do("making a stream", driver.cuStreamCreate(flag)) for _ in range(2)]
    results = [runner.infer(*cases.inputs[turn % 2], stream=int(streams[turn % 2])) for turn in range(REPLAYS)]
    got = [[array.numpy().tobytes() for array in outputs] for outputs in results]
    del results
    with device.current():
        for stream in streams:
            device.do("waiting", driver.cuStreamSynchronize(stream))
            device.do("ending a stream", driver.cuStreamDestroy(stream))
    wrong = [turn for turn, data in enumerate(got) if data != known[turn % 2]]
    return [f"on two streams at once {len(wrong)} of {REPLAYS} calls give other bits"] if wrong else []


def _in_two_threads(runner: Any, cases: Cases, known: dict[int, list[bytes]]) -> list[str]:
    wrong: list[str] = []

    def call(number: int) -> None:
        try:
            for turn in range(REPLAYS // 2):
                if [array.tobytes() for array in runner.infer(*cases.inputs[number])] != known[number]:
                    wrong.append(f"in two threads at once call {turn + 1} gives other bits")
                    return
        except BaseException as error:
            wrong.append(f"in two threads at once: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=call, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def _on_streams_of_torch(runner: Any, cases: Cases, known: dict[int, list[bytes]]) -> list[str]:
    """PyTorch's tensors on the device, on two of its streams; nothing where PyTorch has no CUDA."""
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    sets = [[torch.from_numpy(array).cuda() for array in cases.inputs[number]] for number in range(2)]
    torch.cuda.synchronize()
    results = [runner.infer(*sets[turn % 2], stream=streams[turn % 2]) for turn in range(REPLAYS)]
    torch.cuda.synchronize()
    got = [[torch.from_dlpack(array).cpu().numpy().tobytes() for array in outputs] for outputs in results]
    wrong = [turn for turn, data in enumerate(got) if data != known[turn % 2]]
    return [f"on two streams of PyTorch {len(wrong)} of {REPLAYS} calls give other bits"] if wrong else []
