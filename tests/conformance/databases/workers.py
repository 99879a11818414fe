"""Processes that evaluate entries: a segmentation fault or an endless loop is a recorded result.

Workers are forked from this process, which has evaluated one small sample: they start warm. A worker says what
it is about to do; when it dies or is silent for too long, the sample that it was at gets the outcome, and another
worker takes the rest. If it was at a whole batch, the rest is done in smaller batches, down to single samples.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any

from tests.conformance.databases.evaluate import Evaluator
from tests.conformance.databases.outcome import CRASH, HANG, Result
from tests.conformance.databases.samples import Entry, choose, entries, samples
from transpiler.target import Target

BATCH = 48
STEP_SECONDS = 120.0
KERNEL_SECONDS = 15.0


@dataclass(frozen=True)
class Task:
    """Samples of one entry: `wanted` of them (None: all), without those whose numbers are in `known`."""

    entry: Entry
    wanted: int | None
    known: frozenset[int]
    batch: int = BATCH


@dataclass
class _Worker:
    process: Any
    connection: Connection
    task: Task
    step: tuple[int | None, str]
    deadline: float


def evaluate(tasks: Sequence[Task], target: Target | None, jobs: int) -> Iterator[tuple[Entry, list[Result], bool]]:
    """Results as they come: an entry, some results of it, and whether these were its last."""
    _warm_up(target)
    context = multiprocessing.get_context("fork")
    queue, active = list(tasks), list[_Worker]()
    while queue or active:
        while queue and len(active) < jobs:
            active.append(_start(context, queue.pop(0), target))
        wait([worker.connection for worker in active], timeout=1.0)
        for worker in list(active):
            results, finished, ended = _read(worker)
            worker.task = replace(worker.task, known=worker.task.known | {item.number for item in results})
            if ended:
                active.remove(worker)
                worker.process.join()
                worker.connection.close()
            if ended and not finished:
                lost = _lost(worker)
                results += lost
                smaller = worker.task.batch if lost else max(1, worker.task.batch // 6)
                known = worker.task.known | {item.number for item in lost}
                queue.insert(0, replace(worker.task, known=known, batch=smaller))
            if results or finished:
                yield worker.task.entry, results, finished


@cache
def _warm_up(target: Target | None) -> None:
    """Load and fill here, once, what every fork would otherwise load for itself: seconds of lazy imports."""
    import torch

    torch.set_num_threads(1)
    first = next(iter(entries("op", "float32", "neg")))
    Evaluator(first, target, lambda *_: None).run(list(samples(first))[:1])


def _start(context: Any, task: Task, target: Target | None) -> _Worker:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, task, target), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here, task, (None, "start"), time.monotonic() + STEP_SECONDS)


def _read(worker: _Worker) -> tuple[list[Result], bool, bool]:
    """New results; whether the task is finished; whether the worker has ended."""
    results: list[Result] = []
    try:
        while worker.connection.poll():
            kind, *content = worker.connection.recv()
            if kind == "step":
                number, stage, kernels = content
                worker.step = number, stage
                worker.deadline = time.monotonic() + STEP_SECONDS + KERNEL_SECONDS * kernels
            elif kind == "results":
                results += content[0]
            else:
                return results, True, True
    except (EOFError, ConnectionResetError):
        return results, False, True
    if time.monotonic() < worker.deadline:
        return results, False, False
    worker.process.kill()
    worker.step = (worker.step[0], f"{worker.step[1]}, no end")
    return results, False, True


def _lost(worker: _Worker) -> list[Result]:
    """The outcome of the sample that a dead worker was at; none if it was at several."""
    number, stage = worker.step
    if number is None:
        if worker.task.batch > 1:
            return []
        number = -1  # drawing the samples itself fails
    id = f"{worker.task.entry.id}/{number}"
    if stage.endswith("no end"):
        return [Result(id, HANG, stage.partition(",")[0], f"more than {STEP_SECONDS:.0f} seconds")]
    code = worker.process.exitcode or 0
    died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return [Result(id, CRASH, stage, f"the process died: {died}")]


def _work(connection: Connection, task: Task, target: Target | None) -> None:
    """A worker's whole life. What torch prints about graphs that it cannot export goes nowhere."""
    warnings.simplefilter("ignore")
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    faulthandler.disable()  # pytest's writes to a copy of the standard error that was

    def report(number: int | None, stage: str, kernels: int) -> None:
        connection.send(("step", number, stage, kernels))

    if -1 in task.known:
        connection.send(("done",))
        return
    try:
        drawn = list(samples(task.entry))
    except Exception as error:
        connection.send(("results", [Result(f"{task.entry.id}/-1", "not exportable", "draw", str(error)[:200])]))
        connection.send(("done",))
        return
    numbers = [sample.number for sample in drawn]
    chosen = {numbers[index] for index in choose(len(numbers), task.wanted)} - task.known
    rest = [sample for sample in drawn if sample.number in chosen]
    for start in range(0, len(rest), task.batch):
        results = Evaluator(task.entry, target, report).run(rest[start : start + task.batch])
        connection.send(("results", results))
    connection.send(("done",))
