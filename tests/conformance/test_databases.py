"""PyTorch's own test databases, `module_db` and `op_db`, on the target: a fixed part in CI, all of it when asked.

What is refused or wrong stands in `expected.toml` with its reason, strict both ways: a sample that fails and is
not listed, and one that is listed and does not fail, are errors. Refusals are listed by name: in the fixed part a
listed name may be equal (another of its samples is refused), in the full run it may not.

A shard is every n-th entry of a database, so that a change of one operator moves no other to another test.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conformance.databases.outcome import BAD, REFUSED, Result
from tests.conformance.databases.samples import entries
from tests.conformance.databases.workers import Task, evaluate
from transpiler.target import Target

SHARDS = 12
EXPECTED: Mapping[str, Mapping[str, str]] = tomllib.loads((Path(__file__).parent / "expected.toml").read_text())
DTYPES = ("float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool")


def run(database: str, dtype: str, shard: int, wanted: int | None, target: Target) -> list[Result]:
    task = Task(tuple(entries(database, dtype)[shard::SHARDS]), wanted)
    return [result for found, _ in evaluate([task], target, 1) for result in found]


def check(results: list[Result], *, whole: bool) -> None:
    """Compare with the table."""
    assert results
    problems = []
    for result in results:
        if result.outcome in BAD and result.id not in EXPECTED["failures"]:
            problems.append(f"{result.outcome} {result.id} ({result.stage}): {result.reason}")
        if result.outcome not in BAD and result.id in EXPECTED["failures"]:
            problems.append(f"{result.id} is listed as a failure and is {result.outcome}")
        if result.outcome == REFUSED and result.entry not in EXPECTED["refused"]:
            problems.append(f"{result.id} is refused: {result.reason}")
    if whole:
        refused = {result.entry for result in results if result.outcome == REFUSED}
        entries_run = {result.entry for result in results}
        problems += [f"{entry} is listed as refused and is not" for entry in EXPECTED["refused"]
                     if entry in entries_run - refused]  # fmt: skip
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_modules(shard: int, target: Target) -> None:
    check(run("module", "float32", shard, 2, target), whole=False)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_operators(shard: int, target: Target) -> None:
    check(run("op", "float32", shard, 1, target), whole=False)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("database", ["module", "op"])
def test_all_samples(database: str, shard: int, target: Target) -> None:
    check(run(database, "float32", shard, None, target), whole=True)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_dtypes(dtype: str, shard: int, target: Target) -> None:
    """Samples of every operator in every dtype that it takes: nothing wrong, nothing that crashes."""
    results = run("op", dtype, shard, 3, target)
    bad = [result for result in results if result.outcome in BAD]
    wrong = [f"{item.outcome} {item.id} ({item.stage}): {item.reason}" for item in bad
             if item.id not in EXPECTED["failures"]]  # fmt: skip
    assert not wrong, "\n".join(wrong)
