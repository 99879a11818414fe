"""Known indices become int32, and give the same elements."""

from __future__ import annotations

import numpy as np
import pytest

from transpiler.interpreter import run_graph
from transpiler.ir import Program, verify
from transpiler.passes import PIPELINES, run_passes
from transpiler.passes.indices import known_indices
from transpiler.text_parser import parse_graph

TEXT = """func forward(
  %x: float32[4, 5] user "x",
  %i: int64[3] constant "i",
  %j: int64[3] user "j",
) {
  %a: float32[3, 5] = take(%x, %i) {axis = 0, wraps = True}
  %b: float32[3] = index(%x, %i, %j) {axes = (0, 1)}
  %c: float32[4, 5] = index_put(%x, %b, %i, %i) {axes = (0, 1), accumulate = True, wraps = True}
  return %a, %b, %c, %i
}
"""


@pytest.mark.parametrize("largest", [3, 2**31])
def test_known_indices(largest: int) -> None:
    known = np.array([-1, 0, largest])
    before = Program({"forward": parse_graph(TEXT, {"i": known})}, {"i": known})
    after = run_passes(known_indices(before), PIPELINES["vulkan"].usual)
    verify(after.main)
    dtypes = {
        node.op.name: [value.dtype for value in node.inputs if not value.type.is_float] for node in after.main.nodes
    }
    here = "int64" if largest > 3 else "int32"
    assert dtypes == {"take": [here], "index": [here, "int64"], "index_put": [here, here]}
    assert [value.type.dtype for value in (item.value for item in after.main.outputs)][3] == "int64"
    if largest == 3:
        x, j = np.arange(20, dtype=np.float32).reshape(4, 5), np.array([4, -5, 1])
        results = [run_graph(program, {}, [x, j]) for program in (before, after)]
        for want, got in zip(*results, strict=True):
            np.testing.assert_array_equal(got, want)
