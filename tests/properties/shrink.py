"""From a graph that fails to a small one that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace as change
from typing import Any

from tests.properties.calls import Call, Drawn, Graph, Made, Ref, Weight, invoke, refs, replace


def without_unused(graph: Graph) -> Graph:
    """Without calls, inputs (but the first) and weights that no output needs."""
    starts = graph.starts()
    needed, calls = set(graph.outputs), set[int]()
    for number in reversed(range(len(graph.calls))):
        call = graph.calls[number]
        if needed & set(range(starts[number], starts[number] + call.results)):
            calls.add(number)
            needed |= {item.number for item in refs((call.args, call.kwargs)) if isinstance(item, Ref)}
    kept_inputs = [n for n in range(len(graph.inputs)) if n in needed or n == 0]
    weights = sorted({item.number for n in calls for item in refs((graph.calls[n].args, graph.calls[n].kwargs))
                      if isinstance(item, Weight)})  # fmt: skip
    moved = {old: new for new, old in enumerate(kept_inputs)}
    new_calls: list[Call] = []
    for number in sorted(calls):
        call = graph.calls[number]
        renamed = _renamed(call, moved, {old: new for new, old in enumerate(weights)})
        start = len(kept_inputs) + sum(item.results for item in new_calls)
        moved |= {starts[number] + n: start + n for n in range(call.results)}
        new_calls.append(renamed)
    return Graph(
        tuple(graph.inputs[n] for n in kept_inputs),
        tuple(new_calls),
        tuple(moved[n] for n in graph.outputs),
        tuple(graph.weights[n] for n in weights),
    )


def _renamed(call: Call, values: dict[int, int], weights: dict[int, int]) -> Call:
    def leaf(item: Any) -> Any:
        if isinstance(item, Ref):
            return Ref(values[item.number])
        return Weight(weights[item.number]) if isinstance(item, Weight) else item

    return change(call, args=replace(call.args, leaf), kwargs=replace(dict(call.kwargs), leaf))


def shrunk(graph: Graph, fails: Callable[[Graph], bool], limit: int = 40) -> Graph:
    """The smallest graph found that still fails: one output, no unused call, values cut off into inputs."""
    tried = 0
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(graph):
            tried += 1
            if tried > limit:
                return graph
            if fails(smaller):
                graph, progress = smaller, True
                break
    return graph


def _smaller(graph: Graph) -> Iterator[Graph]:
    if len(graph.outputs) > 1:
        for number in graph.outputs:
            yield without_unused(change(graph, outputs=(number,)))
    starts = graph.starts()
    if not graph.varies:
        for number in reversed(range(len(graph.calls) - 1)):
            yield without_unused(_cut(graph, starts[number], graph.calls[number].results))
    for number in range(len(graph.calls) - 1):
        # An earlier value as the output.
        if len(graph.outputs) == 1:
            yield without_unused(change(graph, outputs=(starts[number],)))


def _cut(graph: Graph, start: int, count: int) -> Graph:
    """The values from `start` on as inputs of their own."""
    drawn = Drawn(graph)
    values = graph.draw(1)
    weights = [getattr(drawn, name) for name in drawn.weights]
    for call in graph.calls:
        values += invoke(call, values, weights, wide=False)
    made = tuple(Made(tuple(value.shape), value.dtype) for value in values[start : start + count])
    first = len(graph.inputs)

    def moved(number: int) -> int:
        if start <= number < start + count:
            return first + number - start
        return number + count if number >= first else number

    def leaf(item: Any) -> Any:
        return Ref(moved(item.number)) if isinstance(item, Ref) else item

    calls = [
        change(call, args=replace(call.args, leaf), kwargs=replace(dict(call.kwargs), leaf)) for call in graph.calls
    ]
    return Graph((*graph.inputs, *made), tuple(calls), tuple(map(moved, graph.outputs)), graph.weights)
