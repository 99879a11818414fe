"""Attention of few queries over many keys: blocks take parts of the keys, a second launch puts them together."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest

from tests.conformance.heads import Heads, exact
from tests.conformance.kernels import op_group
from tests.cuda.library import CudaLibrary, other
from tests.cuda.test_attention import drawn
from transpiler.gpu.cubin import usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.ir import Array
from transpiler.ops.attention import Attention
from transpiler.ops.base import Sample, rng
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")


@cache
def samples() -> Mapping[str, Sample]:
    found = {"decode": Sample("decode", Attention(), drawn("parts", 1, 460, 64, 32))}
    q, k, v = (x.astype(np.float32) for x in drawn("parts32", 3, 515, 16, 24))
    found["float32"] = Sample("float32", Attention(), (q, k, v))
    # Rows that attend to the first part alone, to the last, to nothing, and to a key that is NaN in one head.
    q, k, v = drawn("masked", 5, 520, 16, 16)
    keep = rng("keep").random((5, 520)) < 0.5
    keep[0, 70:], keep[1, :515], keep[2], keep[4, 519], keep[1, 519] = False, False, False, False, False
    keep[3, 519] = keep[1, 517] = True
    k[0, 1, 519, 2] = np.nan
    found["masked"] = Sample("masked", Attention(), (q, k, v, keep))
    k = k.copy()
    k[0, 1, 519, 2] = np.inf
    found["added"] = Sample("added", Attention(), (q, k, v, np.where(keep, 0, -np.inf).astype(np.float16)))
    return found


def error(got: Array, sample: Sample) -> float:
    """The largest error of what is not NaN, over what the dtype allows."""
    with np.errstate(invalid="ignore"):
        want = np.asarray(sample.op.reference(*(x if x.dtype == bool else x.astype(np.float64) for x in sample.inputs)))
    assert np.array_equal(np.isnan(got), np.isnan(want))
    allowed = 2e-6 if got.dtype == np.float32 else 2.0**-9
    return float(np.nanmax(np.abs(got.astype(np.float64) - want)) / (allowed * np.nanmax(np.abs(want))))


def test_parts() -> None:
    library = CudaLibrary([schedule(op_group(x.op, x.inputs), TARGET, name) for name, x in samples().items()])
    for name, sample in samples().items():
        first, _ = library.launches[name]
        assert first.grid[0] == 4, name
        (got,) = library.run(name, *sample.inputs)
        assert error(got, sample) < 1, name
    (got,) = library.run("masked", *samples()["masked"].inputs)
    assert np.isnan(got[0, 1, 3]).all()
    assert (got[0, :, 2] == 0).all()
    used = usage(compile_code(library.text, "sm_80").cubin)
    assert all(used[launch.entry].stack == 0 for name in samples() for launch in library.launches[name])


def test_views_in_parts() -> None:
    """A cache that is larger than what counts, read where it is; the result is written transposed."""
    case = Heads("cache", "float16", 2, 1, 461, 2, 32)
    group, inputs = case.group("parts")
    library = CudaLibrary([schedule(group, TARGET, "parts")])
    assert len(library.launches["parts"]) == 2
    (got,) = library.run("parts", *inputs)
    want = exact(group, inputs)
    assert np.abs(got - want).max() < 2 * 2.0**-10 * np.abs(want).max()


@pytest.mark.parametrize(
    ("length", "keys", "causal", "launches"),
    [(1, 448, False, 1), (64, 449, False, 2), (65, 449, False, 1), (1, 700, True, 1)],
)
def test_where_it_pays(length: int, keys: int, causal: bool, launches: int) -> None:
    item = schedule(op_group(Attention(causal=causal), drawn("pays", length, keys, 16, 16)), TARGET, "pays")
    assert len(CudaLibrary([item]).launches["pays"]) == launches


ERRORS = {
    "the first part alone": other(r"v_1 = 0; v_1 < 2", "v_1 = 0; v_1 < 1"),
    "totals in the place of maxima": other(r"\+ 288\)\] - ", "+ 300)] - "),
}


@pytest.mark.parametrize("name", ERRORS)
def test_planted_errors_are_found(name: str) -> None:
    sample = samples()["float32"]
    library = CudaLibrary([schedule(op_group(sample.op, sample.inputs), TARGET, "parts")], ERRORS[name])
    (got,) = library.run("parts", *sample.inputs)
    assert not error(got, sample) < 1
