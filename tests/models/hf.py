"""transformers models with their default configurations and random weights: id -> (module, args, kwargs)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _pixels() -> torch.Tensor:
    return torch.randn(1, 3, 224, 224, generator=_generator())


def _tokens(length: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(0, vocabulary, (1, length), generator=_generator())


def resnet50() -> Built:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig()), (_pixels(),), {}


def mobilenet_v2() -> Built:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config()), (_pixels(),), {}


def vit_base() -> Built:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig()), (_pixels(),), {}


def bert(layers: int | None = None, length: int = 128) -> Built:
    """BERT with an attention mask that hides the last quarter of the tokens, by keyword."""
    from transformers import BertConfig, BertModel

    config = BertConfig() if layers is None else BertConfig(num_hidden_layers=layers)
    mask = torch.ones(1, length, dtype=torch.int64)
    mask[:, -length // 4 :] = 0
    return BertModel(config), (_tokens(length, config.vocab_size),), {"attention_mask": mask}


def bert_tiny() -> Built:
    """Small enough to scale each of its weights in turn."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
    )
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[1, 12:] = 0
    ids = torch.randint(0, 60, (2, 16), generator=_generator())
    types = torch.randint(0, 2, (2, 16), generator=_generator())
    return BertModel(config), (ids,), {"attention_mask": mask, "token_type_ids": types}


def gpt2() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(use_cache=False)  # its cache is no tensor to compare
    return GPT2LMHeadModel(config), (_tokens(64, config.vocab_size),), {}


FAST: dict[str, Callable[[], Built]] = {"resnet50": resnet50, "bert_2layer": lambda: bert(2)}
SLOW: dict[str, Callable[[], Built]] = {
    "bert_base": bert,
    "mobilenet_v2": mobilenet_v2,
    "vit_base": vit_base,
    "gpt2": gpt2,
}
