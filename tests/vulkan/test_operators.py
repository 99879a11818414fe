"""The conformance samples of every operator on a device: equal to float64 by the CPU's rule, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.kernels import array_type, op_group
from tests.conformance.test_ops_on_targets import FAMILIES, check, double_reference, dtypes, reference
from tests.vulkan.emitted import KernelLibrary
from transpiler.ops.base import Sample
from transpiler.ops.dtypes import HALF
from transpiler.schedule import schedule
from transpiler.target import load_target

pytestmark = pytest.mark.usefixtures("device")
TARGET = load_target("vulkan")
# Made by passes for the CPU's layouts; no program for a GPU has them.
NOT_HERE = frozenset({"packed", "blocked_conv", "winograd", "custom"})


def problems(samples: dict[str, Sample]) -> tuple[list[str], dict[str, str]]:
    """What is wrong, and what is refused."""
    scheduled, refused = [], {}
    for key, sample in samples.items():
        try:
            scheduled.append(schedule(op_group(sample.op, sample.inputs), TARGET, key))
        except LookupError as error:
            refused[key] = str(error)
    library = KernelLibrary(scheduled, TARGET)
    refused |= library.refused
    found: list[str] = []
    for key, sample in samples.items():
        if key in refused:
            continue
        name = f"{sample.op.name}/{sample.id}"
        first, second = library.run(key, *sample.inputs), library.run(key, *sample.inputs)
        for got, again, single, double in zip(first, second, reference(sample), double_reference(sample), strict=True):
            found += check(name, got, single, double)
            if got.tobytes() != again.tobytes():
                found.append(f"{name}: the second call differs")
            if sample.exact and not np.array_equal(got, single, equal_nan=array_type(got).is_float):
                found.append(f"{name}: not exact")
    return found, {f"{samples[key].op.name}/{samples[key].id}": why for key, why in refused.items()}


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - NOT_HERE))
def test_samples(family: str) -> None:
    samples = {f"k{n}": s for n, s in enumerate(FAMILIES[family]) if dtypes(s).isdisjoint(HALF)}
    found, refused = problems(samples)
    print("\n".join(f"REFUSED {name}: {why}" for name, why in refused.items()))
    assert not found, "\n".join(found)
