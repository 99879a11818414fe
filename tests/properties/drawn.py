"""Random small modules from a grammar: a list of numbers is a program over a pool of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Values stay of order 1: a product, an exponential or a quotient is bounded first.
LIMIT = 4096


def is_map(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_floating_point() and min(x.shape[2:]) >= 2


def is_float(x: Tensor) -> bool:
    return x.is_floating_point()


def is_int(x: Tensor) -> bool:
    return x.dtype in (torch.int32, torch.int64)


@dataclass
class Step:
    """One instruction as it runs: what it was drawn with, and the pool so far."""

    module: Drawn
    number: int
    picks: Sequence[int]
    pool: list[Tensor]
    x: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.x = self.pool[-1 - self.picks[1] % min(len(self.pool), 6)]

    def pick(self, position: int, count: int) -> int:
        return self.picks[2 + position % 4] // (7 if position >= 4 else 1) % count

    def other(self, fits: Callable[[Tensor], bool]) -> Tensor | None:
        """Another tensor (or the same) of the pool that fits."""
        found = [item for item in self.pool if fits(item)]
        return found[self.picks[5] % len(found)] if found else None

    def operand(self) -> Tensor:
        """What broadcasts with x: a tensor of the pool, or a weight or constant of one of many forms."""
        x = self.x
        match self.pick(3, 8):
            case 0 | 1 | 2 | 3:
                fitting = self.other(lambda item: item.dtype == x.dtype and broadcasts(item, x))
                return x if fitting is None else fitting
            case 4:
                dims = [extent if (self.picks[4] >> axis) & 1 else 1 for axis, extent in enumerate(x.shape)]
                return self.module.weight(self.number, dims[self.picks[4] % (len(dims) + 1) :]).to(x.dtype)
            case 5:
                return torch.full(x.shape[x.ndim // 2 :], 2, dtype=x.dtype)
            case 6:
                return self.module.weight(self.number, x.shape[-1:]).to(x.dtype).expand(x.shape)
            case _:
                return torch.arange(x.shape[-1] if x.ndim else 1, dtype=x.dtype) % 3

    def layer(self, make: Callable[[], nn.Module]) -> Tensor:
        """A layer of its own on x."""
        result: Tensor = self.module.layer(self.number, make)(self.x)
        return result


def broadcasts(a: Tensor, b: Tensor) -> bool:
    try:
        return math.prod(np.broadcast_shapes(a.shape, b.shape)) <= LIMIT
    except ValueError:
        return False


def bounded(x: Tensor) -> Tensor:
    return torch.tanh(x) if x.is_floating_point() else x.clamp(-9, 9)


def _unary(step: Step) -> Tensor:
    x = step.x
    functions: list[Callable[[Tensor], Tensor]] = [
        torch.relu, torch.tanh, torch.sigmoid, F.gelu, F.silu, torch.neg, torch.abs, F.relu6, F.hardswish,
        lambda v: torch.exp(bounded(v)), lambda v: torch.sqrt(v.abs() + 0.5), lambda v: 1 / (v.abs() + 1),
        lambda v: v * 0.5 + 1.0, lambda v: F.leaky_relu(v, 0.1), lambda v: v.clamp(-1, 0.5), lambda v: v * v * 0.25,
        lambda v: torch.log(v.abs() + 1), torch.square, lambda v: v - v, lambda v: v.pow(3) * 0.01,
    ]  # fmt: skip
    return functions[step.pick(0, len(functions))](x)


def _binary(step: Step) -> Tensor:
    a, b = step.x, step.operand()
    if step.pick(2, 2):
        a, b = b, a
    match step.pick(0, 7):
        case 0 | 1:
            return a + b
        case 2:
            return a - b
        case 3:
            return bounded(a) * b
        case 4:
            return torch.maximum(a, b)
        case 5:
            return torch.where(a < b, a, b * 0.5 if b.is_floating_point() else b)
        case _:
            return a / (b.abs() + 1) if a.is_floating_point() else a // (b.abs() + 1)


def _conv(step: Step) -> Tensor:
    channels = step.x.shape[1]
    out = (channels, 16, 5, 20, 32)[step.pick(0, 5)]
    kernel = (1, 3, 3, 2)[step.pick(1, 4)]
    groups = (1, 1, 1, channels)[step.pick(2, 4)]
    padding = min(step.pick(3, 3), kernel // 2)
    stride = 1 + step.pick(4, 2)
    transposed = step.pick(5, 5) == 0
    if groups > 1:
        out = channels
    if min(step.x.shape[2:]) + 2 * padding < kernel:
        return step.x

    def make() -> nn.Module:
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        return kind(channels, out, kernel, stride, padding, groups=groups, bias=bool(step.pick(6, 3)))

    return step.layer(make)


def _batch_norm(step: Step) -> Tensor:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[step.x.ndim]
    return step.layer(lambda: kind(step.x.shape[1]))


def _linear(step: Step) -> Tensor:
    out = (step.x.shape[-1], 16, 7, 33)[step.pick(0, 4)]
    return step.layer(lambda: nn.Linear(step.x.shape[-1], out, bias=bool(step.pick(1, 3))))


def _conv1d(step: Step) -> Tensor:
    return step.layer(lambda: nn.Conv1d(step.x.shape[1], 6, 3, padding=1))


def _norm(step: Step) -> Tensor:
    match step.pick(0, 3):
        case 0:
            return step.layer(lambda: nn.LayerNorm(step.x.shape[-1]))
        case 1:
            return torch.softmax(step.x, step.pick(1, step.x.ndim))
        case _:
            return torch.log_softmax(step.x, step.pick(1, step.x.ndim))


def _pool(step: Step) -> Tensor:
    x = step.x
    match step.pick(0, 7):
        case 0:
            return F.max_pool2d(x, 2)
        case 1:
            return F.max_pool2d(x, 2, 1, 1, ceil_mode=True)
        case 2:
            return F.avg_pool2d(x, 2, 1, 1, count_include_pad=bool(step.pick(1, 2)))
        case 3:
            return F.adaptive_avg_pool2d(x, 1 + step.pick(1, 2))
        case 4:
            return x.mean((2, 3), keepdim=bool(step.pick(1, 2)))
        case 5:
            return F.pad(x, (1, 0, 0, 2), value=0.5)
        case _:
            return F.interpolate(x, scale_factor=2) if x.numel() * 4 <= LIMIT else x


def _reduce(step: Step) -> Tensor:
    axis, keep = step.pick(1, step.x.ndim), bool(step.pick(2, 2))
    match step.pick(0, 5):
        case 0:
            return step.x.sum(axis, keepdim=keep, dtype=step.x.dtype)
        case 1:
            return step.x.amax(axis, keepdim=keep)
        case 2:
            return step.x.max(axis, keepdim=keep)[step.pick(3, 2)]
        case 3:
            return step.x.sum(dtype=step.x.dtype) * 1
        case _:
            return step.x.mean(axis, keepdim=keep) if is_float(step.x) else step.x.amin(axis, keepdim=keep)


def _view(step: Step) -> Tensor:
    x = step.x
    axis, second = step.pick(1, x.ndim), step.pick(2, x.ndim)
    match step.pick(0, 9):
        case 0 | 1:
            return x.transpose(axis, second)
        case 2:
            return x.reshape(-1)
        case 3:
            return x.reshape(x.shape[0], -1)
        case 4:
            return x.narrow(axis, 0, (x.shape[axis] + 1) // 2)
        case 5:
            return x.select(axis, x.shape[axis] - 1) if x.ndim > 1 else x.flip(0)
        case 6:
            return x.unsqueeze(axis) if x.ndim < 4 else x.flip(axis)
        case 7:
            return x.expand(2, *x.shape) if x.ndim < 4 and x.numel() < 500 else x.roll(1, axis)
        case _:
            return x[..., ::2] if x.shape[-1] > 1 else x.squeeze(-1)


def _cat(step: Step) -> Tensor:
    axis = step.pick(1, step.x.ndim)

    def others(item: Tensor) -> bool:
        return (
            item.dtype == step.x.dtype
            and item.ndim == step.x.ndim
            and all(a == b for n, (a, b) in enumerate(zip(item.shape, step.x.shape, strict=True)) if n != axis)
        )

    other = step.other(others)
    assert other is not None
    return torch.cat([step.x, other, step.x][: 2 + step.pick(2, 2)], axis)


def _matmul(step: Step) -> Tensor:
    other = step.other(lambda item: item.dtype == step.x.dtype and item.ndim == 2 and item.shape[0] == step.x.shape[-1])
    return (step.x @ (step.x.transpose(-1, -2) if other is None else other)) * 0.3


def _logic(step: Step) -> Tensor:
    a, b = step.x, step.operand()
    mask = (a > b, a <= b, ~(a < b), (a < b) | (a == b), (a > b) & (a < 1), a != b)[step.pick(0, 6)]
    match step.pick(1, 4):
        case 0:
            return mask.to(step.pool[0].dtype)
        case 1:
            return (a + b).masked_fill(mask, 0.25 if a.is_floating_point() else 3)
        case 2:
            return torch.where(mask, bounded(a), 1)
        case _:
            return mask.sum(-1) if mask.ndim else mask.to(torch.int64)


def _cast(step: Step) -> Tensor:
    if is_float(step.x):
        scaled = bounded(step.x.nan_to_num()) * 3.7 + 0.01
        return scaled.to((torch.int32, torch.int64)[step.pick(0, 2)])
    return (step.x.clamp(-9, 9) * 1).to((torch.int64, torch.int32)[step.pick(0, 2)]).to(step.pool[0].dtype) * 0.1


def _gather(step: Step) -> Tensor:
    table = step.module.weight(step.number, [10, 4])
    return F.embedding(step.x.remainder(10).long(), table)


# (what it needs of x, what it does)
OPS: list[tuple[Callable[[Tensor], bool], Callable[[Step], Tensor]]] = [
    (is_float, _unary),
    (is_float, _unary),
    (lambda x: True, _binary),
    (lambda x: True, _binary),
    (lambda x: True, _binary),
    (is_map, _conv),
    (is_map, _conv),
    (is_map, _conv),
    (lambda x: is_float(x) and x.ndim in (2, 3, 4), _batch_norm),
    (lambda x: is_float(x) and x.ndim in (2, 3, 4), _batch_norm),
    (lambda x: is_float(x) and x.ndim >= 1, _linear),
    (lambda x: is_float(x) and x.ndim >= 1, _linear),
    (lambda x: is_float(x) and x.ndim == 3, _conv1d),
    (lambda x: is_float(x) and x.ndim >= 1, _norm),
    (is_map, _pool),
    (lambda x: x.ndim >= 1, _reduce),
    (lambda x: x.ndim >= 1, _view),
    (lambda x: x.ndim >= 1, _view),
    (lambda x: x.ndim >= 1, _cat),
    (lambda x: is_float(x) and x.ndim >= 2, _matmul),
    (lambda x: True, _logic),
    (lambda x: True, _cast),
    (lambda x: is_int(x) and x.ndim <= 2 and x.numel() <= 64, _gather),
]


class Drawn(nn.Module):
    """The program `code`: a step is six numbers (op, operand, four for the op). `returns` picks the outputs.

    Layers are made by the first run, on `inputs`, with weights of order 1 and running statistics off their defaults.
    """

    def __init__(self, code: Sequence[Sequence[int]], returns: Sequence[int], inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.code, self.returns = [list(step) for step in code], list(returns)
        self.layers = nn.ModuleDict()
        self.weights = nn.ParameterDict()
        self.building = True
        self.eval()
        with torch.no_grad():
            self(*inputs)
        self.building = False
        self.eval()

    def layer(self, number: int, make: Callable[[], nn.Module]) -> nn.Module:
        if self.building and str(number) not in self.layers:
            layer = make().eval()
            for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
                if name.endswith("running_var"):
                    tensor.data.uniform_(0.5, 2)
                elif name.endswith("running_mean") or tensor.ndim == 1:
                    tensor.data.normal_().mul_(0.5).add_(0.3)
            self.layers[str(number)] = layer
        return self.layers[str(number)]

    def weight(self, number: int, shape: Sequence[int]) -> Tensor:
        if self.building and str(number) not in self.weights:
            self.weights[str(number)] = nn.Parameter(torch.randn(tuple(shape)))
        weight: Tensor = self.weights[str(number)]
        return weight

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        pool = list(inputs)
        for number, picks in enumerate(self.code):
            step = Step(self, number, picks, pool)
            possible = [run for fits, run in OPS if fits(step.x)]
            result = possible[picks[0] % len(possible)](step)
            if 0 < result.numel() <= LIMIT:
                pool.append(result)
        return (pool[-1], *(pool[-1 - number % len(pool)] for number in self.returns))


def draw_inputs(seed: int, *, special: bool = False) -> list[Tensor]:
    """A map, a matrix and indices; `special` puts NaN, infinities and zeros of both signs into the floats."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [
        torch.randn(2, 5, 6, 7, generator=generator),
        torch.randn(3, 16, generator=generator),
        torch.randint(-4, 5, (3, 4), generator=generator),
    ]
    if special:
        for tensor in inputs[:2]:
            values = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0])
            places = torch.randperm(tensor.numel(), generator=generator)[: len(values)]
            tensor.view(-1)[places] = values
    return inputs
