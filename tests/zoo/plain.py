"""Architectures in plain PyTorch: its own transformer and recurrent modules, and classics written out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.entry import Built, floats, ids


class Recurrent(nn.Module):
    """A recurrent layer and what to do with its outputs: all of them, and the last state."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        width = layer.hidden_size * (2 if layer.bidirectional else 1)
        if getattr(layer, "proj_size", 0):
            width = layer.proj_size
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output, state = self.layer(x)
        return self.head(output), state[0] if isinstance(state, tuple) else state


class Packed(nn.Module):
    """Sequences of several lengths in one batch, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 16, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        output, _ = self.layer(packed)
        return nn.utils.rnn.pad_packed_sequence(output, batch_first=True)[0]


class CellLoop(nn.Module):
    """A cell in a Python loop over time."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        outputs = []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)


class ConvLstm(nn.Module):
    """A convolutional LSTM (Shi et al., 2015) unrolled over a short video."""

    def __init__(self, channels: int = 3, hidden: int = 8) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(channels + hidden, 4 * hidden, 3, padding=1)

    def forward(self, video: Tensor) -> Tensor:
        batch, frames, _, height, width = video.shape
        state = video.new_zeros(batch, self.hidden, height, width)
        cell = torch.zeros_like(state)
        for frame in range(frames):
            i, f, o, g = self.gates(torch.cat([video[:, frame], state], 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            state = o.sigmoid() * cell.tanh()
        return state


class Translator(nn.Module):
    """nn.Transformer with embeddings, sine positions and a causal mask (Vaswani et al., 2017)."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        position = torch.arange(32).unsqueeze(1) / 10000 ** (torch.arange(0, 32, 2) / 32)
        self.register_buffer("positions", torch.stack([position.sin(), position.cos()], -1).flatten(1))
        self.transformer = nn.Transformer(32, 4, 2, 2, 48, batch_first=True, **options)
        self.head = nn.Linear(32, 50)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        a = self.embedding(source) + self.positions[: source.shape[1]]
        b = self.embedding(target) + self.positions[: target.shape[1]]
        return self.head(self.transformer(a, b, tgt_mask=causal, tgt_is_causal=True))


class PaddedEncoder(nn.Module):
    """nn.TransformerEncoder with a padding mask made from the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32, padding_idx=0)
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(32), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encoder(self.embedding(tokens), src_key_padding_mask=tokens == 0)


class Aspp(nn.Module):
    """DeepLabV3's head (Chen et al., 2017): dilated convolutions, global pooling, bilinear resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.branches = nn.ModuleList([nn.Conv2d(16, 8, 1)])
        self.branches.extend(nn.Conv2d(16, 8, 3, padding=rate, dilation=rate) for rate in (2, 4, 6))
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.ReLU())
        self.head = nn.Conv2d(40, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        parts = [branch(x).relu() for branch in self.branches]
        parts.append(F.interpolate(self.pooled(x), x.shape[-2:], mode="bilinear", align_corners=False))
        return F.interpolate(self.head(torch.cat(parts, 1)), image.shape[-2:], mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al., 2017) over three stages."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 8, 16, 32]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in itertools.pairwise(widths)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, 16, 1) for width in widths[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in widths[1:])

    def forward(self, image: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            image = stage(image)
            features.append(image)
        maps = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for level in (1, 0):
            maps[level] = maps[level] + F.interpolate(maps[level + 1], scale_factor=2.0, mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]


class Yolo(nn.Module):
    """YOLOv5's pieces: focus, CSP blocks, spatial pyramid pooling, and decoded boxes on a grid."""

    def __init__(self, classes: int = 4, anchors: int = 2) -> None:
        super().__init__()
        self.outputs = classes + 5
        self.anchors = anchors
        self.stem = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU())
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.head = nn.Conv2d(16 * 3, anchors * self.outputs, 1)
        self.register_buffer("sizes", torch.tensor([[1.5, 2.0], [3.0, 2.5]]))

    def forward(self, image: Tensor) -> Tensor:
        quarters = [image[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        x = self.stem(torch.cat(quarters, 1))
        left = self.left(x)
        x = torch.cat([left + self.inner(left), self.right(x)], 1)
        pooled = self.pool(x)
        y = self.head(torch.cat([x, pooled, self.pool(pooled)], 1))
        batch, _, height, width = y.shape
        y = y.view(batch, self.anchors, self.outputs, height, width).permute(0, 1, 3, 4, 2).sigmoid()
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack([columns, rows], -1).to(y.dtype)
        centres = (y[..., :2] * 2 - 0.5 + grid) * 4
        sizes = (y[..., 2:4] * 2) ** 2 * self.sizes.view(1, -1, 1, 1, 2)
        return torch.cat([centres, sizes, y[..., 4:]], -1).view(batch, -1, self.outputs)


class Wavenet(nn.Module):
    """Gated dilated causal convolutions (van den Oord et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, 16, 1)
        self.gated = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**level) for level in range(4))
        self.skips = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(4))
        self.head = nn.Conv1d(16, 8, 1)

    def forward(self, sound: Tensor) -> Tensor:
        x = self.start(sound)
        total = torch.zeros_like(x)
        for level, (gated, skip) in enumerate(zip(self.gated, self.skips, strict=True)):
            a, b = gated(F.pad(x, (2**level, 0))).chunk(2, 1)
            y = skip(a.tanh() * b.sigmoid())
            total = total + y
            x = x + y
        return self.head(total.relu()).log_softmax(1)


class PointNet(nn.Module):
    """Shared layers over points, a learned transform, a maximum over the cloud (Qi et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.AdaptiveMaxPool1d(1))
        self.matrix = nn.Linear(16, 9)
        self.features = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 48, 1))
        self.head = nn.Linear(48, 5)

    def forward(self, points: Tensor) -> Tensor:
        matrix = self.matrix(self.transform(points).flatten(1)).view(-1, 3, 3) + torch.eye(3)
        moved = torch.bmm(matrix, points)
        return self.head(self.features(moved).amax(-1))


