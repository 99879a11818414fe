"""Decompositions that PyTorch does not have: operators written with others that the op set knows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def own_decompositions() -> Mapping[Any, Callable[..., Any]]:
    """By operator. Those of namespaces that this torch does not have are left out."""
    aten = torch.ops.aten
    table: dict[Any, Callable[..., Any]] = {
        aten.as_strided.default: as_strided,
        aten.as_strided_copy.default: as_strided,
        aten.as_strided_scatter.default: as_strided_scatter,
    }
    importlib.import_module("torch.nn.modules.linear_cross_entropy")  # registers them
    for name, function in (
        ("_linear_cross_entropy_batch_chunked", linear_cross_entropy),
        ("_linear_cross_entropy_batch_chunked_no_reduction", linear_cross_entropy_no_reduction),
    ):
        operator = getattr(torch.ops.torch_nn, name, None)
        if operator is not None:
            table[operator.default] = function
    return table


# --- views of storage ---------------------------------------------------------------------------------------------


def as_strided(x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Any:
    """Elements of the flat tensor at offset + sum(index * stride); only of a tensor that fills its storage in order."""
    if not _dense(x):
        return NotImplemented
    flat = x.reshape(-1)
    return flat.index_select(0, _positions(x, size, stride, storage_offset)).reshape(tuple(size))


def as_strided_scatter(
    x: Tensor, source: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Any:
    """`x` with `source` written to what `as_strided` would read."""
    if not _dense(x):
        return NotImplemented
    positions = _positions(x, size, stride, storage_offset)
    return x.reshape(-1).scatter(0, positions, source.reshape(-1)).reshape(x.shape)


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() and x.storage_offset() == 0


def _positions(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None) -> Tensor:
    positions = torch.full((1,) * len(size), offset or 0, dtype=torch.int64, device=x.device)
    for axis, (count, step) in enumerate(zip(size, stride, strict=True)):
        shape = [1] * len(size)
        shape[axis] = count
        positions = positions + (torch.arange(count, device=x.device) * step).reshape(shape)
    return positions.expand(tuple(size)).reshape(-1)


# --- losses -------------------------------------------------------------------------------------------------------


def linear_cross_entropy(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, class_weight: Tensor | None, reduction: str,
    ignore_index: int, label_smoothing: float, *options: Any,
) -> Any:  # fmt: skip
    """cross_entropy(linear(input)); the gradients that it could return as well are refused."""
    if any(options[-3:]):
        return NotImplemented
    loss = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(input, weight, bias), target, class_weight,
        ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
    )  # fmt: skip
    nothing = input.new_zeros(0)
    return loss, nothing, nothing, nothing


def linear_cross_entropy_no_reduction(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, class_weight: Tensor | None,
    ignore_index: int, *options: Any,
) -> Any:  # fmt: skip
    """cross_entropy(linear(input)) of each row."""
    return torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(input, weight, bias), target, class_weight,
        ignore_index=ignore_index, reduction="none",
    )  # fmt: skip
