"""Samples of every family of ops as CUDA text, by the emulator: equal to float64, as on the other targets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.conformance.test_ops_on_targets import FAMILIES, check, double_reference, dtypes, reference
from tests.cuda.library import CudaLibrary
from transpiler.gpu.cubin import usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.ops.base import Sample
from transpiler.ops.dtypes import HALF
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")
# Their ops are made by passes for the CPU alone.
CPU_ONLY = {"blocked_conv", "packed", "strassen", "winograd"}
PER_OP = 2


def samples(family: str, most: int | None) -> Iterator[Sample]:
    taken: dict[str, int] = {}
    for sample in FAMILIES[family]:
        taken[sample.op.name] = taken.get(sample.op.name, 0) + 1
        if dtypes(sample).isdisjoint(HALF) and (most is None or taken[sample.op.name] <= most):
            yield sample


def problems(family: str, most: int | None) -> list[str]:
    chosen = {f"k{number}": sample for number, sample in enumerate(samples(family, most))}
    kernels = [schedule(op_group(sample.op, sample.inputs), TARGET, key) for key, sample in chosen.items()]
    library = CudaLibrary(kernels)
    found = [f"{key}: {reason}" for key, reason in library.refused.items()]
    for key, sample in chosen.items():
        if key not in library.refused:
            results = zip(library.run(key, *sample.inputs), reference(sample), double_reference(sample), strict=True)
            for got, single, double in results:
                found += check(f"{sample.op.name}/{sample.id}", got, single, double)
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - CPU_ONLY))
def test_samples(family: str) -> None:
    assert not problems(family, PER_OP)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - CPU_ONLY))
def test_all_samples(family: str) -> None:
    assert not problems(family, None)


def test_special_functions_are_machine_code() -> None:
    """They are compiled with the kernels, from the C that packages for processors have."""
    chosen = {f"k{number}": sample for number, sample in enumerate(samples("special", 1))}
    library = CudaLibrary([schedule(op_group(sample.op, sample.inputs), TARGET, key) for key, sample in chosen.items()])
    assert "double tp_math_bessel_j0(double x)" in library.text
    assert len(usage(compile_code(library.text, "sm_80").cubin)) == len(chosen)


def test_ties_are_rounded_to_even() -> None:
    (sample,) = [item for item in FAMILIES["rounding"] if (item.op.name, item.id) == ("round", "halves")]
    library = CudaLibrary([schedule(op_group(sample.op, sample.inputs), TARGET, "rounded")])
    assert "nearbyintf(" in library.text
    np.testing.assert_array_equal(library.run("rounded", *sample.inputs)[0], np.rint(sample.inputs[0]))
