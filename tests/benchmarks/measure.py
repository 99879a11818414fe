"""The timing of one model: all engines loaded, each in its process, called in turn in short slices.

Turns alternate, so that whatever else the machine does meets all of them; before a slice everybody's threads have had
time to fall asleep, and its first calls are not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.environments import python_of
from tests.benchmarks.prepare import ENVIRONMENT_OF, ROOT, environment, package_folder

# Seconds that pools of idle engines get to stop spinning; longer than any default.
SETTLE = 0.04
ROUNDS = 9
WARM = 2
PROFILED_CALLS = 15
# Larger relative errors than this are another model, not rounding.
ERROR_LIMIT = 1e-2


@dataclass(frozen=True)
class Timing:
    """Seconds of a call of one engine: median and quartiles of all calls, and the median of each slice."""

    peer: str
    version: str
    median: float
    low: float
    high: float
    calls: int
    slices: list[float]
    error: float
    load_s: float


@dataclass(frozen=True)
class ModelResult:
    """`kernels` are the package's and `rates` the machine's, as `worker.profiled` gives them. Seconds of the target
    "cpu" are those of a clock on the wall, of others those of all processors that the engine's process used."""

    model: str
    threads: int
    timings: Mapping[str, Timing]
    failures: Mapping[str, str] = field(default_factory=dict)
    kernels: Sequence[Mapping[str, Any]] = ()
    rates: Mapping[str, Any] = field(default_factory=dict)
    commit: str = ""
    target: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Worker:
    """A process of one engine. Raises RuntimeError with the end of its log if it does not answer."""

    def __init__(self, work: Path, peer: str, name: str, threads: int, target: str) -> None:
        self.peer = peer
        folder = work / "models" / name
        self.log = folder / f"worker.{target}.{peer}.{threads}.log"
        processors = sorted(os.sched_getaffinity(0))[-threads:]
        command: list[str | Path] = [
            *(python_of(ENVIRONMENT_OF[peer], work / "environments"), ROOT / "tests/benchmarks/worker.py"),
            *(peer, folder, "--threads", str(threads), "--processors", ",".join(map(str, processors))),
            *("--package", package_folder(work, name, target)),
            *("--clock", "wall" if target == "cpu" else "processor"),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(work, threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.facts: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError(" ".join(self.log.read_text().splitlines()[-1:]) or "no answer")
        return dict(json.loads(line))

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def held(command: Sequence[str]) -> Iterator[None]:
    """While `command`, a wrapper that waits for a lock such as `flock FILE`, runs."""
    if not command:
        yield
        return
    with subprocess.Popen([*command, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        yield
        process.stdin.close()


def _start(
    work: Path, peers: Sequence[str], name: str, threads: int, target: str
) -> tuple[list[Worker], dict[str, str]]:
    workers, failures = [], {}
    for peer in peers:
        worker = Worker(work, peer, name, threads, target)
        try:
            worker.facts = worker.read()
            if not worker.facts["error"] < ERROR_LIMIT:
                raise RuntimeError(f"its result is off by {worker.facts['error']:.3g}")
            workers.append(worker)
        except RuntimeError as error:
            worker.close()
            failures[peer] = str(error)
    return workers, failures


def _alternate(workers: Sequence[Worker], seconds: float) -> dict[str, list[list[float]]]:
    """The seconds of every call by engine and slice; `seconds` is what all slices take together, about."""
    share = seconds / (len(workers) * (ROUNDS + 1))
    one = {worker.peer: min(worker.ask(warm=WARM, calls=3)["seconds"]) for worker in workers}
    slices: dict[str, list[list[float]]] = {worker.peer: [] for worker in workers}
    for turn in range(ROUNDS):
        start = turn % len(workers)
        for worker in [*workers[start:], *workers[:start]]:
            time.sleep(SETTLE)
            calls = min(2000, max(1, round(share / one[worker.peer]) - WARM))
            slices[worker.peer].append(worker.ask(warm=WARM, calls=calls)["seconds"])
    return slices


@dataclass(frozen=True)
class Case:
    model: str
    threads: int
    workers: Sequence[Worker]
    failures: Mapping[str, str]


def measure(
    work: Path,
    cases: Sequence[tuple[str, int]],
    peers: Sequence[str],
    *,
    seconds: float,
    target: str = "cpu",
    loading: Sequence[str] = (),
    timing: Sequence[str] = (),
) -> list[ModelResult]:
    """Load ours and `peers` for all cases (model, threads), then time case by case, `seconds` each.

    `loading` and `timing` are commands that hold locks meanwhile.
    """
    loaded: list[Case] = []
    try:
        with held(loading):
            for name, threads in cases:
                loaded.append(Case(name, threads, *_start(work, ["ours", *peers], name, threads, target)))
        with held(timing):
            return [_measure(case, seconds, target) for case in loaded]
    finally:
        for worker in (worker for case in loaded for worker in case.workers):
            worker.close()


def _measure(case: Case, seconds: float, target: str) -> ModelResult:
    slices = _alternate(case.workers, seconds) if case.workers else {}
    time.sleep(SETTLE)
    ours = [worker for worker in case.workers if worker.peer == "ours" and target == "cpu"]
    profile = ours[0].ask(profile=PROFILED_CALLS) if ours else {"kernels": [], "rates": {}}
    timings = {worker.peer: _timing(worker, slices[worker.peer]) for worker in case.workers}
    return ModelResult(
        case.model, case.threads, timings, case.failures, profile["kernels"], profile["rates"], _commit(), target
    )


def _commit() -> str:
    """What was timed, where the sources are a checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _timing(worker: Worker, slices: list[list[float]]) -> Timing:
    values = [value for part in slices for value in part]
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(
        peer=worker.peer,
        version=worker.facts["version"],
        median=median,
        low=low,
        high=high,
        calls=len(values),
        slices=[statistics.median(part) for part in slices],
        error=worker.facts["error"],
        load_s=worker.facts["load_s"],
    )
