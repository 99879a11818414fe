"""Decompositions that PyTorch does not have: operators written with others that the op set knows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from transpiler import decomposed_histograms as histograms


@cache
def own_decompositions() -> Mapping[Any, Callable[..., Any]]:
    """By operator. Those of namespaces that this torch does not have are left out."""
    aten = torch.ops.aten
    table: dict[Any, Callable[..., Any]] = {
        aten.multilabel_margin_loss.default: multilabel_margin_loss,
        aten.histogram.bin_ct: histograms.histogram,
        aten.histogram.bins_tensor: histograms.histogram_of_edges,
        aten._histogramdd_bin_edges.default: histograms.bin_edges,
        aten._histogramdd_from_bin_cts.default: histograms.histogramdd_of_counts,
        aten._histogramdd_from_bin_tensors.default: histograms.histogramdd_of_edges,
        aten.histc.default: histograms.histc,
        aten.nonzero_static.default: histograms.nonzero_static,
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


# --- losses -------------------------------------------------------------------------------------------------------


def multilabel_margin_loss(input: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    """PyTorch's own definition, whose loss of a vector has a shape of (1,) where the operator's has none."""
    loss: Tensor = torch._decomp.decompositions.multilabel_margin_loss_forward(input, target, reduction)[0]
    return loss.reshape(()) if input.dim() < 2 else loss


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
