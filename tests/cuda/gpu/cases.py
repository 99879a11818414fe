"""What is checked and timed on a GPU: products, convolutions, attention, whole models. Nothing here needs TVM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transpiler.request import PRECISIONS, Precision

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Gemm:
    """x[rows, inner] @ w[columns, inner].T"""

    rows: int
    columns: int
    inner: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.columns * self.inner

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.rows, self.inner), (self.columns, self.inner)

    def torch(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, w)


@dataclass(frozen=True)
class Convolution:
    """x[batch, channels, size, size] with filters[out, channels, kernel, kernel], padded to keep the size."""

    batch: int
    channels: int
    out: int
    kernel: int
    size: int
    stride: int = 1

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def flops(self) -> int:
        positions = self.batch * (-(-self.size // self.stride)) ** 2
        return 2 * positions * self.out * self.channels * self.kernel**2

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        image = (self.batch, self.channels, self.size, self.size)
        return image, (self.out, self.channels, self.kernel, self.kernel)

    def torch(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, w, stride=self.stride, padding=self.padding)


@dataclass(frozen=True)
class Heads:
    """Attention of batch x heads, `queries` over `keys`, of `size` elements each."""

    batch: int
    heads: int
    queries: int
    keys: int
    size: int
    causal: bool = False

    @property
    def flops(self) -> int:
        whole = 4 * self.batch * self.heads * self.queries * self.keys * self.size
        return whole // 2 if self.causal else whole

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        key = (self.batch, self.heads, self.keys, self.size)
        return (self.batch, self.heads, self.queries, self.size), key, key

    def torch(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


Case = Gemm | Convolution | Heads
BATCHES = (1, 2, 4, 8, 16, 32)
# By model the tokens of one input, the width, and the width of the layers between.
TRANSFORMERS = {"bert": (128, 768, 3072), "vit": (197, 768, 3072), "llama7b": (512, 4096, 11008)}
# ResNet-50's: channels, filters, kernel, size of the image, stride; how often does not matter to a geometric mean.
RESNET = (
    (3, 64, 7, 224, 2), (64, 64, 1, 56, 1), (64, 64, 3, 56, 1), (64, 256, 1, 56, 1), (256, 64, 1, 56, 1),
    (256, 128, 1, 56, 1), (128, 128, 3, 56, 2), (128, 512, 1, 28, 1), (256, 512, 1, 56, 2), (512, 128, 1, 28, 1),
    (128, 128, 3, 28, 1), (512, 256, 1, 28, 1), (256, 256, 3, 28, 2), (256, 1024, 1, 14, 1), (512, 1024, 1, 28, 2),
    (1024, 256, 1, 14, 1), (256, 256, 3, 14, 1), (1024, 512, 1, 14, 1), (512, 512, 3, 14, 2), (512, 2048, 1, 7, 1),
    (1024, 2048, 1, 14, 2), (2048, 512, 1, 7, 1), (512, 512, 3, 7, 1),
)  # fmt: skip


def kernel_cases(tiny: bool) -> dict[str, dict[str, Case]]:
    """By part, by name: what is timed kernel by kernel in bfloat16."""
    if tiny:
        return {
            "products": {"tiny": Gemm(24, 48, 64)},
            "convolutions": {"tiny": Convolution(1, 8, 8, 3, 6)},
            "attention": {"tiny": Heads(1, 1, 16, 16, 16)},
        }
    products: dict[str, Case] = {"square8192": Gemm(8192, 8192, 8192)}
    for model, (tokens, width, between) in TRANSFORMERS.items():
        for batch in BATCHES:
            rows = tokens * batch
            products[f"{model}_b{batch}_qkv"] = Gemm(rows, 3 * width, width)
            products[f"{model}_b{batch}_out"] = Gemm(rows, width, width)
            products[f"{model}_b{batch}_up"] = Gemm(rows, between, width)
            products[f"{model}_b{batch}_down"] = Gemm(rows, width, between)
    convolutions: dict[str, Case] = {
        f"b{batch}_{channels}x{size}_{out}k{kernel}s{stride}": Convolution(batch, channels, out, kernel, size, stride)
        for batch in (1, 32)
        for channels, out, kernel, size, stride in RESNET
    }
    attention: dict[str, Case] = {
        "bert_b1": Heads(1, 12, 128, 128, 64), "bert_b32": Heads(32, 12, 128, 128, 64),
        "vit_b32": Heads(32, 12, 197, 197, 64), "gpt2_b1": Heads(1, 12, 512, 512, 64, True),
        "gpt2_b32": Heads(32, 12, 512, 512, 64, True), "llama_b1": Heads(1, 32, 2048, 2048, 128, True),
        "long": Heads(4, 32, 4096, 4096, 128), "long_causal": Heads(4, 32, 4096, 4096, 128, True),
        "decode": Heads(8, 32, 1, 4096, 128),
    }  # fmt: skip
    return {"products": products, "convolutions": convolutions, "attention": attention}


def _tokens(batch: int, length: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))


def _floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _repeated(name: str, batch: int) -> Built:
    from tests.benchmarks.models import MODELS

    module, inputs = MODELS[name].build()
    return module, tuple(_batched(item, batch, name) for item in inputs), {}


def _batched(item: torch.Tensor, batch: int, name: str) -> torch.Tensor:
    axis = 1 if name == "lstm" and item.shape[0] != 1 else 0  # the states of layers come first
    return torch.cat([item] * batch, axis)


def _gpt2(batch: int) -> Built:
    module, _, kwargs = _repeated("gpt2", batch)
    return module, (_tokens(batch, 512, 50257),), kwargs


def _tiny(batch: int) -> Built:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).eval(), (_floats(batch, 6),), {}


MODELS: Mapping[str, Callable[[int], Built]] = {
    "mlp": lambda batch: _repeated("mlp_b1", batch),
    "lstm": lambda batch: _repeated("lstm", batch),
    "resnet50": lambda batch: _repeated("resnet50", batch),
    "mobilenet_v2": lambda batch: _repeated("mobilenet_v2", batch),
    "bert_base": lambda batch: _repeated("bert_base", batch),
    "vit_base": lambda batch: _repeated("vit_base", batch),
    "gpt2": _gpt2,
}


@dataclass(frozen=True)
class ModelCase:
    name: str
    batch: int
    precision: Precision

    @property
    def key(self) -> str:
        return f"{self.name}_b{self.batch}_{self.precision}"

    def build(self) -> Built:
        return (_tiny if self.name == "tiny" else MODELS[self.name])(self.batch)


def model_cases(tiny: bool) -> list[ModelCase]:
    if tiny:
        return [ModelCase("tiny", 2, "float32"), ModelCase("tiny", 1, "bfloat16")]
    precisions: tuple[Precision, ...] = ("bfloat16", "float32")
    return [ModelCase(name, batch, precision) for name in MODELS for batch in (1, 32) for precision in precisions]


class Odd(nn.Module):
    """Sizes that are multiples of no tile: a convolution, a linear layer, attention over the positions, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 21, 3, padding=1), nn.Conv2d(21, 21, 1)
        self.key, self.value, self.norm = nn.Linear(21, 21), nn.Linear(21, 21), nn.LayerNorm(21)
        self.head = nn.Linear(21, 77)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x)))).flatten(2).transpose(1, 2)
        x = self.norm(nn.functional.scaled_dot_product_attention(x, self.key(x), self.value(x)) + x)
        y: torch.Tensor = self.head(x)
        return y


def odd() -> Built:
    torch.manual_seed(2)
    return Odd().eval(), (_floats(3, 3, 11, 13),), {}


ODD: Mapping[str, Precision] = {f"odd_{precision}": precision for precision in PRECISIONS}
