"""How far float32 kernels may be from the exact result: roundings of what the absolute terms add up to.

A sum of n terms, in any order, is off by at most about n roundings of the sum of its absolute terms (Higham, "Accuracy
and Stability of Numerical Algorithms", chapter 4), which unlike the result never cancels. `check` allows just that, so
that no draw of the inputs can fail it by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transpiler.ir import Array
from transpiler.ops.base import Op
from transpiler.ops.winograd import POINTS, filter_rows

ROUNDING = 2.0**-24
# Roundings of what is no sum: of an exponential by the kernel's own polynomial, a division, a bias, a residual.
FEW = 16


def check(got: Array, exact: Array, magnitude: Array | float, terms: int = 1) -> None:
    """Each element off by at most a rounding of its `magnitude` for every term, and by a few more."""
    exact, magnitude = np.asarray(exact, np.float64), np.asarray(magnitude, np.float64)
    assert got.shape == exact.shape
    assert np.isfinite(exact).all()
    # A sum that is exact at zero may still be a denormal number that the device flushes.
    excess = np.abs(got - exact) / (magnitude + 2.0**-100)
    assert excess.max(initial=0) <= (FEW + terms) * ROUNDING, (excess.max(), (FEW + terms) * ROUNDING)


def magnitude(op: Op, *inputs: Array) -> Any:
    """What the roundings of `op`'s result are relative to, in the result's shape: the sum of its absolute terms."""
    wide = [array.astype(np.float64) if array.dtype == np.float32 else array for array in inputs]
    return _MAGNITUDES.get(op.name, _of_result)(op, wide)


def _of_result(op: Op, inputs: Sequence[Array]) -> Any:
    """Of what adds up positive terms, or nothing."""
    return np.abs(op.reference(*inputs))


def _of_absolute_terms(op: Op, inputs: Sequence[Array]) -> Any:
    return op.reference(*map(np.abs, inputs))


def _of_softmax(op: Any, inputs: Sequence[Array]) -> Any:
    """An exponential has its argument's error as its relative one."""
    return op.reference(*inputs) * (1 + np.ptp(inputs[0]))


def _of_log_softmax(op: Any, inputs: Sequence[Array]) -> Any:
    """x less the largest, less a logarithm whose argument is between 1 and the row's length."""
    (x,) = inputs
    return np.abs(x) + np.abs(x).max() + np.log(x.shape[op.axis]) + 1


def _of_centred_rows(op: Any, inputs: Sequence[Array]) -> Any:
    """(x - mean) / deviation, where the variance may have been found as a difference of the squares' mean."""
    x = inputs[0]
    rows = x.reshape(*((x.shape[0], op.groups) if op.name == "group_norm" else x.shape[: x.ndim - op.rank]), -1)
    mean, variance = np.abs(rows).mean(-1, keepdims=True), rows.var(-1, keepdims=True)
    squares = (rows**2).mean(-1, keepdims=True)
    return ((np.abs(rows) + mean) / np.sqrt(variance) * (2 * squares / variance)).reshape(x.shape)


def _of_attention(op: Any, inputs: Sequence[Array]) -> Any:
    """A weight's relative error is that of its score, and of the row's largest."""
    q, k, v, *mask = inputs
    length = np.sqrt((q**2).sum(-1)).max() * np.sqrt((k**2).sum(-1)).max()  # bounds sum |q k|
    scale = 1 / np.sqrt(q.shape[-1]) if op.scale is None else op.scale
    return op.reference(q, k, np.abs(v), *mask) * (1 + 4 * scale * length)


def _of_winograd(op: Any, inputs: Sequence[Array]) -> Any:
    """A bound of the sum over channels of A' [(|G| |w| |G'|) * (|B'| |x| |B|)] |A|, for all elements alike."""
    x, packed, *bias = inputs
    a, b = winograd_matrices(op.tile)
    products = np.abs(packed).sum((2, 3)).max((0, 2)).reshape(op.tile + 2, op.tile + 2)
    lines = np.abs(b).sum(1)
    tile = np.abs(a) @ (products * np.outer(lines, lines) * np.abs(x).max()) @ np.abs(a).T
    return tile.max() + sum(np.abs(array).max() for array in bias)


def winograd_matrices(tile: int) -> tuple[Array, Array]:
    """A' [M, M + 2] and B' [M + 2, M + 2] of F(M, 3): y = A' [(G w) * (B' x)], B' from what it has to fulfil."""
    points = [0.0, *(sign * p for p in POINTS[tile] for sign in (1, -1))]
    a = np.array([[p**power for p in points] + [float(power == tile - 1)] for power in range(tile)])
    g = np.array(filter_rows(tile))
    shifts = [np.eye(tile, tile + 2, tap) for tap in range(3)]
    b, *_ = np.linalg.lstsq(np.concatenate([a * g[:, tap] for tap in range(3)]), np.concatenate(shifts), rcond=None)
    return a, b


# Each term is linear in every input: where the inputs are whole eighths, float32 adds them up without a rounding.
SUMS = ("linear", "matmul", "conv", "conv_planes", "reduce_sum", "reduce_mean", "cumsum")

_MAGNITUDES: dict[str, Callable[[Any, Sequence[Array]], Any]] = {
    **dict.fromkeys(SUMS, _of_absolute_terms),
    **dict.fromkeys(("layer_norm", "group_norm"), _of_centred_rows),
    "softmax": _of_softmax,
    "log_softmax": _of_log_softmax,
    "attention": _of_attention,
    **dict.fromkeys(("winograd_planes", "winograd_last"), _of_winograd),
}
