"""Every layer of the migration guides as a case of its own: id -> (module, inputs)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Case = Callable[[], tuple[nn.Module, tuple[Any, ...]]]
LAYERS: dict[str, Case] = {}


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1))


def layer(name: str, build: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> None:
    """A case with float32 inputs of these shapes."""
    assert name not in LAYERS, name
    LAYERS[name] = lambda: (build(), tuple(draw(*shape, seed=i) for i, shape in enumerate(shapes)))


def function(name: str, call: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
    layer(name, lambda: Function(call), *shapes)


IMAGE = (2, 6, 13, 11)  # odd sizes: no dimension is a multiple of a vector

layer("linear", lambda: nn.Linear(19, 33), (5, 19))
layer("linear_no_bias", lambda: nn.Linear(19, 33, bias=False), (5, 19))
layer("linear_3d", lambda: nn.Linear(19, 33), (2, 5, 19))
layer("linear_vector", lambda: nn.Linear(19, 33), (19,))
layer("bilinear", lambda: nn.Bilinear(5, 7, 3), (4, 5), (4, 7))

layer("conv1d", lambda: nn.Conv1d(5, 9, 3, padding=1), (2, 5, 17))
layer("conv1d_stride_dilation", lambda: nn.Conv1d(5, 9, 3, stride=2, dilation=2), (2, 5, 17))
layer("conv2d", lambda: nn.Conv2d(6, 10, 3), IMAGE)
layer("conv2d_no_bias", lambda: nn.Conv2d(6, 10, 3, bias=False), IMAGE)
layer("conv2d_1x1", lambda: nn.Conv2d(6, 10, 1), IMAGE)
layer("conv2d_stride", lambda: nn.Conv2d(6, 10, 3, stride=(2, 3)), IMAGE)
layer("conv2d_padding", lambda: nn.Conv2d(6, 10, (3, 5), padding=(1, 2)), IMAGE)
layer("conv2d_same", lambda: nn.Conv2d(6, 10, 4, padding="same"), IMAGE)
layer("conv2d_reflect", lambda: nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect"), IMAGE)
layer("conv2d_dilation", lambda: nn.Conv2d(6, 10, 3, dilation=2, padding=2), IMAGE)
layer("conv2d_groups", lambda: nn.Conv2d(6, 12, 3, groups=3, padding=1), IMAGE)
layer("conv2d_depthwise", lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1), IMAGE)
layer("conv2d_unbatched", lambda: nn.Conv2d(6, 10, 3), IMAGE[1:])
layer("conv_transpose2d", lambda: nn.ConvTranspose2d(6, 4, 2, stride=2), IMAGE)
layer(
    "conv_transpose2d_all",
    lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, dilation=2, groups=2),
    IMAGE,
)

layer("batch_norm1d", lambda: nn.BatchNorm1d(7), (5, 7))
layer("batch_norm1d_sequence", lambda: nn.BatchNorm1d(7), (5, 7, 9))
layer("batch_norm2d", lambda: nn.BatchNorm2d(6), IMAGE)
layer("batch_norm2d_no_affine", lambda: nn.BatchNorm2d(6, affine=False), IMAGE)
layer("conv_batch_norm_relu", lambda: nn.Sequential(nn.Conv2d(6, 9, 3), nn.BatchNorm2d(9), nn.ReLU()), IMAGE)
layer("linear_batch_norm", lambda: nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9)), (5, 7))
layer("layer_norm", lambda: nn.LayerNorm(19), (3, 5, 19))
layer("layer_norm_2_axes", lambda: nn.LayerNorm((5, 19)), (3, 5, 19))
layer("layer_norm_no_affine", lambda: nn.LayerNorm(19, elementwise_affine=False), (3, 5, 19))
layer("group_norm", lambda: nn.GroupNorm(3, 6), IMAGE)

layer("max_pool", lambda: nn.MaxPool2d(2), IMAGE)
layer("max_pool_padded", lambda: nn.MaxPool2d(3, stride=2, padding=1), IMAGE)
layer("max_pool_ceil", lambda: nn.MaxPool2d(3, stride=2, ceil_mode=True), IMAGE)
layer("max_pool1d", lambda: nn.MaxPool1d(2), (2, 5, 17))
layer("avg_pool", lambda: nn.AvgPool2d(2), IMAGE)
layer("avg_pool_padded", lambda: nn.AvgPool2d(3, stride=2, padding=1), IMAGE)
layer("avg_pool_not_counting", lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), IMAGE)
layer("adaptive_avg_pool_1", lambda: nn.AdaptiveAvgPool2d(1), IMAGE)
layer("adaptive_avg_pool_uneven", lambda: nn.AdaptiveAvgPool2d((5, 4)), IMAGE)
layer("dropout", lambda: nn.Dropout(0.5), (5, 19))
layer("flatten", lambda: nn.Flatten(), IMAGE)
layer("flatten_some", lambda: nn.Flatten(1, 2), IMAGE)

for _name, _activation in {
    "relu": nn.ReLU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "gelu_erf": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "leaky_relu": nn.LeakyReLU(0.07),
    "silu": nn.SiLU(),
}.items():
    layer(_name, lambda activation=_activation: activation, (3, 37))
for _dim in (0, 1, 2, -1):
    layer(f"softmax_dim_{_dim}".replace("-", "minus_"), lambda dim=_dim: nn.Softmax(dim), (3, 5, 19))

function("view", lambda x: x.view(6, -1), (2, 3, 20))
function("reshape_of_transposed", lambda x: x.transpose(1, 2).reshape(2, -1), (2, 3, 20))
function("permute", lambda x: x.permute(2, 0, 1), (2, 3, 20))
function("cat", lambda x, y: torch.cat([x, y, x], dim=1), (2, 3, 5), (2, 4, 5))
function("split", lambda x: torch.split(x, [1, 3, 2], dim=1), (2, 6, 5))
function("chunk", lambda x: torch.chunk(x, 3, dim=-1), (2, 6, 7))
function("slicing", lambda x: x[:, 1:-1, ::2] - x[:, :-2, 1::2], (2, 6, 8))
function("indexing", lambda x: (x[:, 0], x[:, -1, None], x[..., 3]), (2, 6, 8))
function("slice_assignment", lambda x: _assign(x), (2, 6, 8))
function("broadcasting", lambda x, y, z: x * y + z / (y * y + 1), (2, 1, 5), (3, 1), (5,))
function("masking", lambda x: x.masked_fill(x > 0.5, -1.0) + torch.where(x < 0, x, 0.0), (3, 19))
function("causal_mask", lambda x: _causal(x), (2, 7, 7))
function("reductions", lambda x: (x.sum(1), x.mean((0, 2)), x.amax(-1), x.var(1), x.std(-1)), (3, 5, 7))
function("argmax", lambda x: (x.argmax(-1), x.max(1)), (3, 5, 7))
function("matmul", lambda x, y: x @ y, (2, 3, 5, 7), (3, 7, 4))
function("einsum", lambda x, y: torch.einsum("bij,bkj->bik", x, y), (2, 5, 7), (2, 4, 7))
function(
    "attention",
    lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    (2, 3, 5, 8),
    (2, 3, 6, 8),
    (2, 3, 6, 8),
)
function("interpolate", lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False), IMAGE)

function(
    "special_functions",
    lambda x: (torch.special.i0e(x) + torch.erfc(x), torch.igamma(x.abs(), x.square()), torch.special.erfcx(x.abs())),
    (3, 37),
)


def _assign(x):
    y = x.clone()
    y[:, 2:4] = 1.5
    y[:, 0, :] += x[:, 1, :]
    return y


def _causal(scores):
    mask = torch.triu(torch.ones(7, 7, dtype=torch.bool), diagonal=1)
    return torch.softmax(scores.masked_fill(mask, float("-inf")), dim=-1)


def _tokens(*shape: int, high: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(7))


LAYERS["embedding"] = lambda: (nn.Embedding(29, 11), (_tokens(3, 5, high=29),))
LAYERS["embedding_padding"] = lambda: (nn.Embedding(29, 11, padding_idx=0), (_tokens(3, 5, high=29),))
LAYERS["bool_mask_input"] = lambda: (
    Function(lambda x, mask: x.masked_fill(mask, 0.0)),
    (draw(3, 5), _tokens(3, 5, high=2).bool()),
)
LAYERS["integer_arithmetic"] = lambda: (
    Function(lambda a, b: (a + b, a * b, a // (b + 1), a % (b + 1), a / (b + 1))),
    (_tokens(3, 5, high=9), _tokens(5, high=9)),
)
