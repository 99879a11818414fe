"""What kernels ask of a device: none of those here, whose tensors have 32 bits at most, needs int64 or float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.conformance.test_ops_on_targets import FAMILIES, dtypes
from transpiler.gpu.vulkan import compile_kernel
from transpiler.ops.base import Sample
from transpiler.ops.compare import Cast
from transpiler.schedule import schedule
from transpiler.target import load_targets

WIDE = {"int64", "float64", "float16", "bfloat16"}


def int32(sample: Sample) -> Sample:
    inputs = [array.astype(np.int32) if array.dtype == np.int64 else array for array in sample.inputs]
    return Sample(sample.id, sample.op, tuple(inputs))


def indexed(family: str, name: str) -> list[Sample]:
    """Samples of an op, with indices of int32."""
    found = [int32(sample) for sample in FAMILIES[family] if sample.op.name == name]
    return [sample for sample in found if all(array.size for array in sample.inputs) and not dtypes(sample) & WIDE]


NUMBERS = np.array([-1.5, 3e9, 255.5, np.nan], np.float32)
CASES = {
    "resize": [
        sample
        for sample in FAMILIES["resize"]
        if sample.id.startswith(("odd", "fractional", "far", "1d", "uint8")) and not dtypes(sample) & WIDE
    ],
    **{name: indexed("index", name) for name in ("take", "gather", "index", "index_put")},
    **{name: indexed("scatter", name) for name in ("scatter", "scatter_add", "scatter_max")},
    "cast": [Sample(dtype, Cast(dtype), (NUMBERS,)) for dtype in ("uint8", "int8", "int16", "int32")],
}


@pytest.mark.parametrize("name", CASES)
def test_no_wide_types(name: str) -> None:
    assert CASES[name]
    for target in load_targets("vulkan"):
        for sample in CASES[name]:
            launches, _ = compile_kernel(schedule(op_group(sample.op, sample.inputs), target, "kernel"), target)
            features = {feature for launch in launches for feature in launch.features}
            assert not features & {"shaderInt64", "shaderFloat64"}, (sample.id, features)
