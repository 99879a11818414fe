"""Every sample of every op: the reference has the inferred types, the meaning has its numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.symbolic_numpy import meaning
from transpiler.ir import TensorType
from transpiler.ops import REGISTRY
from transpiler.ops.base import Opaque, Sample

SAMPLES = [(name, sample) for name, op in sorted(REGISTRY.items()) for sample in op.samples()]
IDS = [f"{name}-{sample.id}" for name, sample in SAMPLES]


def test_sample_ids_are_unique() -> None:
    assert len(set(IDS)) == len(IDS)


@pytest.mark.parametrize(("name", "sample"), SAMPLES, ids=IDS)
def test_reference_has_inferred_types(name: str, sample: Sample) -> None:
    with np.errstate(all="ignore"):
        result = sample.op.reference(*sample.inputs)
    arrays = result if isinstance(result, tuple) else (result,)
    actual = [TensorType(str(array.dtype), array.shape) for array in arrays]
    assert actual == list(sample.op.infer_types([TensorType(str(x.dtype), x.shape) for x in sample.inputs]))


_MEANT = [item for item in SAMPLES if not isinstance(item[1].op, Opaque)]


@pytest.mark.parametrize(("name", "sample"), _MEANT, ids=[f"{name}-{sample.id}" for name, sample in _MEANT])
def test_meaning_equals_reference(name: str, sample: Sample) -> None:
    with np.errstate(all="ignore"):
        expected = sample.op.reference(*sample.inputs)
    assert not isinstance(expected, tuple)
    actual = meaning(sample.op, sample.inputs)
    assert actual.dtype == expected.dtype
    if expected.dtype.kind in "biu":
        np.testing.assert_array_equal(actual, expected)
    else:
        tolerance = 2e-2 if expected.dtype.itemsize == 2 else 1e-5
        wide = np.float64
        np.testing.assert_allclose(actual.astype(wide), expected.astype(wide), rtol=tolerance, atol=tolerance)
