"""Graphs through import, passes, compile and run, many in one package, against PyTorch by the rule of ADR 5."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.conformance.databases.fast_export import fast_export
from tests.properties.calls import Drawn, Graph, as_case, as_module
from tests.properties.grow import OTHER_SIZES, TRACED_SIZE
from tests.properties.shrink import shrunk
from tests.properties.support import built
from transpiler.checks import compare
from transpiler.errors import TranspileErrors
from transpiler.ir import Array
from transpiler.verify import expect
from transpiler.weights import to_numpy

EQUAL, REFUSED, WRONG, CRASH = "equal", "refused", "wrong", "crash"


@dataclass(frozen=True)
class Verdict:
    """What became of a graph: `outcome`, and why it is not `EQUAL`."""

    graph: Graph
    outcome: str
    reason: str = ""

    @property
    def failed(self) -> bool:
        return self.outcome in (WRONG, CRASH)

    def text(self) -> str:
        return f"{self.outcome}: {self.reason}\n{as_module(self.graph)}\n{as_case(self.graph)}"


class Bundle(nn.Module):
    """Graphs as one module: all of their inputs, all of their outputs."""

    def __init__(self, graphs: Sequence[Graph]) -> None:
        super().__init__()
        self.graphs = nn.ModuleList(map(Drawn, graphs))
        self.counts = [len(graph.inputs) for graph in graphs]

    def forward(self, *inputs: Tensor) -> Any:
        given = iter(inputs)
        return [graph(*(next(given) for _ in range(count)))
                for graph, count in zip(self.graphs, self.counts, strict=True)]  # fmt: skip


def judge(graphs: Sequence[Graph], *, fold: bool = True) -> list[Verdict]:
    """The verdicts on graphs that all vary, or all do not; a package that cannot be made is taken apart."""
    try:
        return list(_judge(graphs, fold))
    except Exception as error:
        if len(graphs) > 1:
            half = len(graphs) // 2
            return judge(graphs[:half], fold=fold) + judge(graphs[half:], fold=fold)
        if isinstance(error, TranspileErrors):
            return [Verdict(graphs[0], REFUSED, _first_lines(error))]
        return [Verdict(graphs[0], CRASH, f"{type(error).__name__}: {str(error)[:1500]}")]


def judge_small(graph: Graph, *, fold: bool = True) -> Verdict:
    """The verdict on a graph, of a small one that fails as well if it fails."""
    verdict = judge([graph], fold=fold)[0]
    if not verdict.failed:
        return verdict
    found = verdict

    def fails(smaller: Graph) -> bool:
        nonlocal found
        try:
            result = judge([smaller], fold=fold)[0]
        except Exception:  # a cut whose inputs the graph does not take
            return False
        if result.outcome == verdict.outcome:
            found = result
        return result.outcome == verdict.outcome

    shrunk(graph, fails)
    return found


def _first_lines(error: TranspileErrors) -> str:
    return "; ".join(problem.message for problem in error.problems)[:300]


def _draws(graphs: Sequence[Graph]) -> Iterator[tuple[str, list[list[Tensor]]]]:
    """The draws that the graphs were grown on."""
    sizes = (TRACED_SIZE, *OTHER_SIZES) if graphs[0].varies else (TRACED_SIZE,) * 3
    for number, size in enumerate(sizes):
        draws = [graph.draw(1 + number, size=size, special=number == 2) for graph in graphs]
        yield f"draw {number}" + (f" of size {size}" if graphs[0].varies else ""), draws


def _judge(graphs: Sequence[Graph], fold: bool) -> Iterator[Verdict]:
    module = Bundle(graphs)
    draws = list(_draws(graphs))
    first = [item for draw in draws[0][1] for item in draw]
    problems: list[list[str]] = [[] for _ in graphs]
    with (
        fast_export(),
        built(module, first, fold=fold, dynamic_shapes=_dynamic(graphs)) as package,
        package.Model() as native,
        package.Model(native=False) as python,
    ):
        for where, draw in draws:
            arrays = [to_numpy(item).copy() for part in draw for item in part]
            kept = [array.copy() for array in arrays]
            results = [array.copy() for array in native.infer(*arrays)]
            again = [array.tobytes() for array in native.infer(*arrays)]
            stepwise = [array.tobytes() for array in python.infer(*arrays)]
            if any(array.tobytes() != before.tobytes() for array, before in zip(arrays, kept, strict=True)):
                problems[0].append(f"{where}: an input was written")
            position = 0
            for number, (graph, inputs) in enumerate(zip(graphs, draw, strict=True)):
                for index, (one, two) in enumerate(zip(*_expected(graph, inputs), strict=True)):
                    ours, what = results[position], f"{where}, output {index}"
                    if text := _difference(one, two, ours, what):
                        problems[number].append(text)
                    if ours.tobytes() != again[position]:
                        problems[number].append(f"{what}: the second call differs")
                    if ours.tobytes() != stepwise[position]:
                        problems[number].append(f"{what}: kernel by kernel differs")
                    position += 1
    for graph, texts in zip(graphs, problems, strict=True):
        yield Verdict(graph, WRONG if texts else EQUAL, "; ".join(texts)[:1500])


def _expected(graph: Graph, inputs: Sequence[Tensor]) -> tuple[list[Array], list[Array]]:
    """PyTorch's results, in the graph's precision and in float64."""
    module = Drawn(graph)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        single = [to_numpy(item.contiguous()).copy() for item in module(*[item.clone() for item in inputs])]
        wide = [item.double() if item.is_floating_point() else item.clone() for item in inputs]
        double = [to_numpy(item.contiguous()).copy() for item in copy.deepcopy(module).double()(*wide)]
    return single, double


def _difference(one: Array, two: Array, ours: Array, what: str) -> str:
    if ours.dtype != one.dtype or ours.shape != one.shape:
        return f"{what}: {ours.dtype}{ours.shape}, PyTorch has {one.dtype}{one.shape}"
    flat = one.astype(np.float32) if one.dtype.name == "bfloat16" else one
    wanted = expect("it", one.dtype.name, flat, two, whole=1 << 30, sample=1, parts=1)
    return compare(wanted, ours, what).message


def _dynamic(graphs: Sequence[Graph]) -> Any:
    if not graphs[0].varies:
        return None
    batch = _batch()
    return (tuple({0: batch} for graph in graphs for _ in graph.inputs),)


@functools.cache
def _batch() -> Any:
    return torch.export.Dim("batch", min=1, max=64)
