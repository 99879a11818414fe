"""Samples of every family of ops as CUDA text, by the emulator: equal to float64, as on the other targets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.kernels import op_group
from tests.conformance.test_ops_on_targets import FAMILIES, check, double_reference, dtypes, reference
from tests.cuda.library import CudaLibrary
from transpiler.ops.base import Sample
from transpiler.ops.dtypes import HALF
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")
# Their ops are made by passes for the CPU alone.
CPU_ONLY = {"blocked_conv", "packed", "strassen", "winograd"}
# Written in vectors of 16 lanes or with functions of the CPU's run time: no CUDA text yet.
WITHOUT_TEXT = {"index", "scatter", "shape_edges", "special", "special_pairs"}
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


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - CPU_ONLY - WITHOUT_TEXT))
def test_samples(family: str) -> None:
    assert not problems(family, PER_OP)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - CPU_ONLY - WITHOUT_TEXT))
def test_all_samples(family: str) -> None:
    assert not problems(family, None)


def test_what_has_no_text_is_refused_by_name() -> None:
    found = problems("index", None)
    assert found
    assert all("has no CUDA text: Cannot convert type" in text for text in found)
