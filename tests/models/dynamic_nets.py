"""Models whose batch and length may vary: name -> (module, a function of the sizes that draws inputs, dims)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.export import Dim

Inputs = tuple[torch.Tensor, ...]
Built = tuple[nn.Module, Callable[..., Inputs], Any]


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, groups=out)
        self.down = nn.Conv2d(channels, out, 1, stride)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.conv2(y) + self.down(x))


class SmallResNet(nn.Module):
    """A stem, blocked and depthwise convolutions, pools, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 5, 2, 2)
        self.block = ResidualBlock(16, 32, 2)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1)
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(self.block(x), 1), 1))


class Attend(nn.Module):
    """One layer by hand (two products and a softmax over a length that varies), one fused and causal, a mask, sizes in
    arithmetic, and an output that joins two lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.position = nn.Embedding(64, 32)
        self.qkv = nn.Linear(32, 96)
        self.norm = nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 40), nn.GELU(), nn.Linear(40, 32))

    def heads(self, x):
        batch, length, _ = x.shape
        return self.qkv(x).reshape(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4)

    def forward(self, ids, mask):
        batch, length = ids.shape
        x = self.embed(ids) + self.position(torch.arange(length, device=ids.device))
        hidden = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        q, k, v = self.heads(self.norm(x))
        scores = (q @ k.transpose(-1, -2) / 8**0.5 + hidden).softmax(-1)
        x = x + (scores @ v).transpose(1, 2).reshape(batch, length, 32)
        q, k, v = self.heads(x)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attended.transpose(1, 2).flatten(2)
        x = x + self.mlp(x)
        twice = torch.cat([x, x.flip(1)], 1)
        return twice, x.mean(1) * length, x[:, -1], x.amax(-1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 10, 2, bidirectional=True)
        self.gru = nn.GRU(20, 7)

    def forward(self, x):
        y, (h, _) = self.lstm(x)
        return self.gru(y)[0], h


class Maps(nn.Module):
    """Maps of any size: convolutions, a transposed one, pools, interpolation, a mean over everything."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, 2)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        z = nn.functional.interpolate(self.down(y), scale_factor=2.0, mode="bilinear")
        return self.up(z), y.mean((2, 3)), nn.functional.max_pool2d(y, 2)


class Shared(nn.Module):
    """Two arguments that share a size, and one of twice that size. Drawn positive: one number alone, of sums that
    cancel, has no error to compare with its size."""

    def forward(self, x, y, z):
        return x @ y.transpose(0, 1) + z[::2].sum(), z.reshape(-1, 2, 3)


def _ids(batch: int, length: int) -> Inputs:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[:, length // 2 + 1 :] = 0
    return torch.randint(0, 50, (batch, length)), mask


def nets() -> dict[str, Built]:
    batch, seq = Dim("batch", min=1, max=9), Dim("seq", min=1, max=40)
    rows = Dim("rows", min=1, max=30)
    tall, wide = Dim("tall", min=2, max=20), Dim("wide", min=2, max=20)
    return {
        "conv": (SmallResNet(), lambda batch, seq: (torch.randn(batch, 3, 24, 20),), ({0: batch},)),
        "attend": (Attend(), _ids, ({0: batch, 1: seq}, {0: batch, 1: seq})),
        "recurrent": (Recurrent(), lambda batch, seq: (torch.randn(5, batch, 6),), ({1: batch},)),
        "maps": (
            Maps(),
            lambda batch, seq: (torch.randn(batch, 3, 2 * min(batch + 1, 20), 4 * min(seq + 1, 20)),),
            ({0: batch, 2: 2 * tall, 3: 4 * wide},),
        ),
        "shared": (
            Shared(),
            lambda batch, seq: (torch.rand(batch, 3), torch.rand(seq, 3), torch.rand(2 * seq, 3)),
            ({0: batch}, {0: rows}, {0: 2 * rows}),
        ),
    }
