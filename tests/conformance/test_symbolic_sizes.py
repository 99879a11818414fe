"""Kernels whose sizes vary: op samples with a size replaced by a symbol, run at many values of it.

One size of a sample becomes the symbol `n` wherever it stands (or in one dimension alone), in the attributes that are
sizes too. The kernel must give the reference's result at every value for which the op is defined. CI takes one sample
of each op; `-m slow` takes all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.conformance.kernels import array_type
from tests.conformance.targets import build, refused_ops
from tests.conformance.test_ops_on_targets import FAMILIES, check
from transpiler.dims import Dim, evaluate, symbol
from transpiler.group import Group, make_group
from transpiler.interpreter import bind_op
from transpiler.ir import Array, IRError, Node, TensorType, Value
from transpiler.ops.base import Op, OpError, Sample
from transpiler.ops.dtypes import HALF
from transpiler.target import Target

N = symbol("n")
SIZES = (1, 2, 5, 19, 37)
SIZE_ATTRIBUTES = ("shape", "size", "starts", "stops")
# What needs fixed sizes: packed forms are only made of fixed maps and weights; a head or a state of a size that varies
# is no model's; reasons that models can meet are in tests/models/test_dynamic.py.
REFUSED = {
    "conv_blocked", "conv_winograd", "conv_strassen", "conv_stem", "conv_depthwise", "attention", "lstm_scan",
    "gru_scan", "rnn_scan", "lu_permutation", "linear_strassen",
}  # fmt: skip
# Shrinking a dimension makes indices or updates invalid that the reference takes all the same.
GROWS_ONLY = {
    "gather", "take", "scatter", "scatter_add", "scatter_mul", "scatter_max", "scatter_min", "index_put", "gather_nd",
}  # fmt: skip
MISSES: tuple[type[Exception], ...] = (
    OpError, IRError, TypeError, ValueError, AssertionError, ZeroDivisionError, IndexError, KeyError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Symbolic:
    """A sample's op with a symbol in its types; `own` is the value that the sample has for it."""

    sample: Sample
    op: Op
    types: tuple[TensorType, ...]
    own: int

    def group(self) -> Group:
        values = tuple(Value(f"x{number}", type_) for number, type_ in enumerate(self.types))
        results = self.op.infer_types(list(self.types))
        outputs = tuple(Value(f"y{number}", type_) for number, type_ in enumerate(results))
        return make_group((Node(self.op, values, outputs),), outputs)

    def inputs(self, value: int) -> list[Array]:
        arrays = []
        for array, type_ in zip(self.sample.inputs, self.types, strict=True):
            for axis, dim in enumerate(type_.shape):
                array = np.take(array, np.arange(evaluate(dim, {"n": value})) % array.shape[axis], axis)
            arrays.append(array)
        return arrays


def replaced(value: Any, size: int) -> Any:
    if isinstance(value, tuple):
        return tuple(replaced(item, size) for item in value)
    return N if isinstance(value, int) and not isinstance(value, bool) and value == size else value


def attempts(sample: Sample) -> Iterator[tuple[int, list[tuple[Dim, ...]], Op]]:
    """(size, shapes, op) with that size replaced: everywhere, in attributes too, in one dimension."""
    shapes: list[tuple[Dim, ...]] = [array.shape for array in sample.inputs]
    attributes = sample.op.attributes().items()
    for size in dict.fromkeys(dim for array in sample.inputs for dim in array.shape if dim > 1):
        everywhere = [tuple(replaced(shape, size)) for shape in shapes]
        changed = {key: replaced(value, size) for key, value in attributes if key in SIZE_ATTRIBUTES}
        yield size, everywhere, sample.op
        yield size, everywhere, dataclasses.replace(sample.op, **changed)
        for axis, dim in enumerate(shapes[0]):
            if dim == size:
                yield size, [(*shapes[0][:axis], N, *shapes[0][axis + 1 :]), *shapes[1:]], sample.op


