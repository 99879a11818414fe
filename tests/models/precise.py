"""Models that lower precision is tested with: every family of ops that it treats in its own way."""

from collections.abc import Callable

import torch
from torch import nn

from tests.models.support import Built

F = nn.functional


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _ids(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(0))


class Transformer(nn.Module):
    """Two blocks before a norm and an output layer that is the embedding too."""

    def __init__(self, vocabulary: int = 61, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(16, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(2))
        self.heads = heads

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for i in range(2):
            parts = self.qkv[i](self.norms[2 * i](x)).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out[i](attended.transpose(1, 2).flatten(2))
            x = x + self.down[i](F.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return F.linear(self.norms[4](x), self.tokens.weight)


class Convolutions(nn.Module):
    """A stem, inverted residuals, a dense convolution, one that is transposed, pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 16, 3, 2)
        self.one = nn.Sequential(_convolution(16, 48, 1), _convolution(48, 48, 3, 1, 48), nn.Conv2d(48, 16, 1))
        self.two = nn.Sequential(_convolution(16, 40, 1), _convolution(40, 40, 3, 2, 40), nn.Conv2d(40, 24, 1))
        self.dense, self.wider = _convolution(24, 40, 3), nn.ConvTranspose2d(40, 20, 2, 2)
        self.head = nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.dense(self.two(x + self.one(x)))
        return self.head(F.max_pool2d(F.relu(self.wider(x)), 2).mean((2, 3)))


def _convolution(into: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    layer = nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU6())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.lstm = nn.Embedding(50, 24), nn.LSTM(24, 40, 2, batch_first=True)
        self.gru, self.rnn = nn.GRU(40, 20, bidirectional=True, batch_first=True), nn.RNN(40, 17, batch_first=True)
        self.head = nn.Linear(17, 5)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, _ = self.lstm(self.tokens(ids))
        x, _ = self.gru(x)
        x, last = self.rnn(x)
        return self.head(x[:, -1]), last


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.group = nn.Conv2d(4, 24, 3, padding=1), nn.GroupNorm(4, 24)
        self.layer, self.rms = nn.LayerNorm(24), nn.RMSNorm(24)
        self.inner, self.head = nn.Linear(24, 24), nn.Linear(24, 7)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = F.silu(self.group(self.conv(x))).flatten(2).transpose(1, 2)
        x = self.layer(x)
        y = self.head(x + torch.tanh(self.inner(self.rms(x))))
        sums = torch.logsumexp(y, -1), torch.cumsum(y, 1)
        return torch.softmax(y, -1), *sums, torch.log_softmax(y.mean(1), -1)


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(100, 64), nn.Linear(64, 48), nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(F.relu(self.two(F.relu(self.one(x)))))


MODELS: dict[str, Callable[[], Built]] = {
    "transformer": lambda: (Transformer(), (_ids(61, 2, 12),), {}),
    "convolutions": lambda: (Convolutions(), (_normal(1, 3, 33, 33),), {}),
    "recurrent": lambda: (Recurrent(), (_ids(50, 2, 9),), {}),
    "norms": lambda: (Norms(), (_normal(2, 4, 6, 7),), {}),
    "perceptron": lambda: (Perceptron(), (_normal(1, 100),), {}),
}
