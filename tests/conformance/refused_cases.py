"""Indices and divisors that PyTorch refuses at run time, as a table of cases."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import tensor

from tests.conformance.corner_values import Case, Function, short


def out_of_bounds() -> Iterator[Case]:
    """The last input holds an index beyond the end, before the beginning, or far away; or a zero to divide by."""
    x, functional = torch.arange(12.0).reshape(3, 4), torch.nn.functional
    square = torch.ones(2, 4)
    rows: dict[str, tuple[Function, int]] = {
        "index_select": (lambda x, i: x.index_select(0, i[0]), -1),
        "gather": (lambda x, i: x.gather(0, i), -1),
        "embedding": (lambda x, i: functional.embedding(i, x), -1),
        "scatter": (lambda x, i: x.scatter(0, i, square), -1),
        "scatter_add": (lambda x, i: x.scatter_add(0, i, square), -1),
        "index_add": (lambda x, i: x.index_add(0, i[0, :2], square), -1),
        "index": (lambda x, i: x[i], -4),
        "index_both": (lambda x, i: x[i, i], -4),
        "take": (lambda x, i: torch.take(x[0, :3], i), -4),
        "index_put": (lambda x, i: torch.index_put(x, (i[0, :2],), square), -4),
        "index_fill": (lambda x, i: x.index_fill(0, i[0], 1.0), -4),
        "index_copy": (lambda x, i: x.index_copy(0, i[0, :2], square), -1),
        "index_reduce": (lambda x, i: x.index_reduce(0, i[0, :2], square, "amax"), -1),
        "scatter_reduce": (lambda x, i: x.scatter_reduce(0, i, square, "prod"), -1),
        "put": (lambda x, i: torch.ops.aten.put(x[0, :3], i, square), -4),
        "one_hot": (lambda x, i: functional.one_hot(i, 3), -1),
        "embedding_bag": (lambda x, i: functional.embedding_bag(i, x, mode="sum"), -1),
        "cross_entropy": (lambda x, i: functional.cross_entropy(x[:2, :3], i[:, 1]), -1),
        "nll_loss": (lambda x, i: functional.nll_loss(x[:2, :3], i[:, 1], reduction="none"), -1),
    }
    for name, (function, below) in rows.items():
        for label, wrong in (("beyond", 3), ("before", below), ("far", 2**62), ("far_before", -(2**62))):
            indices = tensor([[0, 2, 1, 0], [1, wrong, 0, 2]])
            if name in ("index_select", "index_add", "index_put", "index_fill", "index_copy", "index_reduce"):
                indices = indices.flip(0)
            yield Case(f"{name}/{label}", function, (x, indices))
    divisions: dict[str, Function] = {
        "zero_floor": lambda x, y: x // y,
        "zero_trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
        "zero_remainder": lambda x, y: x % y,
        "zero_fmod": lambda x, y: torch.fmod(x, y),
        "zero_number": lambda x, y: 7 % y + x,
        "zero_fused": lambda x, y: ((x + 1) // (y * 2)).float().exp(),
        "zero_in_epilogue": lambda x, y: (x.float()[:, None] @ torch.ones(1, 40)).relu() + x // y,
        "zero_reduced": lambda x, y: (x // y).sum(0),
        "zero_rank0": lambda x, y: x // y.amin(),
    }
    for name, function in divisions.items():
        for dtype in (torch.int64, torch.int32, torch.int8, torch.uint8):
            dividend, divisor = torch.arange(40).to(dtype), torch.tensor([3, 1, 2, 0] * 10).to(dtype)
            yield Case(f"{name}/{short(dtype)}", function, (dividend, divisor))
