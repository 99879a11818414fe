"""Random graphs as data: a list of calls of PyTorch functions on a pool of values, run and printed as a module."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Ref:
    """Value `number`: the inputs come first, then the results of the calls in order."""

    number: int


@dataclass(frozen=True)
class Weight:
    """Weight `number` of the module."""

    number: int


@dataclass(frozen=True)
class Size:
    """`times` the size that varies: dimension 0 of the first input."""

    times: int


@dataclass(frozen=True)
class Made:
    """How a tensor is drawn: "normal", "positive", "mask", or "index" below `bound`.

    `varies`: dimension 0 is the size that varies, and `shape[0]` its value where the graph is traced.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    kind: str = "normal"
    bound: int = 1
    varies: bool = False

    def draw(self, seed: int, *, size: int | None = None, special: bool = False) -> Tensor:
        """`special` puts NaN, infinities and zeros of both signs into floats."""
        generator = torch.Generator().manual_seed(seed)
        shape = (size, *self.shape[1:]) if self.varies and size is not None else self.shape
        if self.kind == "index":
            return torch.randint(0, max(self.bound, 1), shape, generator=generator).to(self.dtype)
        if self.kind == "mask" or self.dtype is torch.bool:
            return (torch.rand(shape, generator=generator) < 0.5).to(self.dtype)
        if self.dtype not in FLOATS:
            low = 0 if self.dtype is torch.uint8 else -4
            return torch.randint(low, 6, shape, generator=generator).to(self.dtype)
        values = torch.randn(shape, generator=generator)
        values = values.abs() + 0.25 if self.kind == "positive" else values
        if special and values.numel():
            extra = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1.0])
            places = torch.randperm(values.numel(), generator=generator)[: len(extra)]
            values.view(-1)[places] = extra[: len(places)]
        return values.to(self.dtype)


@dataclass(frozen=True)
class Call:
    """One call; its results are the next values of the pool."""

    function: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    results: int = 1


@dataclass(frozen=True)
class Graph:
    """A whole program. `outputs` are numbers of values."""

    inputs: tuple[Made, ...]
    calls: tuple[Call, ...]
    outputs: tuple[int, ...]
    weights: tuple[Made, ...] = ()

    @property
    def varies(self) -> bool:
        return any(item.varies for item in self.inputs)

    def draw(self, seed: int, *, size: int | None = None, special: bool = False) -> list[Tensor]:
        return [made.draw(97 * seed + n, size=size, special=special) for n, made in enumerate(self.inputs)]

    def starts(self) -> list[int]:
        """The number of each call's first result."""
        starts, number = [], len(self.inputs)
        for call in self.calls:
            starts.append(number)
            number += call.results
        return starts


@functools.cache
def resolve(name: str) -> Callable[..., Any]:
    """The function of a name: `aten.add.Tensor`, `F.conv2d`, `torch.rnn`, or one of `HELPERS`."""
    space, _, rest = name.partition(".")
    if space == "aten":
        packet, _, overload = rest.rpartition(".")
        function: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
        return function
    if space == "properties":
        return HELPERS[rest]
    found: Callable[..., Any] = functools.reduce(getattr, rest.split("."), _SPACES[space])
    return found


_SPACES: dict[str, Any] = {"F": F, "torch": torch, "Tensor": Tensor}


def refs(item: Any) -> Iterator[Any]:
    """Every `Ref`, `Weight` and `Size` among arguments."""
    if isinstance(item, Ref | Weight | Size):
        yield item
    elif isinstance(item, list | tuple):
        for part in item:
            yield from refs(part)
    elif isinstance(item, Mapping):
        yield from refs(list(item.values()))


def replace(item: Any, change: Callable[[Any], Any]) -> Any:
    """The arguments with every leaf changed."""
    if isinstance(item, list | tuple):
        return type(item)(replace(part, change) for part in item)
    if isinstance(item, Mapping):
        return {key: replace(part, change) for key, part in item.items()}
    return change(item)


def invoke(
    call: Call, values: Sequence[Tensor], weights: Sequence[Tensor], *, size: int = 1, wide: bool
) -> list[Tensor]:
    """The tensors that a call returns; `wide`: dtypes of floats among its arguments become float64."""

    def leaf(item: Any) -> Any:
        if isinstance(item, Ref):
            return values[item.number]
        if isinstance(item, Weight):
            return weights[item.number]
        if isinstance(item, Size):
            return item.times * size
        return torch.float64 if wide and item in FLOATS and isinstance(item, torch.dtype) else item

    result = resolve(call.function)(*replace(call.args, leaf), **replace(dict(call.kwargs), leaf))
    return list(tensors(result))


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


