"""The element-wise meaning of every op, what kernels are made of, equals its numpy reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.scalar import compute
from transpiler.ops import REGISTRY
from transpiler.ops.base import Opaque, Sample

# Python reads an element in microseconds: larger reductions are left to the compiled conformance suite.
_MOST = 700
SAMPLES = [
    pytest.param(sample, id=f"{name}-{sample.id}")
    for name, op in sorted(REGISTRY.items())
    if not issubclass(op, Opaque)
    for sample in op.samples()
    if sum(array.size for array in sample.inputs) <= _MOST
]


@pytest.mark.parametrize("sample", SAMPLES)
def test_elements_are_the_reference(sample: Sample) -> None:
    with np.errstate(all="ignore"):
        positions, actual = compute(sample.op, sample.inputs)
        expected = np.asarray(sample.op.reference(*sample.inputs)).reshape(-1)[positions]
    if sample.exact:
        np.testing.assert_array_equal(actual, expected)
    else:
        wide = np.float64
        np.testing.assert_allclose(actual.astype(wide), expected.astype(wide), rtol=1e-5, atol=1e-6)
