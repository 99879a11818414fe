"""The kernels that are checked on a GPU, by family: samples of every op that is registered, the same with operands that
are half floats, and products and attention by every candidate of every choice that their schedules have. Here are their
groups and what they have to give; that needs the transpiler."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.conformance.kernels import op_group
from tests.conformance.selection import OWN
from tests.conformance.test_half_operands import half_group, places
from tests.conformance.test_half_operands import samples as half_samples
from tests.conformance.test_ops_on_targets import FAMILIES, double_reference, dtypes, reference
from tests.cuda.gpu.kernels import SETS
from tests.cuda.gpu.products import CASES, KINDS, KindCase
from transpiler.group import Group, make_group
from transpiler.ir import Node, TensorType, Value
from transpiler.ops.base import Elementwise, Injective, Op, Product, Reduce, Sample
from transpiler.ops.dtypes import HALF, numpy_dtype
from transpiler.precision import NORMALISING, STEPS
from transpiler.schedule import schedule
from transpiler.target import Target

Array = npt.NDArray[Any]
SMALLER = 0.75  # what samples that stand for more than their numbers are scaled by
TINY = "tiny"
TIED = 1e-3  # of the largest value: a sample whose float32 result is that far from float64 is none to vary


@dataclass(frozen=True)
class Member:
    """A kernel of a family: its group, the answers to its choices, what is said of it to the machine with the GPU, and
    (unless inputs are drawn there) its sets of inputs and results."""

    group: Group
    answers: Mapping[str, str]
    facts: Mapping[str, Any]
    kept: Sequence[Mapping[str, Sequence[Array]]] = ()


def families(target: Target, *, tiny: bool) -> dict[str, Callable[[], dict[str, Member]]]:
    """By family what makes its members, by name."""
    if tiny:
        return {
            "rounding": lambda: _first(sampled("rounding")),
            f"{TINY}.bfloat16": lambda: _first(by_tile(TINY, "bfloat16", target)),
        }
    found: dict[str, Callable[[], dict[str, Member]]] = {name: lambda name=name: sampled(name) for name in OWN}
    for dtype in HALF:
        found[f"half.{dtype}"] = lambda dtype=dtype: in_halves(dtype, target)
    for kind in KINDS:
        found[f"plain.{kind}"] = lambda kind=kind: plain(kind)
        for name, case in CASES.items():
            if kind in case.tiles:
                found[f"{name}.{kind}"] = lambda name=name, kind=kind: by_tile(name, kind, target)
    return found


def _first(made: dict[str, Member]) -> dict[str, Member]:
    return dict(itertools.islice(made.items(), 2))


# --- samples of the registry


def sampled(family: str) -> dict[str, Member]:
    """Samples that need no pass before they are kernels."""
    chosen = [sample for sample in FAMILIES[family] if dtypes(sample).isdisjoint(HALF)]
    return {
        f"{family}_{number}": Member(op_group(sample.op, sample.inputs), {}, {"sample": said(sample)}, sets_of(sample))
        for number, sample in enumerate(chosen)
    }


def said(sample: Sample) -> str:
    return f"{sample.op.name}/{sample.id}"


def sets_of(sample: Sample) -> list[dict[str, Sequence[Array]]]:
    """The sample and two like it, with what the references give."""
    return [
        {"input": item.inputs, "single": reference(item), "double": double_reference(item)} for item in variants(sample)
    ]


def variants(sample: Sample) -> Iterator[Sample]:
    """The sample, and others with other floats: drawn ones where an op takes any, else scaled ones, which are sorted,
    symmetric, positive as the sample's are. Zeros, infinities, NaN and integers stay."""
    yield sample
    if not any(array.dtype.kind == "f" for array in sample.inputs):
        return
    for number in range(1, SETS):
        drawn = _scaled(sample, lambda shape, number=number: np.random.default_rng(number).uniform(0.5, 1.0, shape))
        if _takes_any(sample) and _is_stable(drawn):
            yield drawn
        else:
            scaled = _scaled(sample, lambda shape, number=number: np.full(shape, SMALLER**number))
            yield scaled if _is_stable(scaled) else sample


