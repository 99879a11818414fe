"""The bounds of kernels' errors: any order of float32 additions is inside them, a term that is missing is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.vulkan.bounds import check, magnitude, winograd_matrices
from transpiler.ir import Array
from transpiler.ops import REGISTRY as R
from transpiler.ops.base import Op
from transpiler.ops.winograd import POINTS, PackWinograd, filter_rows


def draw(*shape: int) -> Array:
    return np.random.default_rng().standard_normal(shape).astype(np.float32)


# Op, inputs, terms of a sum.
CASES: dict[str, tuple[Callable[[], Op], tuple[tuple[int, ...], ...], int]] = {
    "linear": (lambda: R["linear"](), ((3, 40), (5, 40), (5,)), 40),
    "matmul": (lambda: R["matmul"](), ((3, 40), (40, 5)), 40),
    "conv": (lambda: R["conv"]((1, 1), (1, 1), (1, 1)), ((1, 4, 5, 5), (3, 4, 3, 3)), 36),
    "reduce_mean": (lambda: R["reduce_mean"]((0,)), ((300, 3),), 300),
    "cumsum": (lambda: R["cumsum"](0), ((300, 3),), 300),
    "softmax": (lambda: R["softmax"](1), ((3, 300),), 300),
    "log_softmax": (lambda: R["log_softmax"](1), ((3, 300),), 300),
    "layer_norm": (lambda: R["layer_norm"](1, 1e-5), ((3, 300),), 300),
    "group_norm": (lambda: R["group_norm"](2, 1e-5), ((1, 6, 50),), 150),
    "rms_norm": (lambda: R["rms_norm"](1, 1e-5), ((3, 300),), 300),
    "attention": (lambda: R["attention"](causal=True), ((2, 9, 8), (2, 9, 8), (2, 9, 8)), 17),
}


@pytest.mark.parametrize("name", CASES)
def test_float32_passes_and_a_missing_element_fails(name: str) -> None:
    make, shapes, terms = CASES[name]
    op, inputs = make(), [draw(*shape) for shape in shapes]
    wide = [array.astype(np.float64) for array in inputs]
    narrow, exact = np.asarray(op.reference(*inputs)), np.asarray(op.reference(*wide))
    check(narrow, exact, magnitude(op, *inputs), terms)
    missing = [array.copy() for array in wide]
    missing[0].flat[-1] = 0
    wide[0].flat[-1] = inputs[0].flat[-1] = 1.5
    with pytest.raises(AssertionError):
        check(np.asarray(op.reference(*missing)), np.asarray(op.reference(*wide)), magnitude(op, *inputs), terms)


def test_a_sum_that_cancels_passes_in_any_order() -> None:
    half = draw(4000)
    x = np.concatenate([half, -half])
    x[0] = np.nextafter(x[0], np.float32(9))
    op = R["reduce_sum"]((0,))
    exact = op.reference(x.astype(np.float64))
    for order in (np.arange(8000), np.random.default_rng().permutation(8000)):
        got = np.cumsum(x[order])[-1]
        check(got, exact, magnitude(op, x), terms=8000)
    with pytest.raises(AssertionError):
        check(exact + 4 * magnitude(op, x) / 8000, exact, magnitude(op, x), terms=8000)


def test_nothing_is_allowed_where_all_terms_are_zero() -> None:
    check(np.zeros(3, np.float32), np.zeros(3), 0.0)
    with pytest.raises(AssertionError):
        check(np.float32([0, 0, 1e-20]), np.zeros(3), 0.0)
    with pytest.raises(AssertionError):
        check(np.float32([0, np.nan, 0]), np.zeros(3), 1.0)


@pytest.mark.parametrize("tile", POINTS)
def test_winograd(tile: int) -> None:
    """The matrices compute a convolution, and the float32 one is inside the bound, which one absent product is not."""
    a, b = winograd_matrices(tile)
    d, w = draw(tile + 2).astype(np.float64), draw(3).astype(np.float64)
    g = np.array(filter_rows(tile))
    np.testing.assert_allclose(a @ ((g @ w) * (b @ d)), np.convolve(d, w[::-1], "valid"), rtol=0, atol=1e-12)

    op = R["winograd_planes"](3, (0, 0), tile)
    x, filters = draw(1, 8, tile + 2, tile + 2), draw(3, 8, 3, 3)
    packed = PackWinograd(tile).reference(filters)
    exact = R["conv"]((1, 1), (0, 0), (1, 1)).reference(x.astype(np.float64), filters.astype(np.float64))
    a, b, g = (matrix.astype(np.float32) for matrix in (a, b, g))
    points = (g @ filters @ g.T) * (b @ x @ b.T)
    got = (a @ points.sum(1) @ a.T)[None]
    check(got, exact, magnitude(op, x, packed), terms=8 + 36)
    missing = (a @ points[:, 1:].sum(1) @ a.T)[None]
    with pytest.raises(AssertionError):
        check(missing, exact, magnitude(op, x, packed), terms=8 + 36)
