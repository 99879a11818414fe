"""Every conformance sample of every op on every target: equal to float64.

A sample is a kernel of its own; with half floats, a program that the passes rewrite. A float result may be off by 4
times what the reference is off by, plus 128 roundings of the largest reference value (of half floats 2, since they
are summed in float32); integers and bools are exact. Memory behind each output and the workspace is checked by the
harness.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.conformance.compare import check
from tests.conformance.kernels import array_type, op_group
from tests.conformance.programs import Programs, op_program
from tests.conformance.targets import build, unexpected
from transpiler.ir import Array, TensorType
from transpiler.ops import REGISTRY
from transpiler.ops.base import Op, Sample
from transpiler.ops.dtypes import HALF, numpy_dtype
from transpiler.target import Target


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
    wide = [array.astype(np.float64) if array_type(array).is_float else array for array in sample.inputs]
    with np.errstate(all="ignore"):
        result = sample.op.reference(*wide)
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_samples(family: str, target: Target) -> None:
    """Each sample's kernel gives the reference's result, the second call too."""
    problems = check_samples(FAMILIES[family], target)
    assert not problems, "\n".join(problems)


def check_samples(chosen: Sequence[Sample], target: Target) -> list[str]:
    """What is wrong: another result, another second call, a refusal that is not listed.

    Samples that differ in nothing but their numbers share a kernel.
    """
    keys: dict[tuple[Op, tuple[TensorType, ...]], str] = {}
    calls = [
        (keys.setdefault((sample.op, tuple(map(array_type, sample.inputs))), f"k{number}"), sample)
        for number, sample in enumerate(chosen)
    ]
    samples = dict(reversed(calls))  # the first of each
    half = {key for key, sample in samples.items() if not dtypes(sample).isdisjoint(HALF)}
    programs = Programs({key: op_program(samples[key].op, samples[key].inputs) for key in half}, target)
    library, refused = build(
        {key: op_group(sample.op, sample.inputs) for key, sample in samples.items() if key not in half}, target
    )
    refused = refused | programs.refused
    names = [f"{sample.op.name}/{sample.id}" for _, sample in calls]
    reasons = {name: refused[key] for name, (key, _) in zip(names, calls, strict=True) if key in refused}
    problems = unexpected(reasons, names, target)
    for name, (key, sample) in zip(names, calls, strict=True):
        if key in refused:
            continue
        run = programs.run if key in half else library.run
        first, second = run(key, *sample.inputs), run(key, *sample.inputs)
        for got, again, single, double in zip(first, second, reference(sample), double_reference(sample), strict=True):
            problems += check(name, got, single, double)
            if got.tobytes() != again.tobytes():
                problems.append(f"{name}: the second call differs")
            if sample.exact and not np.array_equal(got, single, equal_nan=array_type(got).is_float):
                problems.append(f"{name}: not exact")
    return problems


def in_half(sample: Sample, dtype: str) -> Sample | None:
    """The sample on half floats instead of float32; None if it has none, or its result is named by an attribute."""
    if not any(array.dtype == np.float32 for array in sample.inputs) or hasattr(sample.op, "dtype"):
        return None
    with np.errstate(over="ignore"):
        inputs = [a.astype(numpy_dtype(dtype)) if a.dtype == np.float32 else a for a in sample.inputs]
    return Sample(sample.id, sample.op, tuple(inputs))


def rounded_reference(sample: Sample, dtype: str) -> list[Array]:
    """The float32 reference, its floats rounded to `dtype` once: what PyTorch's kernels do."""
    wide = [array.astype(np.float32) if array_type(array).is_float else array for array in sample.inputs]
    with np.errstate(all="ignore"):
        result = sample.op.reference(*wide)
        results = result if isinstance(result, tuple) else (result,)
        return [item.astype(numpy_dtype(dtype)) if array_type(item).is_float else item for item in results]


def half_samples(family: str) -> dict[str, tuple[Sample, str]]:
    """Up to three samples of each op, in float16 and bfloat16 by turns, with the dtype."""
    found: dict[str, tuple[Sample, str]] = {}
    taken: dict[str, int] = {}
    for number, sample in enumerate(FAMILIES[family]):
        dtype = HALF[number % 2]
        half = in_half(sample, dtype)
        if half is not None and taken.setdefault(sample.op.name, 0) < 3:
            taken[sample.op.name] += 1
            found[f"{number}"] = half, dtype
    return found


# The passes make packed ops of float32 ones; PyTorch has no linear algebra on half floats.
NO_HALF = frozenset(
    {
        "packed",
        "blocked_conv",
        "winograd",
        "winograd_last",
        "planes",
        "strassen",
        "strassen_conv",
        "factorize",
        "matrix_exp",
        "orthogonal",
    }
)


@pytest.mark.parametrize("family", sorted(item for item in FAMILIES if item not in NO_HALF and half_samples(item)))
def test_half_samples(family: str, target: Target) -> None:
    """float32 samples in half floats: computed in float32, rounded once."""
    problems = check_half_samples(family, target)
    assert not problems, "\n".join(problems)


def check_half_samples(family: str, target: Target) -> list[str]:
    """What is wrong with the family's samples in half floats."""
    samples = half_samples(family)
    programs = Programs({key: op_program(sample.op, sample.inputs) for key, (sample, _) in samples.items()}, target)
    names = {key: f"{sample.op.name}/{sample.id}/{dtype}" for key, (sample, dtype) in samples.items()}
    refused = {names[key]: reason for key, reason in programs.refused.items()}
    problems = unexpected(refused, names.values(), target)
    for key, (sample, dtype) in samples.items():
        if key in programs.refused:
            continue
        results = programs.run(key, *sample.inputs)
        for got, rounded, double in zip(
            results, rounded_reference(sample, dtype), double_reference(sample), strict=True
        ):
            problems += check(names[key], got, rounded, double)
    return problems


def test_every_op_has_samples() -> None:
    """An op without samples would pass unseen."""
    own = {name: cls for name, cls in REGISTRY.items() if cls.__module__.startswith("transpiler.")}
    missing = [name for name, cls in own.items() if not list(cls.samples())]
    assert not missing
