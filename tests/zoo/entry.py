"""One architecture of the zoo, and how the tables of the libraries build theirs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Inputs = Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Entry:
    """`build` gives the module and example inputs; the weights are redrawn unless `own_weights` (parameters that
    only make sense in a range, such as decay rates)."""

    name: str
    library: str
    family: str
    build: Callable[[], Built]
    own_weights: bool = False


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def ids(*shape: int, high: int = 96) -> torch.Tensor:
    """Token ids in 3..high-1: no example has the padding ids of the usual tokenizers."""
    return torch.randint(3, high, shape, generator=generator())


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator())


def mask(batch: int, length: int, padding: int = 3) -> torch.Tensor:
    """1 for tokens, 0 for padding: the second row ends early."""
    keep = torch.ones(batch, length, dtype=torch.int64)
    keep[1:, length - padding :] = 0
    return keep


def tokens(length: int = 12, *, masked: bool = True) -> Inputs:
    """Two rows of tokens, with a padding mask by keyword."""

    def draw() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (ids(2, length),), {"attention_mask": mask(2, length)} if masked else {}

    return draw


def sequences(source: int = 10, target: int = 7, *, masked: bool = True, padding: int = 3) -> Inputs:
    """What encoder-decoders take."""

    def draw() -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = {"input_ids": ids(2, source), "decoder_input_ids": ids(2, target)}
        return (), {**given, "attention_mask": mask(2, source, padding)} if masked else given

    return draw


def image(size: int = 32, channels: int = 3) -> Inputs:
    return lambda: ((floats(1, channels, size, size),), {})


def audio(*shape: int) -> Inputs:
    return lambda: ((floats(*shape),), {})


def transformers(name: str, inputs: Inputs, **config: Any) -> Callable[[], Built]:
    """A class of transformers; `config` are arguments of its configuration, dicts of sub-configurations too."""

    def build() -> Built:
        library = importlib.import_module("transformers")
        kind = getattr(library, name)
        settings = kind.config_class(**config)
        if "attn_implementation" in config:
            settings._attn_implementation = config["attn_implementation"]
        args, kwargs = inputs()
        torch.manual_seed(0)
        return kind._from_config(settings), args, kwargs

    return build


def parameters(module: nn.Module) -> int:
    """How many; the zoo is of small models."""
    return sum(item.numel() for item in module.parameters())
