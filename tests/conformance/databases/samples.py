"""PyTorch's databases as modules with tensor inputs.

A sample is one call of one operator or module. Its tensor arguments become the inputs of an `nn.Module`, everything
else is closed over. The data are drawn with a fixed seed, so that a sample's number names the same call in every run.
"""

from __future__ import annotations

import copy
import random
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
DATABASES = ("module", "op")
# Vectors of these are determined up to their signs: the database compares absolute values and products of them.
GAUGED = frozenset({"linalg.svd", "svd", "linalg.eigh"})

# PyTorch leaves open which of several equal elements these mean: what their places hold is compared, not the places.
# Values: where `dim` stands among the arguments behind the tensor.
OPEN_ORDER = {"sort": 0, "argsort": 0, "topk": 1, "kthvalue": 1, "mode": 0}


@dataclass(frozen=True)
class Entry:
    """One line of a database in one dtype."""

    database: str
    dtype: str
    name: str

    @property
    def id(self) -> str:
        return f"{self.database}/{self.dtype}/{self.name}"


class _Slot:
    """Stands where a tensor argument goes."""


class Call(torch.nn.Module):
    """`function(*args, **kwargs)` as a module of its tensor arguments; returns the flat tuple of its tensor results.

    Complex results, which no package returns, are returned as pairs of real numbers.
    """

    def __init__(self, function: Callable[..., Any], leaves: Sequence[Any], spec: Any) -> None:
        super().__init__()
        self.function = function
        self.leaves = tuple(_Slot() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        self.spec = spec

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, _Slot) else leaf for leaf in self.leaves]
        args, kwargs = _pytree.tree_unflatten(leaves, self.spec)
        result = self.function(*args, **kwargs)
        return tuple(_real_form(leaf) for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor))

    def double(self) -> Call:
        """The same call in float64: weights, and dtypes among the arguments."""
        function = copy.deepcopy(self.function).double() if isinstance(self.function, torch.nn.Module) else None
        leaves = [torch.float64 if isinstance(leaf, torch.dtype) and leaf in FLOATS else leaf for leaf in self.leaves]
        wide = Call(function or self.function, leaves, self.spec)
        wide.leaves = tuple(leaves)
        return wide

    def key(self) -> tuple[Any, ...]:
        """Equal for calls of the same function with the same plain arguments."""
        plain = tuple("tensor" if isinstance(leaf, _Slot) else f"{type(leaf)}{leaf!r}" for leaf in self.leaves)
        return (id(self.function), str(self.spec), plain)


def _real_form(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


@dataclass(frozen=True)
class Sample:
    """Sample `number` of an entry."""

    entry: Entry
    number: int
    module: Call
    inputs: tuple[torch.Tensor, ...]

    @property
    def id(self) -> str:
        return f"{self.entry.id}/{self.number}"

    def key(self) -> tuple[Any, ...]:
        """Equal for samples that export to the same graph."""
        tensors = tuple((x.dtype, tuple(x.shape), x.stride(), x.layout) if _dense(x) else id(x) for x in self.inputs)
        return (*self.module.key(), tensors)


def _dense(x: torch.Tensor) -> bool:
    return x.layout is torch.strided and not x.is_nested


@cache
def _infos(database: str) -> dict[str, Any]:
    """Entry name -> torch's record of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if database == "module":
            from torch.testing._internal.common_modules import module_db

            return {info.name: info for info in module_db}
        from torch.testing._internal.common_methods_invocations import op_db

    return {_op_name(info): info for info in op_db}


def _op_name(info: Any) -> str:
    return f"{info.name}:{info.variant_test_name}" if info.variant_test_name else str(info.name)


def entries(database: str, dtype: str, pattern: str = "") -> list[Entry]:
    """The entries that take the dtype and whose name matches the whole of `pattern`, in the database's order."""
    torch_dtype = getattr(torch, dtype)
    return [
        Entry(database, dtype, name)
        for name, info in _infos(database).items()
        if torch_dtype in info.dtypes and (not pattern or re.fullmatch(pattern, name))
    ]


def samples(entry: Entry) -> Iterator[Sample]:
    """All samples of an entry, in order."""
    _seed(0)
    info = _infos(entry.database)[entry.name]
    draw = _module_calls if entry.database == "module" else _op_calls
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (function, args, kwargs) in enumerate(draw(info, getattr(torch, entry.dtype))):
            leaves, spec = _pytree.tree_flatten((args, kwargs))
            inputs = tuple(leaf.detach() for leaf in leaves if isinstance(leaf, torch.Tensor))
            yield Sample(entry, number, Call(function, leaves, spec).eval(), inputs)


def _op_calls(info: Any, dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    for sample in info.sample_inputs("cpu", dtype, requires_grad=False):
        function = _gauged(info.op, sample.output_process_fn_grad) if _op_name(info) in GAUGED else info.op
        if info.name in OPEN_ORDER and not sample.kwargs.get("stable"):
            function = _held(info.op, OPEN_ORDER[info.name])
        yield function, (sample.input, *sample.args), dict(sample.kwargs)


@cache
def _gauged(op: Callable[..., Any], process: Callable[[Any], Any]) -> Callable[..., Any]:
    """The op's result in the form that the database compares; cached, since equal calls share a graph."""
    return lambda *args, **kwargs: process(op(*args, **kwargs))


@cache
def _held(op: Callable[..., Any], position: int) -> Callable[..., Any]:
    """The op's values, the elements at its places, and whether the places differ from each other."""

    def call(x: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        result = op(x, *args, **kwargs)
        dim = kwargs.get("dim", args[position] if len(args) > position else -1)
        *values, places = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        places = places if places.dim() == x.dim() else places.unsqueeze(dim)
        times = torch.zeros(x.shape, dtype=torch.int64).scatter_add(dim, places, torch.ones_like(places))
        return (*values, x.gather(dim, places), times.amax(dim))

    return call


def _module_calls(info: Any, dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
    for number, given in enumerate(list(inputs)):
        if given.forward_input is None:
            continue
        _seed(number)
        module = info.module_cls(*given.constructor_input.args, **given.constructor_input.kwargs)
        args, kwargs = tuple(given.forward_input.args), dict(given.forward_input.kwargs)
        module = module.to(dtype).eval()
        if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin):
            module(*args, **kwargs)  # its weights get their shapes
        yield module, args, kwargs


def _seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def choose(count: int, wanted: int | None) -> list[int]:
    """`wanted` of `count` sample numbers, evenly spread, the first and the last among them; None: all."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted({round(index * (count - 1) / max(wanted - 1, 1)) for index in range(wanted)})
