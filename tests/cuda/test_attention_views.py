"""Attention that reads views of one tensor where they are, and writes its result transposed."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest

from tests.conformance.heads import Heads, exact
from tests.cuda.library import CudaLibrary, other
from transpiler.ops.attention import Attention
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")
# On tensor cores, by multiply-adds, and by the rule that takes what those do not.
CASES: Mapping[str, Heads] = {
    "chunks": Heads("chunks", "float16", 2, 19, 19, 3, 16, Attention(causal=True)),
    "stacked": Heads("stacked", "bfloat16", 2, 70, 70, 2, 24),
    "cache": Heads("cache", "float16", 3, 2, 67, 2, 32),
    "chunks_float32": Heads("chunks", "float32", 2, 18, 18, 2, 16),
    "stacked_float32": Heads("stacked", "float32", 1, 9, 9, 3, 8, Attention(causal=True)),
    "odd_rows": Heads("chunks", "float16", 1, 9, 9, 3, 6),
    "float64": Heads("stacked", "float64", 2, 9, 9, 2, 5),
    "decode_cache": Heads("cache", "float64", 1, 1, 40, 2, 6),
}


def error(name: str, library: CudaLibrary) -> float:
    """The largest error, over what the dtype allows."""
    group, inputs = CASES[name].group(name)
    (got,) = library.run(name, *inputs)
    want = exact(group, inputs)
    assert got.shape == want.shape
    allowed = {"float32": 2e-6, "float64": 1e-14}.get(CASES[name].dtype)
    allowed = allowed or 2 * float(ml_dtypes.finfo(got.dtype).eps)
    return float(np.abs(got.astype(np.float64) - want).max() / (allowed * np.abs(want).max()))


def test_views_are_read_where_they_are() -> None:
    library = CudaLibrary([schedule(case.group(name)[0], TARGET, name) for name, case in CASES.items()])
    for name in CASES:
        assert len(library.launches[name]) == 1, name
        assert error(name, library) < 1, name
    assert library.text.count("mma_f16(") + library.text.count("mma_bf16(") > 3


@pytest.mark.parametrize("name", ["chunks", "stacked_float32"])
def test_wrong_places_are_found(name: str) -> None:
    """The steps of one operand are those of another: of a dense one."""
    case = CASES[name]
    pitch = 3 * case.heads * case.elements
    item = schedule(case.group(name)[0], TARGET, name)
    library = CudaLibrary([item], other(rf"\* {pitch}\)", f"* {pitch // 3})"))
    assert not error(name, library) < 1
