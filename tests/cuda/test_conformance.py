"""The conformance suites of the ops on the CUDA target, by the emulator: equal to the references, or listed as refused,
which nothing is. CI takes a sample of each op; `-m slow` takes all."""

from __future__ import annotations

import pytest

from tests.conformance.selection import OWN, one_of_each
from tests.conformance.test_corner_cases import cases, corner_problems, silent_cases
from tests.conformance.test_ops_on_targets import FAMILIES, NO_HALF, check_half_samples, check_samples, half_samples
from tests.conformance.test_symbolic_sizes import REFUSED, cases_of, run
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")
PARTS, CORNER_PARTS = 4, 6


@pytest.mark.parametrize("part", range(PARTS))
def test_a_sample_of_each_op(part: int) -> None:
    problems = check_samples(one_of_each()[part::PARTS], TARGET)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("family", OWN)
def test_samples(family: str) -> None:
    problems = check_samples(FAMILIES[family], TARGET)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in OWN if family not in NO_HALF and half_samples(family)])
def test_half_samples(family: str) -> None:
    problems = check_half_samples(family, TARGET)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("family", OWN)
def test_sizes_that_vary(family: str) -> None:
    problems, refused, _ = run(cases_of(family, every=False), TARGET)
    assert not problems, "\n".join(problems)
    assert refused <= REFUSED


@pytest.mark.slow
@pytest.mark.parametrize("part", range(CORNER_PARTS))
def test_corner_cases(part: int) -> None:
    problems = corner_problems(list(cases().values())[part::CORNER_PARTS], TARGET)
    assert not problems, f"{len(problems)} problems\n" + "\n".join(problems)


@pytest.mark.slow
def test_indices_out_of_bounds() -> None:
    assert not silent_cases(TARGET)
