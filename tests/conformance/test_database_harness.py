"""The harness of the databases notices what it is there to notice: planted faults get their outcome."""

from __future__ import annotations

import os
import re
import time
from typing import Any

import pytest

from tests.conformance.databases import evaluate as evaluation
from tests.conformance.databases import samples as databases
from tests.conformance.databases import workers
from tests.conformance.databases.fast_export import fast_export
from tests.conformance.databases.outcome import CRASH, EQUAL, HANG, MISMATCH, REFUSED, Result
from tests.conformance.databases.samples import Entry, choose, samples
from tests.conformance.databases.together import capture_together
from transpiler.capture import capture_module
from transpiler.importer import import_program
from transpiler.ops import ATEN
from transpiler.source import read_source
from transpiler.target import Target
from transpiler.text import print_program


def run(name: str, target: Target | None, wanted: int | None = 2) -> list[Result]:
    task = workers.Task((Entry("op", "float32", name),), wanted)
    return [result for found, _ in workers.evaluate([task], target, 1) for result in found]


def outcomes(results: list[Result]) -> list[tuple[str, str]]:
    return [(result.outcome, result.stage) for result in results]


def test_a_right_operator_is_equal(target: Target) -> None:
    assert outcomes(run("atan2", target)) == [(EQUAL, "run")] * 2


def test_a_wrong_importer_is_a_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATEN, "atan2.default", ATEN["add.Tensor"])
    assert outcomes(run("atan2", None, 1)) == [(MISMATCH, "reference")]


def test_a_wrong_kernel_is_a_mismatch(monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    correct = evaluation.run_plan

    def wrong(*arguments: Any) -> list[Any]:
        return [array + 1 for array in correct(*arguments)]

    monkeypatch.setattr(evaluation, "run_plan", wrong)
    assert outcomes(run("atan2", target, 1)) == [(MISMATCH, "run")]


def test_an_unknown_operator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ATEN, "atan2.default")
    results = run("atan2", None)
    assert outcomes(results) == [(REFUSED, "import")] * 2
    assert results[0].operators == ("aten.atan2.default",)


def test_an_exception_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise AssertionError("planted")

    monkeypatch.setattr(evaluation, "run_graph", broken)
    results = run("atan2", None)
    assert outcomes(results) == [(CRASH, "reference")] * 2
    assert "AssertionError" in results[0].reason


def test_a_dead_process_costs_one_sample_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "run_graph", lambda *_: os.abort())
    results = run("atan2", None)
    assert outcomes(results) == [(CRASH, "reference")] * 2
    assert "SIGABRT" in results[0].reason


def test_a_kernel_that_dies_is_found_in_its_batch(monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    """The batch is taken apart; the samples beside the bad one keep their results."""
    correct = evaluation.kernel_library

    def dying(kernels: Any, target: Target) -> Any:
        if any(output.shape == () for item in kernels for output in item.kernel.outputs):
            os.abort()
        return correct(kernels, target)

    monkeypatch.setattr(evaluation, "kernel_library", dying)
    results = {result.number: result.outcome for result in run("atan2", target, None)}
    assert CRASH in results.values()
    assert EQUAL in results.values()


def test_silence_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    workers._warm_up(None)
    monkeypatch.setattr(workers, "STEP_SECONDS", 3.0)
    monkeypatch.setattr(evaluation, "capture_module", lambda *_, **__: time.sleep(600))
    assert outcomes(run("atan2", None, 1)) == [(HANG, "import")]


@pytest.mark.parametrize("name", ["nn.functional.multilabel_margin_loss", "nn.functional.gelu", "linalg.norm", "roll"])
def test_the_fast_export_gives_the_same_program(name: str) -> None:
    sample = list(samples(Entry("op", "float32", name)))[1]
    usual = import_program(capture_module(sample.module, sample.inputs)).program
    with fast_export():
        fast = import_program(capture_module(sample.module, sample.inputs)).program
    assert print_program(fast) == print_program(usual)


def _renamed(program: str) -> str:
    """The text with values and symbols numbered in the order in which they appear."""
    names: dict[str, str] = {}
    text = re.sub(r'"tensors_\d+"', '"tensor"', re.sub(r'"lifted_tensor_\d+"', '"constant"', program))
    return re.sub(r"%\w+", lambda found: names.setdefault(found[0], f"%{len(names)}"), text)


def test_samples_exported_together_give_the_programs_that_they_give_alone() -> None:
    names = ["linalg.norm", "roll", "masked.softmin", "split"]
    drawn = [sample for name in names for sample in list(samples(Entry("op", "float32", name)))[:2]]
    together = capture_together(drawn, read_source(databases.__file__))
    assert set(together) == {sample.id for sample in drawn}
    for sample in drawn:
        with fast_export():
            alone = import_program(capture_module(sample.module, sample.inputs)).program
        part = import_program(together[sample.id]).program
        assert _renamed(print_program(part)) == _renamed(print_program(alone)), sample.id


def test_samples_are_spread_evenly() -> None:
    assert choose(10, 3) == [0, 4, 9]
    assert choose(2, 5) == [0, 1]
    assert choose(3, None) == [0, 1, 2]
