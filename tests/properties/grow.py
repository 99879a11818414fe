"""Growing a graph call by call: what PyTorch refuses, and what rounding alone could change, is not taken in.

Every value is held as it is on each draw of the inputs, in three ways: in the graph's own precision, in float64, and
in the graph's own precision with every rounded element moved by a rounding or two. A call after which the last one
lies too far from the first is ill-conditioned (a comparison of nearly equal numbers, say): two correct
implementations may disagree there, so it says nothing.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.properties.calls import FLOATS, Call, Graph, Made, Ref, Size, Weight, invoke, replace
from transpiler.checks import EPS, FACTOR_TORCH, factor_eps

LIMIT = 2048  # elements
LARGEST = {torch.float16: 1e3, torch.bfloat16: 1e3, torch.float32: 1e4, torch.float64: 1e4}
TRACED_SIZE = 7  # where the graph is traced; a prime that no other size is a multiple of
OTHER_SIZES = (1, 3, 12)
# The order of equal elements is open in PyTorch.
OPEN_ORDER = ("aten.sort.default", "aten.argsort.default", "aten.topk.default", "aten.mode.default",
              "aten.kthvalue.default", "aten.median.dim", "aten.nanmedian.dim")  # fmt: skip


@dataclass
class Lane:
    """All values on one draw."""

    single: list[Tensor]
    wide: list[Tensor]
    noisy: list[Tensor]
    size: int
    special: bool


class Grower:
    """A graph that grows; `x` is the value that the next call starts from."""

    def __init__(self, inputs: Sequence[Made], seed: int) -> None:
        self.inputs, self.calls, self.weights = list(inputs), list[Call](), list[Made]()
        self.made: list[tuple[Tensor, Tensor]] = []
        self.random = random.Random(seed)
        self.noise = torch.Generator().manual_seed(seed)
        sizes = (TRACED_SIZE, *OTHER_SIZES) if any(item.varies for item in inputs) else (TRACED_SIZE,) * 3
        self.lanes = [self._lane(number, size, number == 2) for number, size in enumerate(sizes)]

    def _lane(self, number: int, size: int, special: bool) -> Lane:
        single = Graph(tuple(self.inputs), (), ()).draw(1 + number, size=size, special=special)
        return Lane(single, [_double(item) for item in single], list(single), size, special)

    @property
    def values(self) -> list[Tensor]:
        """The values of the first draw."""
        return self.lanes[0].single

    @property
    def varies(self) -> bool:
        return any(item.varies for item in self.inputs)

    def weight(self, made: Made) -> Weight:
        """A new weight; it is forgotten if the call that it is made for is not taken in."""
        self.weights.append(made)
        tensor = made.draw(1000 + len(self.weights) - 1)
        self.made.append((tensor, _double(tensor)))
        return Weight(len(self.weights) - 1)

    def call(self, function: str, *args: Any, **kwargs: Any) -> list[Ref]:
        """Take a call in; nothing if it fails, or says nothing."""
        before = len(self.values)
        if self.varies:
            args, kwargs = replace(args, _sized), replace(kwargs, _sized)
        call = Call(function, args, kwargs)
        used = {item.number for item in _weights(args)} | {item.number for item in _weights(kwargs)}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                taken = [self._evaluate(call, lane) for lane in self.lanes]
            except _RefusedError:
                return self._forget(used)
            except (
                RuntimeError,
                TypeError,
                ValueError,
                IndexError,
                NotImplementedError,
                AssertionError,
                OverflowError,
            ):
                return self._forget(used)
        if len({len(item[0]) for item in taken}) != 1 or not all(map(_same_type, *(item[0] for item in taken))):
            return self._forget(used)
        if not self.varies and any(
            a.shape != b.shape for item in taken for a, b in zip(item[0], taken[0][0], strict=True)
        ):
            return self._forget(used)
        for lane, (single, wide, noisy) in zip(self.lanes, taken, strict=True):
            lane.single += single
            lane.wide += wide
            lane.noisy += noisy
        self.calls.append(Call(function, args, kwargs, len(taken[0][0])))
        return [Ref(number) for number in range(before, len(self.values))]

    def _forget(self, used: set[int]) -> list[Ref]:
        while self.weights and len(self.weights) - 1 in used:
            self.weights.pop()
            self.made.pop()
        return []

    def _evaluate(self, call: Call, lane: Lane) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        narrow, broad = ([pair[n] for pair in self.made] for n in (0, 1))
        size = lane.size
        single = [item.clone() for item in invoke(call, lane.single, narrow, size=size, wide=False)]
        if not single or any(item.numel() > LIMIT or item.is_complex() for item in single):
            raise _RefusedError
        if any(item.layout is not torch.strided for item in single):
            raise _RefusedError
        again = invoke(call, lane.single, narrow, size=size, wide=False)
        wide = [item.clone() for item in invoke(call, lane.wide, broad, size=size, wide=True)]
        local = invoke(call, [_double(item) for item in lane.single], broad, size=size, wide=True)
        noisy = [item.clone() for item in invoke(call, lane.noisy, narrow, size=size, wide=False)]
        if any(a.shape != b.shape for a, b in zip(single, wide, strict=True)):
            raise _RefusedError
        _check_casts(call, lane.single, single)
        if _needs_finite(call, lane.single):
            raise _RefusedError
        if call.function in OPEN_ORDER and not _distinct(next(iter(_tensor_args(call, lane.single)))):
            raise _RefusedError
        noisy = [self._moved(*item) for item in zip(noisy, single, local, strict=True)]
        for one, same, two, three in zip(single, again, wide, noisy, strict=True):
            if not torch.equal(one.nan_to_num(), same.nan_to_num()) or not _well_conditioned(one, two, three, lane):
                raise _RefusedError
        return single, wide, noisy

    def _moved(self, noisy: Tensor, single: Tensor, local: Tensor) -> Tensor:
        """Each element that PyTorch rounded, by up to two roundings; one in 64 half floats by one of theirs."""
        if not noisy.is_floating_point() or not noisy.numel():
            return noisy
        step = torch.rand(noisy.shape, generator=self.noise, dtype=torch.float64) * 2 - 1
        eps = EPS[str(noisy.dtype).removeprefix("torch.")]
        if noisy.dtype in (torch.float16, torch.bfloat16):
            step = torch.where(step.abs() > 63 / 64, step.sign(), 0.0)
        else:
            step = step * 2
        moved = (noisy.double() * (1 + eps * step)).to(noisy.dtype)
        return torch.where(single.double() == local.double(), noisy, moved)

    def graph(self, outputs: Sequence[int]) -> Graph:
        return Graph(tuple(self.inputs), tuple(self.calls), tuple(outputs), tuple(self.weights))


class _RefusedError(Exception):
    """A call that is not taken in."""


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x.clone()


def _sized(item: Any) -> Any:
    plain = isinstance(item, int) and not isinstance(item, bool)
    return Size(item // TRACED_SIZE) if plain and item > 0 and item % TRACED_SIZE == 0 else item


def _weights(item: Any) -> list[Weight]:
    from tests.properties.calls import refs

    return [found for found in refs(item) if isinstance(found, Weight)]


def _tensor_args(call: Call, values: Sequence[Tensor]) -> list[Tensor]:
    from tests.properties.calls import refs

    found = [*refs(call.args), *refs(call.kwargs)]
    return [values[item.number] for item in found if isinstance(item, Ref)]


def _same_type(*x: Tensor) -> bool:
    return all(item.dtype == x[0].dtype and item.ndim == x[0].ndim for item in x)


def _distinct(x: Tensor) -> bool:
    return x.unique().numel() == x.numel() and not x.isnan().any()


_CASTS = ("aten.to", "aten._to_copy", "aten.type_as", "aten.copy", "aten.full", "aten.fill", "aten.masked",
          "aten.scatter", "aten.slice_scatter", "aten.select_scatter", "aten.diagonal_scatter",
          "Tensor.to")  # fmt: skip


# Where in their results NaN and infinities of their inputs appear depends on the algorithm.
_FINITE = ("cholesky", "lu_", "linalg_", "_linalg_", "_lu", "inverse", "orgqr", "ormqr", "triangular_solve",
           "matrix_exp", "properties.", "pinverse", "_cdist", "cdist")  # fmt: skip


def _needs_finite(call: Call, values: Sequence[Tensor]) -> bool:
    plain = call.function.removeprefix("aten.").removeprefix("torch.linalg.")
    by_name = plain.startswith(_FINITE) or call.function.startswith("torch.linalg.")
    return by_name and not all(bool(item.isfinite().all()) for item in _tensor_args(call, values))


def _check_casts(call: Call, values: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    """A float outside of an integer type becomes whatever the processor makes of it."""
    if not call.function.startswith(_CASTS) and "dtype" not in call.kwargs:
        return
    for result in results:
        if result.is_floating_point() or result.dtype is torch.bool:
            continue
        info = torch.iinfo(result.dtype)
        for x in _tensor_args(call, values):
            if x.is_floating_point() and not bool((x.isfinite() & (x >= info.min) & (x.abs() <= 2**30)).all()):
                raise _RefusedError
            if x.is_floating_point() and x.numel() and float(x.max()) > info.max:
                raise _RefusedError


def _well_conditioned(single: Tensor, wide: Tensor, noisy: Tensor, lane: Lane) -> bool:
    if single.dtype not in FLOATS:
        return torch.equal(single, wide) and torch.equal(single, noisy)
    finite = single.isfinite()
    if not (torch.equal(finite, wide.isfinite()) and torch.equal(finite, noisy.isfinite())):
        return False
    if not torch.equal(single.isnan(), wide.isnan()) or not torch.equal(single.isnan(), noisy.isnan()):
        return False
    if not lane.special and single.numel() and float(single.isnan().float().mean()) > 0.5:
        return False
    one, exact, moved = (item[finite].double() for item in (single, wide, noisy))
    if not one.numel():
        return True
    scale = float(exact.abs().max())
    if scale > LARGEST[single.dtype]:
        return False
    dtype = str(single.dtype).removeprefix("torch.")
    error = float((one - exact).abs().max())
    allowed = FACTOR_TORCH * error + factor_eps(dtype) * EPS[dtype] * scale
    weak = 0.2 if single.dtype in (torch.float16, torch.bfloat16) else 0.01
    return float((one - moved).abs().max()) <= 0.25 * allowed + 1e-300 and error <= weak * scale + 1e-30
