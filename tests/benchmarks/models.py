"""The models that are timed, with weights that keep activations alive, and the share of the best peer's time we aim at
on each target.

Random weights as PyTorch draws them make deep networks fade towards zero: convolutions of zeros and of denormal numbers
take another time than those of real features. So weights are redrawn with the gain of their activation, batch norms
get the statistics of their own inputs, and `statistics` measures what is left at every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.models.redraw import redraw

Built = tuple[nn.Module, tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Benchmark:
    """`build` makes the module (in eval mode) and its inputs; `bars` are our time over the best peer's, at most, for
    every target that is timed on it."""

    name: str
    title: str
    bars: Mapping[str, float]
    build: Callable[[], Built]


class _Only(nn.Module):
    """A model of transformers that returns one tensor."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(self.model(x), self.output)
        return result


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 256), nn.Linear(256, 128), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))
        return logits


def _floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _tokens(length: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(0))


def _ready(module: nn.Module, *inputs: torch.Tensor, gain: float = 1.0) -> Built:
    """Redrawn weights; every batch norm normalises what reaches it, as after training."""
    redraw(module, seed=1, gain=gain)
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            module(*inputs)
    return module.eval(), inputs


class _Product(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ y


def _convolution() -> Built:
    return _ready(nn.Conv2d(64, 64, 3, padding=1), _floats(1, 64, 56, 56))


def _mnist() -> Built:
    from tests.models.mnist import MnistClassifier

    return _ready(MnistClassifier(), _floats(1, 1, 28, 28), gain=2.0)


def _resnet50() -> Built:
    from transformers import ResNetConfig, ResNetForImageClassification

    return _ready(_Only(ResNetForImageClassification(ResNetConfig()), "logits"), _floats(1, 3, 224, 224))


def _mobilenet_v2() -> Built:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    model = MobileNetV2ForImageClassification(MobileNetV2Config())
    return _ready(_Only(model, "logits"), _floats(1, 3, 224, 224))


def _bert() -> Built:
    from transformers import BertConfig, BertModel

    return _ready(_Only(BertModel(BertConfig()), "last_hidden_state"), _tokens(128, 30522))


def _vit() -> Built:
    from transformers import ViTConfig, ViTForImageClassification

    return _ready(_Only(ViTForImageClassification(ViTConfig()), "logits"), _floats(1, 3, 224, 224))


def _gpt2() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    return _ready(_Only(GPT2LMHeadModel(GPT2Config(use_cache=False)), "logits"), _tokens(64, 50257))


def _timm(name: str) -> Built:
    from tests.zoo.without_torchvision import import_timm

    torch.manual_seed(0)
    return _ready(import_timm().create_model(name, pretrained=False), _floats(1, 3, 224, 224))


def _unet() -> Built:
    from tests.models.unet import UNet

    return _ready(UNet(width=64), _floats(1, 3, 128, 128))


def _lstm() -> Built:
    from tests.models.lstm import LSTMModel

    return _ready(LSTMModel(128, 256, 2, 10), _floats(1, 64, 128), torch.zeros(2, 1, 256), torch.zeros(2, 1, 256))


def _cpu(bar: float) -> dict[str, float]:
    return {"cpu": bar}


_LIST = (
    Benchmark("mnist", "MNIST classifier", {"cpu": 0.75, "vulkan": 1.0}, _mnist),
    Benchmark("mlp_b1", "MLP 784-256-128-10", _cpu(0.6), lambda: _ready(_Mlp(), _floats(1, 784), gain=2.0)),
    Benchmark("mlp_b64", "MLP, batch 64", _cpu(0.85), lambda: _ready(_Mlp(), _floats(64, 784), gain=2.0)),
    Benchmark("resnet50", "ResNet-50", {"cpu": 0.75, "vulkan": 1.0}, _resnet50),
    Benchmark("mobilenet_v2", "MobileNetV2", {"cpu": 0.75, "vulkan": 1.0}, _mobilenet_v2),
    Benchmark("bert_base", "BERT-base, 128 tokens", _cpu(0.9), _bert),
    Benchmark("vit_base", "ViT-base", _cpu(0.9), _vit),
    Benchmark("gpt2", "GPT-2, 64 tokens", _cpu(0.9), _gpt2),
    Benchmark("convnext_tiny", "ConvNeXt-tiny", _cpu(0.9), lambda: _timm("convnext_tiny")),
    Benchmark("efficientnet_b0", "EfficientNet-b0", _cpu(0.9), lambda: _timm("efficientnet_b0")),
    Benchmark("unet", "UNet 64-128-256, 128x128", _cpu(0.9), _unet),
    Benchmark("lstm", "LSTM 2x256, 64 steps", _cpu(0.8), _lstm),
    Benchmark("convolution", "Convolution 3x3, 64 channels, 56x56", {"vulkan": 1.0}, _convolution),
    Benchmark(
        "product", "Matrix product 1024", {"vulkan": 0.7}, lambda: _ready(_Product(), *_floats(2, 1024, 1024).unbind())
    ),
)
MODELS: Mapping[str, Benchmark] = {item.name: item for item in _LIST}


def models_of(target: str) -> list[str]:
    return [item.name for item in _LIST if target in item.bars]


@contextmanager
def _observed(module: nn.Module, see: Callable[[torch.Tensor], None]) -> Iterator[None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        for item in output if isinstance(output, tuple) else (output,):
            if isinstance(item, torch.Tensor) and item.is_floating_point():
                see(item)

    handles = [child.register_forward_hook(hook) for child in module.modules() if not list(child.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def statistics(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Over the outputs of all layers: the least and the largest standard deviation, the largest share of zeros and of
    denormal numbers; and those of the result."""
    seen: list[tuple[float, float, float]] = []

    def see(x: torch.Tensor) -> None:
        size = x.abs()
        denormal = (size > 0) & (size < torch.finfo(x.dtype).tiny)
        spread = float(x.std()) if x.numel() > 1 else float(size.max())
        seen.append((spread, float((x == 0).float().mean()), float(denormal.float().mean())))

    with torch.no_grad(), _observed(module, see):
        result = module(*inputs)
    first = result[0] if isinstance(result, tuple) else result
    spreads, zeros, denormals = zip(*seen, strict=True)
    return {
        "least std of a layer": min(spreads),
        "largest std of a layer": max(spreads),
        "largest share of zeros": max(zeros),
        "largest share of denormals": max(denormals),
        "mean of the output": float(first.mean()),
        "std of the output": float(first.std()),
    }