class Drawn(nn.Module):
    """The module of a graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph, self.wide = graph, False
        self.weights = [f"w{number}" for number in range(len(graph.weights))]
        for number, made in enumerate(graph.weights):
            tensor = made.draw(1000 + number)
            if tensor.is_floating_point():
                self.register_parameter(f"w{number}", nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(f"w{number}", tensor)
        self.eval()

    def double(self) -> Drawn:
        super().double()
        self.wide = True
        return self

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = list(inputs)
        weights = [getattr(self, name) for name in self.weights]
        size = inputs[0].shape[0] if self.graph.varies else 1
        for call in self.graph.calls:
            values += invoke(call, values, weights, size=size, wide=self.wide)
        return tuple(values[number] for number in self.graph.outputs)


# --- text ---------------------------------------------------------------------------------------------------------


def as_case(graph: Graph) -> str:
    """The graph as an expression, for a test."""
    parts = [f"{name}=({''.join(f'{_plain(item)}, ' for item in getattr(graph, name))})"
             for name in ("inputs", "calls", "outputs", "weights") if getattr(graph, name)]  # fmt: skip
    return f"Graph({', '.join(parts)})"


def _plain(item: Any) -> str:
    if not dataclasses.is_dataclass(item):
        return repr(item)
    given = [f"{spec.name}={getattr(item, spec.name)!r}" for spec in dataclasses.fields(item)
             if spec.default is dataclasses.MISSING or getattr(item, spec.name) != spec.default]  # fmt: skip
    return f"{type(item).__name__}({', '.join(part for part in given if part != 'kwargs={}')})"


def as_module(graph: Graph) -> str:
    """The graph as a module to read, with the type of every value on the first draw."""
    drawn = Drawn(graph)
    values = graph.draw(1)
    size = values[0].shape[0] if graph.varies else 1
    weights = [getattr(drawn, name) for name in drawn.weights]
    lines = ["class Drawn(nn.Module):"]
    if weights:
        lines += ["    def __init__(self):", "        super().__init__()"]
        lines += [f"        self.w{n} = ...  # {_type(weight)}, {made.kind}"
                  for n, (weight, made) in enumerate(zip(weights, graph.weights, strict=True))]  # fmt: skip
    names = [f"x{number}" for number in range(len(values))]
    lines += [f"    def forward(self, {', '.join(names)}):  # {', '.join(map(_type, values))}"]
    for call in graph.calls:
        results = invoke(call, values, weights, size=size, wide=False)
        text = [_argument(item, names) for item in call.args]
        text += [f"{key}={_argument(item, names)}" for key, item in call.kwargs.items()]
        new = [f"v{len(names) + number}" for number in range(len(results))]
        function = call.function.replace("aten.", "torch.ops.aten.", 1)
        lines.append(f"        {', '.join(new)} = {function}({', '.join(text)})  # {', '.join(map(_type, results))}")
        names += new
        values += results
    lines.append(f"        return {', '.join(names[number] for number in graph.outputs)}")
    return "\n".join(lines)


def _argument(item: Any, names: Sequence[str]) -> str:
    if isinstance(item, Ref):
        return names[item.number]
    if isinstance(item, Weight):
        return f"self.w{item.number}"
    if isinstance(item, Size):
        return f"{item.times} * x0.shape[0]" if item.times > 1 else "x0.shape[0]"
    if isinstance(item, list | tuple):
        return f"[{', '.join(_argument(part, names) for part in item)}]"
    return repr(item)


def _type(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


# --- functions of complex numbers, whose results are real ----------------------------------------------------------


def rfft(x: Tensor) -> Tensor:
    return torch.view_as_real(torch.fft.rfft(x))


def filtered(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(x)
    return torch.fft.irfft(spectrum * spectrum.abs().clamp(max=2.0), n=x.shape[-1])


def as_complex(x: Tensor) -> Tensor:
    z = torch.complex(x, x.flip(-1))
    return torch.view_as_real(z * z.conj() + torch.fft.fft(z))


HELPERS = {"rfft": rfft, "filtered": filtered, "as_complex": as_complex}
