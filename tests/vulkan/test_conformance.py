"""The conformance suites of the ops on the Vulkan target: equal to the references, or refused as
`tests/conformance/refused_by_vulkan.toml` has it. CI takes a sample of each op; `-m slow` takes all."""

from __future__ import annotations

import pytest

from tests.conformance.targets import refusals
from tests.conformance.test_ops_on_targets import FAMILIES, check_samples, dtypes
from tests.conformance.test_ops_on_targets import test_half_samples as _half_samples
from tests.conformance.test_ops_on_targets import test_samples as _samples
from tests.conformance.test_symbolic_sizes import test_every_sample as _symbolic_samples
from tests.vulkan.device import Device
from transpiler.ops.base import Sample
from transpiler.ops.dtypes import HALF
from transpiler.target import Target, load_target

# Collected here once more, with the target below.
test_samples = pytest.mark.slow(_samples)
test_half_samples = pytest.mark.slow(_half_samples)
test_symbolic_samples = _symbolic_samples

# What the passes make for the CPU's schedules only.
OF_THE_CPU = {"packed", "winograd", "blocked_conv"}
PARTS = 4


@pytest.fixture
def target(device: Device) -> Target:
    return load_target("vulkan")


def one_of_each() -> list[Sample]:
    """The smallest sample of each op."""
    chosen = []
    for family, samples in sorted(FAMILIES.items()):
        if family in OF_THE_CPU:
            continue
        by_op: dict[str, list[Sample]] = {}
        for sample in samples:
            if dtypes(sample).isdisjoint(HALF):
                by_op.setdefault(sample.op.name, []).append(sample)
        chosen += [min(found, key=size) for found in by_op.values()]
    return chosen


def size(sample: Sample) -> int:
    """Elements that the op reads; empty tensors last."""
    return sum(array.size for array in sample.inputs) if all(array.size for array in sample.inputs) else 1 << 30


@pytest.mark.parametrize("part", range(PARTS))
def test_a_sample_of_each_op(part: int, target: Target) -> None:
    problems = check_samples(one_of_each()[part::PARTS], target)
    assert not problems, "\n".join(problems)


def test_at_least_95_percent_of_the_ops_are_supported() -> None:
    ops = {sample.op.name for family, samples in FAMILIES.items() if family not in OF_THE_CPU for sample in samples}
    whole = {sample.op.name: 0 for family in FAMILIES for sample in FAMILIES[family]}
    for family in FAMILIES:
        for sample in FAMILIES[family]:
            whole[sample.op.name] += f"{sample.op.name}/{sample.id}" not in refusals("vulkan")
    supported = {name for name in ops if whole[name]}
    assert len(supported) >= 0.95 * len(ops)
