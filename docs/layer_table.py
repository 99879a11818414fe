"""PyTorch's layers in a generated package: what becomes of their weights, and which kernels compute them.

tests/golden/test_operators.py builds every row and compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transpiler.ops import REGISTRY


@dataclass(frozen=True)
class Layer:
    """`packed` are the ops that bring its weights into the layout of its kernels, `kernels` the names of what computes
    it alone (without the sizes that end them)."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    kernels: tuple[str, ...]
    packed: tuple[str, ...] = ()
    note: str = ""


def _x(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.zeros(shape),)


def _indices() -> tuple[Tensor, ...]:
    return (torch.zeros(2, 3, dtype=torch.int64),)


class OwnAttention(nn.MultiheadAttention):
    """Self-attention without its weights as a second result."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        (x,) = inputs
        return super().forward(x, x, x, need_weights=False, **options)[0]


_PLAIN = "plain reduction loops"
_HIDDEN = "`weight_ih` is packed, `weight_hh` stays as it is; the time loop is one kernel"
_ADDED = "`weight_ih` is packed, the two biases are added up, `weight_hh` stays as it is; the time loop is one kernel"

LAYERS: dict[str, tuple[Layer, ...]] = {
    "Linear": (
        Layer("nn.Linear", lambda: nn.Linear(24, 40), _x(2, 24), ("linear_bias",), ("pack_matmul",)),
        Layer("nn.Linear, 64 rows and more", lambda: nn.Linear(768, 768), _x(64, 768), ("strassen_bias",),
              ("row_scales", "pack_strassen"), "where Strassen's algorithm is faster; not with `--exact`"),
        Layer("nn.Bilinear", lambda: nn.Bilinear(4, 5, 6), lambda: (torch.zeros(2, 4), torch.zeros(2, 5)),
              ("matmul", "add"), ("transpose", "reshape"), "two products"),
    ),
    "Convolution": (
        Layer("nn.Conv1d", lambda: nn.Conv1d(20, 24, 3), _x(1, 20, 9),
              ("pack_channels", "conv1x3_bias", "unpack_channels"), ("reshape", "pack_conv", "pad"),
              "computed as a Conv2d of one row"),
        Layer("nn.Conv2d", lambda: nn.Conv2d(20, 24, 3, stride=2), _x(1, 20, 9, 9),
              ("pack_channels", "conv3x3_bias", "unpack_channels"), ("pack_conv", "pad")),
        Layer("nn.Conv2d, 3x3 at unit stride", lambda: nn.Conv2d(20, 24, 3), _x(1, 20, 9, 9),
              ("pack_channels", "winograd2x2_bias", "unpack_channels"), ("pad", "pack_winograd"),
              "where Winograd's algorithm pays; `--exact` takes direct sums"),
        Layer("nn.Conv2d, at most 8 channels in", lambda: nn.Conv2d(3, 24, 3), _x(1, 3, 9, 9),
              ("conv3x3_bias", "unpack_channels"), ("pack_conv_stem", "pad"), "reads the plain map"),
        Layer("nn.Conv2d, depthwise", lambda: nn.Conv2d(20, 20, 3, groups=20), _x(1, 20, 9, 9),
              ("pack_channels", "depthwise3x3_bias", "unpack_channels"), ("pack_depthwise", "pad")),
        Layer("nn.Conv2d, groups of 2, 4 or 8", lambda: nn.Conv2d(20, 20, 3, groups=5), _x(1, 20, 9, 9),
              ("pack_channels", "grouped3x3_bias", "unpack_channels"), ("pack_depthwise", "pad"),
              "as many outputs as inputs"),
        Layer("nn.Conv2d, other groups", lambda: nn.Conv2d(20, 20, 3, groups=2), _x(1, 20, 9, 9),
              ("pack_channels", "conv3x3_bias", "unpack_channels"), ("reshape", "pad", "pack_conv"),
              "groups of whole blocks of 16 stay where they are, others begin a block each"),
        Layer("nn.Conv3d", lambda: nn.Conv3d(20, 24, 3), _x(1, 20, 5, 5, 5),
              ("transpose_unfold", "pack_channels", "conv3x3_bias", "unpack_channels", "transpose"),
              ("transpose", "reshape", "pack_conv", "pad"),
              "computed as a Conv2d of every plane over the channels of all planes that it reads"),
        Layer("nn.ConvTranspose1d", lambda: nn.ConvTranspose1d(20, 24, 3), _x(1, 20, 5),
              ("pack_channels", "conv1x3_bias", "unpack_channels"),
              ("reshape", "pad", "phase_filters", "pack_conv"), "computed as a ConvTranspose2d of one row"),
        Layer("nn.ConvTranspose2d", lambda: nn.ConvTranspose2d(20, 24, 2, stride=2), _x(1, 20, 5, 5),
              ("pack_channels", "conv1x1_bias", "transpose", "unpack_channels"),
              ("pad", "phase_filters", "pack_conv", "concat"), "a convolution to the output's phases, and a shuffle"),
        Layer("nn.ConvTranspose3d", lambda: nn.ConvTranspose3d(4, 6, 3), _x(1, 4, 3, 3, 3), ("conv_transpose",),
              note=_PLAIN),
    ),
    "Normalisation": (
        Layer("nn.BatchNorm2d behind a convolution",
              lambda: nn.Sequential(nn.Conv2d(20, 24, 3, bias=False), nn.BatchNorm2d(24)), _x(1, 20, 5, 5),
              ("pack_channels", "conv3x3_bias", "unpack_channels"),
              ("full", "add", "rsqrt", "mul", "sub", "reshape", "pack_conv", "pad"),
              "folded into the convolution's weights; only the batch norm's path has a value"),
        Layer("nn.BatchNorm1d / 2d / 3d alone", lambda: nn.BatchNorm2d(20), _x(1, 20, 5, 5), ("mul_add",),
              ("full", "add", "rsqrt", "mul", "sub", "reshape"),
              "a scale and a shift per channel; training is refused"),
        Layer("nn.LayerNorm", lambda: nn.LayerNorm(40), _x(2, 40), ("layer_norm",)),
        Layer("nn.RMSNorm", lambda: nn.RMSNorm(40), _x(2, 40), ("rms_norm",)),
        Layer("nn.GroupNorm", lambda: nn.GroupNorm(4, 40), _x(2, 40, 5, 5), ("group_norm",)),
        Layer("nn.InstanceNorm2d(affine=True)", lambda: nn.InstanceNorm2d(40, affine=True), _x(2, 40, 5, 5),
              ("group_norm",), note="as many groups as channels"),
    ),
    "Embedding": (
        Layer("nn.Embedding", lambda: nn.Embedding(40, 8), _indices, ("take",), note="indices are checked at run time"),
        Layer("nn.EmbeddingBag", lambda: nn.EmbeddingBag(40, 8), _indices, ("take", "full", "scatter_add", "div"),
              ("full",), "bags are summed, the mean divides"),
    ),
    "Recurrence": (
        Layer("nn.LSTM", lambda: nn.LSTM(12, 20), _x(5, 2, 12), ("linear_bias", "lstm_scan"),
              ("add", "pack_matmul", "reshape", "pad"), _ADDED),
        Layer("nn.GRU", lambda: nn.GRU(12, 20), _x(5, 2, 12), ("linear_bias", "gru_scan"),
              ("pack_matmul", "reshape", "pad"), _HIDDEN),
        Layer("nn.RNN", lambda: nn.RNN(12, 20), _x(5, 2, 12), ("linear_bias", "rnn_scan"),
              ("add", "pack_matmul", "reshape", "pad"), _ADDED),
        Layer("nn.LSTMCell", lambda: nn.LSTMCell(12, 20), _x(2, 12),
              ("full", "linear_bias", "linear_bias_add", "slice_sigmoid_mul_tanh_add", "slice_sigmoid_tanh_mul"),
              ("full", "pack_matmul"), "one step: two products, then the gates"),
    ),
    "Attention": (
        Layer("nn.MultiheadAttention", lambda: OwnAttention(32, 4, batch_first=True), _x(2, 6, 32),
              ("transpose", "linear_bias", "slice_transpose_attention"), ("pack_matmul",),
              "`attention` is one kernel: no matrix of scores is stored"),
    ),
    "Others": (
        Layer("nn.PReLU", lambda: nn.PReLU(20), _x(1, 20, 5, 5), ("prelu",), ("reshape",)),
        Layer("nn.MaxPool2d", lambda: nn.MaxPool2d(2), _x(1, 20, 6, 6), ("max_pool",)),
        Layer("nn.AdaptiveAvgPool2d", lambda: nn.AdaptiveAvgPool2d(1), _x(1, 20, 6, 6), ("adaptive_avg_pool",)),
        Layer("nn.Softmax", lambda: nn.Softmax(-1), _x(2, 6), ("softmax",)),
        Layer("nn.Upsample", lambda: nn.Upsample(scale_factor=2), _x(1, 20, 6, 6), ("resize",)),
    ),
}  # fmt: skip


def layer_section() -> str:
    rows = []
    for family, layers in LAYERS.items():
        rows += [f"### {family}\n", "| layer | `state_dict` | its layout here | kernels | |", "|---|---|---|---|---|"]
        rows += [_row(layer) for layer in layers]
        rows.append("")
    return "\n".join(rows)


def _row(layer: Layer) -> str:
    state = layer.make().state_dict()
    names = ", ".join(f"`{name}`" for name in state if not name.endswith("num_batches_tracked")) or "none"
    packs = [name for name in layer.packed if name.startswith("pack_")]
    layouts = [f"`{name}`: {_layout(name)}" for name in packs]
    if "pad" in layer.packed:
        layouts.append("bias padded to a multiple of 16")
    computed = [name for name in layer.packed if name not in ("full", "pad") and name not in packs]
    if not packs and computed:
        layouts.append(f"computed by {', '.join(f'`{name}`' for name in computed)}")
    if not layouts:
        layouts.append("as it is" if state else "")
    kernels = ", ".join(f"`{name}`" for name in layer.kernels)
    return f"| {layer.name} | {names} | {'; '.join(layouts)} | {kernels} | {layer.note} |"


def _layout(name: str) -> str:
    """`[N, K] -> [ceil(N/16), K, 16]`: the first sentence of the op's docstring without the name of its input."""
    text = " ".join((REGISTRY[name].__doc__ or "").split()).removeprefix("weight")
    before, _, after = text.partition(" -> ")
    return f"`{before} → {after[: after.index(']') + 1]}`"
