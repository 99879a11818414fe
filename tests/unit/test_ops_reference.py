"""Every op's numpy reference gives what its type rule says, on every sample."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from transpiler.ir import TensorType
from transpiler.ops import REGISTRY as EVERYTHING
from transpiler.ops.base import Sample
from transpiler.ops.dtypes import numpy_dtype
from transpiler.prepared import runtime_module

# Other test modules register toys.
REGISTRY = {name: op for name, op in EVERYTHING.items() if op.__module__.startswith("transpiler.")}
SAMPLES = [
    pytest.param(sample, id=f"{name}-{sample.id}") for name, op in sorted(REGISTRY.items()) for sample in op.samples()
]


def _is_plain_numpy(sample: Sample) -> bool:
    expression = sample.op.host(*(f"x{number}" for number in range(len(sample.inputs))))
    return expression is not None and "host." not in expression


HOST_SAMPLES = [case for case in SAMPLES if _is_plain_numpy(case.values[0])]


@pytest.mark.parametrize("sample", SAMPLES)
def test_reference_has_the_inferred_types(sample: Sample) -> None:
    types = sample.op.infer_types([_type_of(array) for array in sample.inputs])
    before = [array.copy() for array in sample.inputs]
    with np.errstate(all="ignore"):
        result = sample.op.reference(*sample.inputs)
    results = result if isinstance(result, tuple) else (result,)
    assert tuple(_type_of(np.asarray(array)) for array in results) == types
    for array, copy in zip(sample.inputs, before, strict=True):
        assert array.tobytes() == copy.tobytes(), "the reference changed its input"


@pytest.mark.parametrize("sample", HOST_SAMPLES)
def test_host_expression_is_the_reference(sample: Sample) -> None:
    """What `prepare` would run is bit-identical to the reference, up to the order of a sum."""
    names = [f"x{number}" for number in range(len(sample.inputs))]
    expression = sample.op.host(*names)
    assert expression is not None
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = dict(zip(names, sample.inputs, strict=True))
        actual = np.asarray(eval(expression, {"np": np, **vars(runtime_module("host")), **given}))
        expected = np.asarray(sample.op.reference(*sample.inputs))
    if actual.dtype == np.uint16:
        actual = actual.view(numpy_dtype("bfloat16"))  # the host holds its bits
    assert _type_of(actual) == _type_of(expected)
    np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_op_has_samples_with_distinct_ids(name: str) -> None:
    ids = [sample.id for sample in REGISTRY[name].samples()]
    assert ids
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_samples_are_the_same_every_time(name: str) -> None:
    for first, second in zip(REGISTRY[name].samples(), REGISTRY[name].samples(), strict=True):
        assert str(first.op) == str(second.op)
        for a, b in zip(first.inputs, second.inputs, strict=True):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def _type_of(array: np.ndarray) -> TensorType:
    return TensorType(str(array.dtype), tuple(array.shape))
