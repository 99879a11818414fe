"""The conformance suites of the ops on the Vulkan target: equal to the references, or listed as refused, which nothing
is. CI takes a sample of each op; `-m slow` takes all."""

from __future__ import annotations

import pytest

from tests.conformance.selection import OWN, one_of_each
from tests.conformance.test_corner_cases import cases, corner_problems, silent_cases
from tests.conformance.test_ops_on_targets import FAMILIES, NO_HALF, check_half_samples, check_samples, half_samples
from tests.conformance.test_symbolic_sizes import REFUSED, cases_of, run
from tests.vulkan.device import Device
from transpiler.target import Target, load_target

PARTS, CORNER_PARTS = 4, 6


@pytest.fixture
def target(device: Device) -> Target:
    return load_target("vulkan")


@pytest.mark.parametrize("part", range(PARTS))
def test_a_sample_of_each_op(part: int, target: Target) -> None:
    problems = check_samples(one_of_each()[part::PARTS], target)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("family", OWN)
def test_samples(family: str, target: Target) -> None:
    problems = check_samples(FAMILIES[family], target)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in OWN if family not in NO_HALF and half_samples(family)])
def test_half_samples(family: str, target: Target) -> None:
    problems = check_half_samples(family, target)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("family", OWN)
def test_sizes_that_vary(family: str, target: Target) -> None:
    problems, refused, _ = run(cases_of(family, every=False), target)
    assert not problems, "\n".join(problems)
    assert refused <= REFUSED


@pytest.mark.slow
@pytest.mark.parametrize("part", range(CORNER_PARTS))
def test_corner_cases(part: int, target: Target) -> None:
    chosen = list(cases().values())[part::CORNER_PARTS]
    problems = corner_problems(chosen, target, refused=r"No SPIR-V for (the function )?\w+ of float64\.")
    assert not problems, f"{len(problems)} problems\n" + "\n".join(problems)


@pytest.mark.slow
def test_indices_out_of_bounds(target: Target) -> None:
    assert not silent_cases(target)
