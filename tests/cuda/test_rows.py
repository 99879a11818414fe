"""Rows and reductions by warps: numbers by the emulator, and that nothing waits for a whole workgroup that need not."""

from __future__ import annotations

import re

import numpy as np

from tests.conformance.kernels import op_group
from tests.conformance.test_ops_on_targets import check, double_reference, reference
from tests.cuda.library import CudaLibrary, other
from transpiler.gpu.cubin import operations, usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.ops.base import Op, Sample, rng
from transpiler.ops.norm import LayerNorm
from transpiler.ops.reduce import Argmax
from transpiler.ops.softmax import LogSoftmax, Softmax
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")


def sample(label: str, op: Op, *shapes: tuple[int, ...]) -> Sample:
    g = rng(label)
    return Sample(label, op, tuple(g.standard_normal(shape, np.float32) for shape in shapes))


SAMPLES = {
    item.id: item
    for item in (
        sample("softmax", Softmax(2), (2, 25, 197)),
        sample("log_softmax_long", LogSoftmax(1), (3, 3000)),
        sample("layer_norm", LayerNorm(1, 1e-5), (37, 96), (96,), (96,)),
        sample("softmax_strided", Softmax(0), (40, 33)),
        sample("argmax", Argmax(1, False), (3, 700)),
    )
}


def body(library: CudaLibrary, name: str) -> str:
    """The text of a kernel."""
    entry = re.escape(library.launches[name][0].entry)
    (found,) = re.findall(rf"^extern \"C\"[^\n]* {entry}\([^\n]*\{{\n(.*?)^\}}", library.text, re.DOTALL | re.MULTILINE)
    return str(found)


def test_rows() -> None:
    library = CudaLibrary([schedule(op_group(item.op, item.inputs), TARGET, name) for name, item in SAMPLES.items()])
    for name, item in SAMPLES.items():
        (got,) = library.run(name, *item.inputs)
        (single,), (double,) = reference(item), double_reference(item)
        assert not check(name, got, single, double)
        assert "__shfl" in body(library, name)
        alone = name not in ("log_softmax_long", "argmax")
        assert ("__syncthreads" not in body(library, name)) == alone, name
    used = usage(compile_code(library.text, "sm_80").cubin)
    assert all(item.stack == 0 for item in used.values())
    found = operations(compile_code(library.text, "sm_80").cubin)[library.launches["softmax"][0].entry]
    # Of two reductions over a warp: five steps, and the result to all.
    assert (found["SHFL"], found["BAR"]) == (12, 0)


def test_a_nan_stays_in_its_row() -> None:
    item = SAMPLES["softmax"]
    x = item.inputs[0].copy()
    x[1, 3, 100] = np.nan
    (got,) = CudaLibrary([schedule(op_group(item.op, [x]), TARGET, "softmax")]).run("softmax", x)
    assert np.isnan(got[1, 3]).all()
    assert np.isnan(got).sum() == got.shape[-1]


def test_a_step_that_is_left_out_is_found() -> None:
    item = SAMPLES["softmax"]
    kernel = schedule(op_group(item.op, item.inputs), TARGET, "softmax")
    library = CudaLibrary([kernel], other(r"(__shfl_down_sync\([^;]*), 8, 32\)", r"\1, 0, 32)"))
    (got,) = library.run("softmax", *item.inputs)
    assert check("softmax", got, reference(item)[0], double_reference(item)[0])
