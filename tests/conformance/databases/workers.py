"""Processes that evaluate entries: a segmentation fault or an endless loop is a recorded result.

Workers are forked from this process, which has evaluated one small sample: they start warm. A worker says what
it is about to do; when it dies or is silent for too long, the sample that it was at gets the outcome, and another
worker takes the rest. If it was at a whole batch, that batch is done in smaller ones, down to single samples.
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
from tests.conformance.databases.outcome import CRASH, HANG, NOT_EXPORTABLE, Result
from tests.conformance.databases.samples import Entry, Sample, choose, entries, samples
from transpiler.target import Target

BATCH = 48
STEP_SECONDS = 120.0
ITEM_SECONDS = 15.0


@dataclass(frozen=True)
class Task:
    """What one worker does: `wanted` samples of each entry (None: all), without those whose ids are in `known`; or
    those with the ids of `only`."""

    entries: tuple[Entry, ...]
    wanted: int | None
    known: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    batch: int = BATCH


@dataclass
class _Worker:
    process: Any
    connection: Connection
    task: Task
    step: tuple[str | None, str]
    deadline: float
    batch: frozenset[str] = frozenset()


def evaluate(
    tasks: Sequence[Task], target: Target | None, jobs: int
) -> Iterator[tuple[list[Result], tuple[Entry, ...]]]:
    """Results as they come, and the entries of which these were the last."""
    _warm_up(target)
    context = multiprocessing.get_context("fork")
    queue, active = list(tasks), list[_Worker]()
    try:
        while queue or active:
            while queue and len(active) < jobs:
                active.append(_start(context, queue.pop(0), target))
            wait([worker.connection for worker in active], timeout=1.0)
            for worker in list(active):
                results, finished, ended = _read(worker)
                worker.task = replace(worker.task, known=worker.task.known | {item.id for item in results})
                if ended:
                    active.remove(worker)
                    worker.process.join()
                    worker.connection.close()
                if ended and not finished:
                    lost = _lost(worker)
                    results += lost
                    queue[:0] = _again(worker, frozenset(item.id for item in lost))
                waiting = {entry for item in (*queue, *(other.task for other in active)) for entry in item.entries}
                done = [entry for entry in worker.task.entries if ended and entry not in waiting]
                if results or done:
                    yield results, tuple(done)
    finally:
        for worker in active:
            worker.process.kill()
            worker.process.join()


def _again(worker: _Worker, lost: frozenset[str]) -> list[Task]:
    """What a dead worker leaves over: its batch, in pieces if nothing says which sample it was, and the rest."""
    task = replace(worker.task, known=worker.task.known | lost)
    open_ = worker.batch - task.known
    if not open_:
        return [task]
    batch = task.batch if lost else max(1, task.batch // 6)
    return [replace(task, only=open_, batch=batch), replace(task, known=task.known | open_)]


@cache
def _warm_up(target: Target | None) -> None:
    """Load and fill here, once, what every fork would otherwise load for itself: seconds of lazy imports."""
    import torch

    torch.set_num_threads(1)
    first = next(iter(entries("op", "float32", "neg")))
    Evaluator(target, lambda *_: None).run(list(samples(first))[:4])


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
                id, stage, items = content
                worker.step = id, stage
                worker.deadline = time.monotonic() + STEP_SECONDS + ITEM_SECONDS * items
            elif kind == "batch":
                worker.batch = content[0]
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
    id, stage = worker.step
    if id is None:
        return []
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

    def report(id: str | None, stage: str, items: int) -> None:
        connection.send(("step", id, stage, items))

    drawn: list[Sample] = []
    for entry in task.entries:
        report(f"{entry.id}/-1", "draw", 0)
        try:
            drawn += _draw(entry, task)
        except Exception as error:
            connection.send(("results", [Result(f"{entry.id}/-1", NOT_EXPORTABLE, "draw", str(error)[:200])]))
    for start in range(0, len(drawn), task.batch):
        batch = drawn[start : start + task.batch]
        connection.send(("batch", frozenset(sample.id for sample in batch)))
        connection.send(("results", Evaluator(target, report).run(batch)))
    connection.send(("done",))


def _draw(entry: Entry, task: Task) -> list[Sample]:
    if f"{entry.id}/-1" in task.known:
        return []
    if task.only is not None:
        return [sample for sample in samples(entry) if sample.id in task.only - task.known]
    drawn = list(samples(entry))
    return [drawn[index] for index in choose(len(drawn), task.wanted) if drawn[index].id not in task.known]