class GraphConvolution(nn.Module):
    """Two layers of Kipf and Welling (2017) over an edge list, with degrees counted by scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def spread(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        degree = torch.ones(x.shape[0]).scatter_add(0, target, torch.ones(target.shape[0]))
        scale = degree.rsqrt()
        messages = x[source] * (scale[source] * scale[target]).unsqueeze(-1)
        return torch.zeros_like(x).index_add(0, target, messages) + x / degree.unsqueeze(-1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        hidden = self.spread(self.first(x), source, target).relu()
        return self.spread(self.second(hidden), source, target)


class Recommender(nn.Module):
    """DLRM (Naumov et al., 2019): bags of embeddings, a bottom network, pairwise products."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(20, 8, mode="sum") for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(8 + 6, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bottom(dense)
        vectors = torch.stack([x, *(bag(sparse[:, i]) for i, bag in enumerate(self.bags))], 1)
        products = vectors @ vectors.transpose(1, 2)
        rows, columns = torch.triu_indices(4, 4, offset=1)
        return self.top(torch.cat([x, products[:, rows, columns]], 1)).sigmoid()


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al., 2021), one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.norms = nn.ModuleList([nn.LayerNorm(32), nn.LayerNorm(32)])
        self.tokens = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.channels = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return (x + self.channels(self.norms[1](x))).mean(1)


class Variational(nn.Module):
    """The decoder half of a variational autoencoder: transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(8, 16 * 4 * 4)
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(16, 16, 3, 2, 1, output_padding=1), nn.BatchNorm2d(16), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.InstanceNorm2d(8, affine=True), nn.ELU(),
            nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, code: Tensor) -> Tensor:
        return self.layers(self.start(code).view(-1, 16, 4, 4)).sigmoid()


class SpatialTransformer(nn.Module):
    """A learned affine warp (Jaderberg et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 6))
        self.head = nn.Conv2d(1, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        theta = self.locate(image).view(-1, 2, 3) * 0.1 + torch.eye(2, 3)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        return self.head(F.grid_sample(image, grid, align_corners=False))


def _of(module: Callable[[], nn.Module], *inputs: Callable[[], Tensor]) -> Callable[[], Built]:
    return lambda: (module(), tuple(draw() for draw in inputs), {})


def _edges() -> Tensor:
    return torch.randint(0, 10, (2, 24), generator=torch.Generator().manual_seed(0))


def _series() -> Tensor:
    return floats(2, 9, 8)


PLAIN: dict[str, Callable[[], Built]] = {
    "aspp": _of(Aspp, lambda: floats(1, 3, 32, 32)),
    "conv_lstm": _of(ConvLstm, lambda: floats(1, 4, 3, 12, 12)),
    "dlrm": _of(Recommender, lambda: floats(4, 5), lambda: ids(4, 3, 2, high=20)),
    "feature_pyramid": _of(Pyramid, lambda: floats(1, 3, 32, 32)),
    "graph_convolution": _of(GraphConvolution, lambda: floats(10, 8), _edges),
    "gru_cell_loop": _of(lambda: CellLoop(nn.GRUCell(8, 16)), _series),
    "gru_stacked": _of(lambda: Recurrent(nn.GRU(8, 16, 2, batch_first=True, bidirectional=True)), _series),
    "lstm_cell_loop": _of(lambda: CellLoop(nn.LSTMCell(8, 16)), _series),
    "lstm_projected": _of(lambda: Recurrent(nn.LSTM(8, 16, proj_size=6, batch_first=True)), _series),
    "lstm_stacked": _of(lambda: Recurrent(nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True)), _series),
    "lstm_time_first": _of(lambda: Recurrent(nn.LSTM(8, 16, bias=False)), _series),
    "mlp_mixer": _of(Mixer, lambda: floats(1, 3, 32, 32)),
    "nn_transformer": _of(Translator, lambda: ids(2, 9, high=50), lambda: ids(2, 6, high=50)),
    "nn_transformer_prenorm": _of(
        lambda: Translator(norm_first=True, activation="gelu"), lambda: ids(2, 9, high=50), lambda: ids(2, 6, high=50)
    ),
    "nn_transformer_encoder": _of(PaddedEncoder, lambda: ids(2, 9, high=50) * torch.tensor([1] * 7 + [0] * 2)),
    "packed_lstm": _of(Packed, _series, lambda: torch.tensor([9, 6])),
    "pointnet": _of(PointNet, lambda: floats(2, 3, 40)),
    "rnn_relu": _of(lambda: Recurrent(nn.RNN(8, 16, nonlinearity="relu")), _series),
    "rnn_tanh": _of(lambda: Recurrent(nn.RNN(8, 16, 2, bidirectional=True)), _series),
    "spatial_transformer": _of(SpatialTransformer, lambda: floats(2, 1, 16, 16)),
    "vae_decoder": _of(Variational, lambda: floats(2, 8)),
    "wavenet": _of(Wavenet, lambda: floats(1, 1, 64)),
    "yolo": _of(Yolo, lambda: floats(1, 3, 64, 64)),
}