def symbolic(sample: Sample) -> list[Symbolic]:
    """Every way to make a size of the sample a symbol that the op's type rule takes."""
    found: dict[str, Symbolic] = {}
    concrete = sample.op.infer_types([array_type(array) for array in sample.inputs])
    dtypes = {str(array.dtype) for array in sample.inputs} | {type_.dtype for type_ in concrete}
    if not dtypes.isdisjoint(HALF) or any(dtype.startswith("complex") for dtype in dtypes):
        return []
    for size, shapes, op in attempts(sample):
        pairs = zip(sample.inputs, shapes, strict=True)
        types = tuple(TensorType(str(array.dtype), shape) for array, shape in pairs)
        try:
            results = op.infer_types(list(types))
            at_own = tuple(t.with_shape(evaluate(dim, {"n": size}) for dim in t.shape) for t in results)
        except MISSES:
            continue
        if at_own == concrete:
            found.setdefault(f"{op}{types}", Symbolic(sample, op, types, size))
    return list(found.values())


def reference(case: Symbolic, inputs: list[Array]) -> tuple[list[Array], list[Array]] | None:
    """The reference's results, and those in float64; None if the op is not defined at this size."""
    op = bind_op(case.op, {"n": int(inputs_size(case, inputs))})
    wide = [array.astype(np.float64) if array_type(array).is_float else array for array in inputs]
    try:
        op.infer_types([array_type(array) for array in inputs])
        with np.errstate(all="ignore"):
            results = [op.reference(*inputs), op.reference(*wide)]
    except MISSES:
        return None
    single, double = (list(item) if isinstance(item, tuple) else [item] for item in results)
    return single, double


def inputs_size(case: Symbolic, inputs: list[Array]) -> int:
    return next(
        array.shape[axis]
        for array, type_ in zip(inputs, case.types, strict=True)
        for axis, dim in enumerate(type_.shape)
        if dim == N
    )


def run(cases: list[Symbolic], target: Target) -> tuple[list[str], set[str], int]:
    """(what is wrong, the ops that no schedule takes, how many kernels ran)."""
    cases_by_name = {f"k{number}": case for number, case in enumerate(cases)}
    library, reasons = build({key: case.group() for key, case in cases_by_name.items()}, target)
    jobs = {key: case for key, case in cases_by_name.items() if key not in reasons}
    refused = {cases_by_name[key].op.name for key in reasons}
    problems = []
    for key, case in jobs.items():
        for value in (case.own, *SIZES):
            if value < case.own and case.op.name in GROWS_ONLY:
                continue
            inputs = case.inputs(value)
            expected = reference(case, inputs)
            shapes = [tuple(evaluate(dim, {"n": value}) for dim in t.shape) for t in library.kernels[key].outputs]
            if expected is None or shapes != [array.shape for array in expected[0]]:
                assert value != case.own, f"{case.op} {case.types}: no reference at the sample's own size"
                continue
            name = f"{case.op.name}/{case.sample.id} {[str(type_) for type_ in case.types]} at n = {value}"
            for got, single, double in zip(library.run(key, *inputs, sizes={"n": value}), *expected, strict=True):
                problems += check(name, got, single, double)
    return problems, refused, len(jobs)


def cases_of(family: str, *, every: bool) -> list[Symbolic]:
    """All cases of a family, or of each op the one with the most dimensions that vary."""
    cases = [case for sample in FAMILIES[family] for case in symbolic(sample)[: 2 if every else 1]]
    if every:
        return cases
    best: dict[str, Symbolic] = {}
    for case in sorted(cases, key=lambda case: -sum(dim == N for type_ in case.types for dim in type_.shape)):
        best.setdefault(case.op.name, case)
    return list(best.values())


def test_one_sample_of_each_op(target: Target) -> None:
    cases = [case for family in sorted(FAMILIES) for case in cases_of(family, every=False)]
    problems, refused, count = run(cases, target)
    assert count > 100
    assert not problems, "\n".join(problems)
    assert refused <= REFUSED | refused_ops(target)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_sample(family: str, target: Target) -> None:
    problems, refused, _ = run(cases_of(family, every=True), target)
    assert not problems, "\n".join(problems)
    assert refused <= REFUSED | refused_ops(target)
