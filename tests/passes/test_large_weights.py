"""Weights in pieces: the same numbers, and the same indices are out of bounds."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from tests.passes.support import assert_same_meaning, assert_unchanged, graph
from transpiler.interpreter import run_graph
from transpiler.ir import Array, Program, verify
from transpiler.passes import PIPELINES, run_passes
from transpiler.passes.large_weights import LIMIT, in_pieces
from transpiler.passes.weights import split

# Tied weights of 10 rows of 3: pieces of 4, 4 and 2 rows with a limit of 50 bytes.
TEXT = """
func forward(
  %i: int64[2, 5] user "i",
  %w: float32[10, 3] parameter "w",
  %b: float32[10] parameter "b",
) {
  %x: float32[2, 5, 3] = take(%w, %i) {axis = 0, wraps = WRAPS}
  %y: float32[2, 5, 10] = linear(%x, %w, %b)
  return %x, %y
}
"""
PIECES = 50


def programs(wraps: bool) -> tuple[Program, Program]:
    before = Program({"forward": graph(TEXT.replace("WRAPS", str(wraps)))})
    after = before.with_main(in_pieces(before.main, PIECES))
    verify(after.main)
    return before, after


@pytest.mark.parametrize("wraps", [True, False])
def test_rows_of_all_pieces(wraps: bool) -> None:
    before, after = programs(wraps)
    assert_same_meaning(before, after)
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": rng.standard_normal((10, 3), np.float32),
        "b": rng.standard_normal(10, np.float32),
    }
    index = np.arange(10).reshape(2, 5) - (10 if wraps else 0)
    for want, got in zip(run_graph(before, weights, [index]), run_graph(after, weights, [index]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    for wrong in (10, -11, *(() if wraps else (-1,))):
        index[1, 2] = wrong
        with pytest.raises(IndexError):
            run_graph(after, weights, [index])


def test_tied_weights_are_cut_once() -> None:
    _, after = programs(False)
    clean = run_passes(after, PIPELINES["vulkan"].usual)
    prepare, main = split(clean.main)
    assert sorted(item.value.shape for item in prepare.outputs if item.value.type.rank == 2) == [(2, 3), (4, 3), (4, 3)]
    assert not [item for item in main.inputs if item.value.shape == (10, 3)]


def test_what_fits_stays() -> None:
    assert_unchanged(partial(in_pieces, limit=120), TEXT.replace("WRAPS", "True"))


def test_the_limit_is_what_every_device_has() -> None:
    assert LIMIT == 134_217_728
    for passes in (PIPELINES["vulkan"].usual, PIPELINES["vulkan"].exact, PIPELINES["vulkan"].unfolded):
        assert "in_pieces" in [step.__name__ for step in passes]
