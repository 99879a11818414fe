"""What the CUDA text of some ops has to say; their numbers are those of test_conformance.py."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.conformance.kernels import op_group
from tests.conformance.test_ops_on_targets import FAMILIES, dtypes
from tests.cuda.library import CudaLibrary
from transpiler.gpu.cubin import usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.ops.base import Sample
from transpiler.ops.dtypes import HALF
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")


def samples(family: str) -> Iterator[Sample]:
    """Those that need no pass before they are kernels."""
    return (sample for sample in FAMILIES[family] if dtypes(sample).isdisjoint(HALF))


def test_special_functions_are_machine_code() -> None:
    """They are compiled with the kernels, from the C that packages for processors have."""
    first: dict[str, Sample] = {}
    for sample in samples("special"):
        first.setdefault(sample.op.name, sample)
    chosen = {f"k{number}": sample for number, sample in enumerate(first.values())}
    library = CudaLibrary([schedule(op_group(sample.op, sample.inputs), TARGET, key) for key, sample in chosen.items()])
    assert "double tp_math_bessel_j0(double x)" in library.text
    assert len(usage(compile_code(library.text, "sm_80").cubin)) == len(chosen)


def test_ties_are_rounded_to_even() -> None:
    (sample,) = [item for item in FAMILIES["rounding"] if (item.op.name, item.id) == ("round", "halves")]
    library = CudaLibrary([schedule(op_group(sample.op, sample.inputs), TARGET, "rounded")])
    assert "nearbyintf(" in library.text
    np.testing.assert_array_equal(library.run("rounded", *sample.inputs)[0], np.rint(sample.inputs[0]))
