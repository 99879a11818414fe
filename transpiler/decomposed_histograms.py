"""Histograms and `nonzero_static` written with other operators; `decomposed_here.py` puts them into the table.

Source of what they return: aten/src/ATen/native/Histogram.cpp and cpu/HistogramKernel.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def histogram(
    input: Tensor, bins: int, *, range: Sequence[float] | None = None, weight: Tensor | None = None,
    density: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Bins of equal width, from the least to the largest element unless `range` says otherwise."""
    points = input.reshape(-1, 1)
    (edges,) = bin_edges(points, [bins], range=range)
    return _counts(points, [edges], weight, density), edges


def histogram_of_edges(
    input: Tensor, bins: Tensor, *, weight: Tensor | None = None, density: bool = False
) -> tuple[Tensor, Tensor]:
    return _counts(input.reshape(-1, 1), [bins], weight, density), bins.clone()


def bin_edges(
    input: Tensor, bins: Sequence[int], *, range: Sequence[float] | None = None, weight: Tensor | None = None,
    density: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Per column of input[..., D]: bins + 1 edges. An empty range is widened by half to both sides."""
    columns = input.reshape(-1, input.shape[-1])
    edges = []
    for axis, count in enumerate(bins):
        low, high = _limits(columns[:, axis], None if range is None else range[2 * axis : 2 * axis + 2], 0.5)
        edges.append(torch.linspace(low, high, count + 1, dtype=input.dtype))
    return edges


def histogramdd_of_counts(
    input: Tensor, bins: Sequence[int], *, range: Sequence[float] | None = None, weight: Tensor | None = None,
    density: bool = False,
) -> Tensor:  # fmt: skip
    return histogramdd_of_edges(input, bin_edges(input, bins, range=range), weight=weight, density=density)


def histogramdd_of_edges(
    input: Tensor, bins: Sequence[Tensor], *, weight: Tensor | None = None, density: bool = False
) -> Tensor:
    return _counts(input.reshape(-1, input.shape[-1]), bins, weight, density)


def histc(input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Any:
    """The range is that of the data where `min` equals `max`; a given range has an importer."""
    if min != max:
        return NotImplemented
    x = input.reshape(-1)
    low, high = _limits(x, None, 1.0)
    if x.numel() == 0:
        return x.new_zeros(bins)
    # The quotient is rounded towards zero here, not by the cast: devices may divide less exactly where nothing jumps.
    place = torch.div((x - low) * bins, high - low, rounding_mode="trunc").to(torch.int64).clamp(0, bins - 1)
    return x.new_zeros(bins).scatter_add(0, place, torch.ones_like(x))


def nonzero_static(input: Tensor, *, size: int, fill_value: int = -1) -> Tensor:
    """The indices of the first `size` elements that are not 0, in order; rows of `fill_value` behind them."""
    if input.dim() == 0:
        return input.new_zeros((size, 0), dtype=torch.int64)
    flags = (input != 0).reshape(-1)
    rank = flags.to(torch.int64).cumsum(0) - 1
    slot = torch.where(flags & (rank < size), rank, size)
    places = torch.arange(flags.numel(), dtype=torch.int64)
    found = torch.full((size + 1,), -1, dtype=torch.int64).scatter(0, slot, places)[:size]
    columns = []
    for axis, length in enumerate(input.shape):
        stride = math.prod(input.shape[axis + 1 :])
        index = torch.div(found, max(stride, 1), rounding_mode="floor") % max(length, 1)
        columns.append(torch.where(found < 0, fill_value, index))
    return torch.stack(columns, 1)


def _limits(x: Tensor, range: Sequence[float] | None, widen: float) -> tuple[Any, Any]:
    """The outer edges: Python numbers, or tensors without axes if they are the data's."""
    if range is not None:
        low, high = range
        return (low - widen, high + widen) if low == high else (low, high)
    if x.numel() == 0:
        return 0.0, 1.0
    least, largest = x.amin(), x.amax()
    same = least == largest
    return torch.where(same, least - widen, least), torch.where(same, largest + widen, largest)


def _counts(points: Tensor, edges: Sequence[Tensor], weight: Tensor | None, density: bool) -> Tensor:
    """How many of points[N, D] are in each box; the last bin has its right edge too. Weights are added instead."""
    shape = [edge.numel() - 1 for edge in edges]
    total = math.prod(shape)
    place = torch.zeros_like(points[:, 0], dtype=torch.int64)
    inside = torch.ones_like(points[:, 0], dtype=torch.bool)
    for axis, edge in enumerate(edges):
        x = points[:, axis].contiguous()
        found = torch.searchsorted(edge, x, right=True) - 1
        found = torch.where(x == edge[-1], shape[axis] - 1, found)
        place = place * shape[axis] + found
        inside = inside & (x >= edge[0]) & (x <= edge[-1])
    amount = torch.ones_like(points[:, 0]) if weight is None else weight.reshape(-1).to(points.dtype)
    # What is outside goes into one more bin, which is dropped.
    bins = points.new_zeros(total + 1).scatter_add(0, torch.where(inside, place, total), amount)
    result = bins[:total].reshape(shape)
    if density:
        result = result / result.sum()
        for axis, edge in enumerate(edges):
            result = result / edge.diff().reshape([-1] + [1] * (len(shape) - 1 - axis))
    return result
