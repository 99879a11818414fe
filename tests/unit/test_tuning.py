"""Choice points and the timing sweep. `measure` is replaced by made-up times, but for one real run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance.kernels import KernelLibrary, op_group
from transpiler import tuning
from transpiler.choices import choose, choosing
from transpiler.errors import UsageError
from transpiler.group import Group
from transpiler.ops.packed import LinearPacked
from transpiler.schedule import choice_key, schedule, shipped_answers
from transpiler.target import load_target
from transpiler.tuning import Tuner, measure, read_record, record_text

RNG = np.random.default_rng(1)
ROWS, DEPTH, FEATURES = 40, 64, 80
X = RNG.standard_normal((ROWS, DEPTH)).astype("float32")
WEIGHT = RNG.standard_normal((FEATURES // 16, DEPTH, 16)).astype("float32")
LINEAR = LinearPacked(FEATURES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRANSPILE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "MIN_FLOPS", 0)
    monkeypatch.setattr(tuning, "runs_here", lambda isa: isa.name == "baseline")
    return tmp_path / "cache"


def group() -> Group:
    return op_group(LINEAR, [X, WEIGHT])


def lowered(tuner: Tuner) -> Any:
    return tuner.schedule(group(), tuner.target, "linear")


def baseline(mode: Any = "fast", **given: Any) -> Tuner:
    return Tuner(load_target("cpu", "baseline"), mode, **given)


class Times:
    """Stands in for `measure`: variant `fastest` of each group takes half the time of the others."""

    def __init__(self, fastest: int) -> None:
        self.fastest = fastest
        self.calls: list[Any] = []

    def __call__(self, groups: Sequence[Group], variants: Sequence[Sequence[Any]], target: Any) -> list[list[float]]:
        self.calls.append(variants)
        return [[0.5 if index == self.fastest else 1.0 for index in range(len(tried))] for tried in variants]


def test_a_choice_takes_the_default_the_answer_or_ignores_an_old_answer() -> None:
    assert choose("tile", [1, 2, 3], 2) == 2
    with choosing({"tile": "3"}) as asked:
        assert choose("tile", [1, 2, 3], 2) == 3
    assert asked.points["tile"].candidates == ("1", "2", "3")
    with choosing({"tile": "9"}):
        assert choose("tile", [1, 2, 3], 2) == 2


def test_wrong_choices_are_errors() -> None:
    with pytest.raises(ValueError, match="choice tile: 7 is not among 1, 2"):
        choose("tile", [1, 2], 7)
    with choosing({}):
        choose("tile", [1, 2], 1)
        with pytest.raises(ValueError, match="two sets of candidates"):
            choose("tile", [1, 2, 3], 1)


def test_the_fastest_variant_is_taken_recorded_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(fastest=1)
    monkeypatch.setattr(tuning, "measure", times)
    tuner = baseline()
    first = lowered(tuner)
    (point,) = first.points
    assert tuner.sweep()
    key = choice_key(group(), tuner.target)
    taken = tuner.record[key]["tile"]
    assert taken == next(item for item in point.candidates if item != point.default)
    assert len(times.calls[0][0]) == min(tuning.FAST_VARIANTS, len(point.candidates))
    # Another build of the same shapes costs no sweep and takes the same.
    again = baseline()
    lowered(again)
    assert not again.sweep()
    assert again.record == tuner.record
    assert len(times.calls) == 1
    # `full` does not take the word of `fast`, `none` looks at nothing.
    full = baseline("full")
    lowered(full)
    full.sweep()
    assert len(times.calls) == 2
    assert len(times.calls[1][0]) == len(point.candidates)
    none = baseline("none")
    lowered(none)
    assert not none.sweep()
    assert none.record == {}


def test_a_gain_within_the_noise_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "measure", lambda groups, variants, target: [[1.0, 0.98, 1.0, 1.0] for _ in groups])
    tuner = baseline()
    lowered(tuner)
    assert not tuner.sweep()
    assert tuner.record == {}


def test_a_record_decides_and_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times = Times(fastest=1)
    monkeypatch.setattr(tuning, "measure", times)
    target = load_target("cpu", "baseline")
    (point,) = schedule(group(), target, "linear").points
    file = tmp_path / "tuning.json"
    file.write_text(record_text({"baseline": {choice_key(group(), target): {"tile": point.candidates[-1]}}}))
    tuner = baseline(given=read_record(file)["baseline"])
    lowered(tuner)
    assert not tuner.sweep()
    assert times.calls == []
    assert tuner.record == {choice_key(group(), target): {"tile": point.candidates[-1]}}


def test_a_damaged_cache_is_ignored(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr(tuning, "measure", Times(fastest=1))
    tuner = baseline()
    lowered(tuner)
    assert tuner.sweep()
    (file,) = own_cache.rglob("*.json")
    file.write_text('{"mode": "fast", "answers": [')
    again = baseline()
    lowered(again)
    assert again.sweep()


def test_another_instruction_set_than_this_machine_s_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "measure", Times(fastest=1))
    monkeypatch.setattr(tuning, "runs_here", lambda isa: False)
    tuner = baseline()
    lowered(tuner)
    assert not tuner.sweep()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no tuning record: "),
        ('{"format": 99, "choices": {}}', "has the format 99; known: 1."),
        ('{"format": 1, "choices": {"avx2": {"k": {"tile": 3}}}}', "is no tuning record: not a mapping of texts"),
        ('{"format": 1}', "is no tuning record: 'choices'"),
    ],
)
def test_a_record_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "tuning.json"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        read_record(file)
    assert message in str(error.value)


def test_every_variant_computes_the_same() -> None:
    """Each candidate of the tile, compiled; float64 is the reference."""
    target = load_target("cpu", "baseline")
    (point,) = schedule(group(), target, "linear").points
    assert len(point.candidates) > 1
    kernels = KernelLibrary(
        [schedule(group(), target, f"v{i}", {"tile": text}) for i, text in enumerate(point.candidates)], target
    )
    expected = X.astype("float64") @ WEIGHT.astype("float64").transpose(1, 0, 2).reshape(DEPTH, FEATURES)
    for index in range(len(point.candidates)):
        (result,) = kernels.run(f"v{index}", X, WEIGHT)
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-5)


def test_measured_times_are_times() -> None:
    target = load_target("cpu", "baseline")
    ((first, second),) = measure([group()], [[{}, {"tile": "1x1"}]], target)
    assert 0 < first < 1
    assert 0 < second < 1


def test_the_shipped_choices_are_texts_by_key() -> None:
    assert shipped_answers(group(), load_target("cpu", "baseline")) == {}
    folder = Path(tuning.tree("targets"))
    for isa, found in json.loads((folder / "cpu.choices.json").read_text()).items():
        load_target("cpu", isa)
        assert all(isinstance(text, str) for answers in found.values() for text in answers.values())
