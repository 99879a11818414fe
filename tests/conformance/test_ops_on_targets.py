"""Every conformance sample of every op, as a kernel of its own, on every target: equal to float64, or listed here.

A float result may be off by 4 times what the float32 reference is off by, plus 128 roundings of the largest
reference value; integers and bools are exact. Memory behind each output and the workspace is checked by the harness.
"""

from __future__ import annotations

import numpy as np
import pytest

import transpiler.ops  # noqa: F401  (registers the ops)
from tests.conformance.kernels import KernelLibrary, op_group
from transpiler.group import Lowered
from transpiler.ir import Array
from transpiler.ops.base import REGISTRY, Sample
from transpiler.schedule import schedule
from transpiler.target import Target

# Samples that the targets refuse, with the reason; strict in both directions.
REFUSED_DTYPES = frozenset({"float16", "bfloat16"})


def families() -> dict[str, list[Sample]]:
    """Samples by the module that defines the op: one library is compiled per family."""
    found: dict[str, list[Sample]] = {}
    for cls in REGISTRY.values():
        if cls.__module__.startswith("transpiler."):
            found.setdefault(cls.__module__.rpartition(".")[2], []).extend(cls.samples())
    return found


FAMILIES = families()


def dtypes(sample: Sample) -> set[str]:
    results = sample.op.infer_types([value.type for value in op_group(sample.op, sample.inputs).inputs])
    return {str(array.dtype) for array in sample.inputs} | {result.dtype for result in results}


def reference(sample: Sample) -> list[Array]:
    with np.errstate(all="ignore"):
        result = sample.op.reference(*sample.inputs)
    return list(result) if isinstance(result, tuple) else [result]


def double_reference(sample: Sample) -> list[Array]:
    """The reference on float64 inputs; ops that name a dtype keep it."""
    wide = [array.astype(np.float64) if array.dtype == np.float32 else array for array in sample.inputs]
    with np.errstate(all="ignore"):
        result = sample.op.reference(*wide)
    return list(result) if isinstance(result, tuple) else [result]


def check(name: str, got: Array, single: Array, double: Array) -> list[str]:
    if got.dtype != single.dtype or got.shape != single.shape:
        return [f"{name}: {got.dtype}{got.shape}, expected {single.dtype}{single.shape}"]
    if got.dtype.kind != "f":
        return [] if np.array_equal(got, single) else [f"{name}: {got.ravel()[:8]} expected {single.ravel()[:8]}"]
    kinds = np.where(np.isnan(single), 2, np.where(np.isinf(single), np.sign(single), 0))
    own = np.where(np.isnan(got), 2, np.where(np.isinf(got), np.sign(got), 0))
    if not np.array_equal(kinds, own):
        return [f"{name}: NaN or infinities differ: {got.ravel()[:8]} expected {single.ravel()[:8]}"]
    finite = (kinds == 0) & np.isfinite(double)
    if not finite.any():
        return []
    with np.errstate(all="ignore"):
        error = np.abs(got[finite].astype(np.float64) - double[finite]).max()
        base = np.abs(single[finite].astype(np.float64) - double[finite]).max()
        tolerance = 4 * base + 128 * np.finfo(got.dtype).eps * np.abs(double[finite]).max()
    tolerance = max(tolerance, 128 * np.finfo(got.dtype).eps * np.finfo(got.dtype).tiny)
    return [] if error <= tolerance else [f"{name}: off by {error:.3g}, tolerance {tolerance:.3g}"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_samples(family: str, target: Target) -> None:
    """Each sample's kernel gives the reference's result, the second call too."""
    lowered: list[tuple[Sample, Lowered]] = []
    for number, sample in enumerate(FAMILIES[family]):
        group = op_group(sample.op, sample.inputs)
        if dtypes(sample) & REFUSED_DTYPES:
            with pytest.raises(LookupError, match="has no"):
                schedule(group, target, "refused")
            continue
        lowered.append((sample, schedule(group, target, f"k{number}")))
    if not lowered:
        pytest.fail(f"{family}: nothing left to run")
    library = KernelLibrary([item for _, item in lowered], target)
    problems: list[str] = []
    for sample, item in lowered:
        name = f"{sample.op.name}/{sample.id}"
        first = library.run(item.kernel.name, *sample.inputs)
        second = library.run(item.kernel.name, *sample.inputs)
        for got, again, single, double in zip(first, second, reference(sample), double_reference(sample), strict=True):
            problems += check(name, got, single, double)
            if got.tobytes() != again.tobytes():
                problems.append(f"{name}: the second call differs")
            if sample.exact and not np.array_equal(got, single, equal_nan=got.dtype.kind == "f"):
                problems.append(f"{name}: not exact")
    assert not problems, "\n".join(problems)


def test_every_op_has_samples() -> None:
    """An op without samples would pass unseen."""
    own = {name: cls for name, cls in REGISTRY.items() if cls.__module__.startswith("transpiler.")}
    missing = [name for name, cls in own.items() if not list(cls.samples())]
    assert not missing