def _scaled(sample: Sample, factors: Callable[[tuple[int, ...]], Array]) -> Sample:
    inputs = [a * factors(a.shape).astype(a.dtype) if a.dtype.kind == "f" else a for a in sample.inputs]
    return replace(sample, inputs=tuple(np.asarray(a, old.dtype) for a, old in zip(inputs, sample.inputs, strict=True)))


def _takes_any(sample: Sample) -> bool:
    op = sample.op
    return isinstance(op, Elementwise | Injective | Reduce | Product) or op.name in NORMALISING


def _is_stable(sample: Sample) -> bool:
    """Whether roundings decide little: float32 and float64 agree, and nothing jumps or is chosen by floats."""
    singles, doubles = reference(sample), double_reference(sample)
    if sample.op.name in STEPS or any(single.dtype.kind != "f" for single in singles):
        return False
    for single, double in zip(singles, doubles, strict=True):
        finite = np.isfinite(double) & np.isfinite(single)
        if not np.array_equal(np.isfinite(single), np.isfinite(double)):
            return False
        error = np.abs(single[finite].astype(np.float64) - double[finite])
        if error.max(initial=0) > TIED * np.abs(double[finite]).max(initial=1e-30):
            return False
    return True


# --- half floats in memory, computed in float32: what the precision pass makes of an op


def in_halves(dtype: str, target: Target) -> dict[str, Member]:
    found = {}
    kind = numpy_dtype(dtype)
    for name, sample in half_samples(target, every=True).items():
        halves = places(sample, target)
        narrow = sample.op.name in target.narrowed
        group = half_group(sample, halves, dtype, narrow=narrow)
        kept = []
        for item in variants(sample):
            stored = [a.astype(kind) if place in halves else a for place, a in enumerate(item.inputs)]
            same = replace(item, inputs=tuple(a.astype(np.float32) if a.dtype == kind else a for a in stored))
            single = [a.astype(kind) if narrow else a for a in reference(same)]
            given = [stored[int(value.name[1:])] for value in group.inputs]
            kept.append({"input": given, "single": single, "double": double_reference(same)})
        found[f"half_{name}"] = Member(group, {}, {"sample": said(sample)}, kept)
    return found


# --- products and attention


def plain(kind: str) -> dict[str, Member]:
    """Every case, by the schedule's own choices."""
    return {f"{name}_{kind}": _product(name, kind, {}) for name in CASES if name != TINY}


def by_tile(name: str, kind: str, target: Target) -> dict[str, Member]:
    """A case by every candidate of every choice: tiles of each form, splits, whatever the schedule asks."""
    group = group_of(CASES[name].of(kind))
    answers: list[dict[str, str]] = [
        {point.name: candidate} for point in schedule(group, target, "probe").points for candidate in point.candidates
    ]
    return {f"{name}_{kind}_{number}": _product(name, kind, each) for number, each in enumerate(answers or [{}])}


def _product(name: str, kind: str, answers: Mapping[str, str]) -> Member:
    return Member(group_of(CASES[name].of(kind)), answers, {"case": name, "kind": kind, "choices": dict(answers)})


def group_of(case: KindCase) -> Group:
    types = [TensorType(dtype, shape) for dtype, shape in zip(case.dtypes, case.case.shapes, strict=True)]
    return single(case.op, types)


def single(op: Op, types: Sequence[TensorType]) -> Group:
    """A group of one op."""
    values = tuple(Value(f"x{number}", type_) for number, type_ in enumerate(types))
    (type_,) = op.infer_types([value.type for value in values])
    result = Value("y", type_)
    return make_group((Node(op, values, (result,)),), (result,))
