"""Cases of PyTorch's corners, and the tensors that they start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, tensor

INF, NAN = float("inf"), float("nan")
INTS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
HALVES = (torch.float16, torch.bfloat16)
FLOATS = (*HALVES, torch.float32, torch.float64)
NUMBERS = (*INTS, *FLOATS)
Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    id: str
    function: Function
    inputs: tuple[Tensor, ...]
    close: bool = False


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def spread(dtype: torch.dtype, *shape: int) -> Tensor:
    """Small whole numbers of both signs, zeros among them."""
    count = 1
    for size in shape:
        count *= size
    values = (torch.arange(count) * 7) % 11 - 5
    if dtype is torch.bool:
        return (values % 3 == 0).reshape(shape)
    return (values.abs() if dtype is torch.uint8 else values).to(dtype).reshape(shape)


def corners(dtype: torch.dtype) -> Tensor:
    """37 values (two vectors and a rest) that go wrong: zeros, limits, NaN, infinities."""
    facts = torch.finfo(dtype)
    values = [0.0, -0.0, 1.0, -1.0, NAN, INF, -INF, facts.max, facts.min, facts.tiny, -facts.tiny,
              facts.smallest_normal / 4, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 3.0, 1e4, -1e4]  # fmt: skip
    return tensor((values * 2)[:37], dtype=torch.float64).to(dtype)


def pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every corner against every corner."""
    x = corners(dtype)[:21]
    return x.repeat(21), x.repeat_interleave(21)
