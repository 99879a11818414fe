"""Which samples of the ops a target other than the CPU runs, and how many of them CI does."""

from __future__ import annotations

from tests.conformance.test_ops_on_targets import FAMILIES, dtypes
from transpiler.ops.base import Sample
from transpiler.ops.dtypes import HALF

# What the passes make for the CPU's schedules only.
OF_THE_CPU = frozenset({"packed", "winograd", "strassen", "strassen_conv", "blocked_conv"})
OWN = sorted(FAMILIES.keys() - OF_THE_CPU)


def one_of_each() -> list[Sample]:
    """The smallest sample of each op."""
    chosen = []
    for family in OWN:
        by_op: dict[str, list[Sample]] = {}
        for sample in FAMILIES[family]:
            if dtypes(sample).isdisjoint(HALF):
                by_op.setdefault(sample.op.name, []).append(sample)
        chosen += [min(found, key=size) for found in by_op.values()]
    return chosen


def size(sample: Sample) -> int:
    """Elements that the op reads; empty tensors last."""
    return sum(array.size for array in sample.inputs) if all(array.size for array in sample.inputs) else 1 << 30
