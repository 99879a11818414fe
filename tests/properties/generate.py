"""Random graphs from lists of numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from tests.properties.calls import Graph, Made, Ref
from tests.properties.composites import COMPOSITES
from tests.properties.grow import TRACED_SIZE, Grower
from tests.properties.signatures import Drawer, overloads

BUNDLE = 16
TRIES = 8  # of one step, with other functions and arguments
SHAPES: list[tuple[int, ...]] = [
    (3, 4), (2, 5, 6, 6), (5,), (2, 3, 5), (4, 4), (), (3, 16), (1, 3, 1), (2, 16, 4, 4), (0, 3), (2, 1, 4, 3), (1,),
    (3, 33), (2, 4, 4), (1, 2, 3, 4, 4), (8, 8),
]  # fmt: skip
DTYPES = [*[torch.float32] * 8, torch.float64, *[torch.float16, torch.bfloat16, torch.int64] * 2]
DTYPES += [torch.int32, torch.int8, torch.uint8, torch.int16, torch.bool]

Code = tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int, int]], Sequence[int]]


def build(code: Code, *, varies: bool = False) -> Graph:
    """The graph of a code; `varies`: dimension 0 of all inputs is a size that varies."""
    inputs, steps, returns = code
    grower = Grower([_input(item, varies) for item in inputs], seed=len(steps))
    for step in steps:
        _grow(grower, step)
    count = len(grower.values)
    first = len(grower.inputs) if grower.calls else 0
    outputs = [count - 1, *(first + number % (count - first) for number in returns)]
    return used_part(grower.graph(outputs))


def _input(numbers: tuple[int, int], varies: bool) -> Made:
    shape = SHAPES[numbers[0] % len(SHAPES)]
    dtype = DTYPES[numbers[1] % len(DTYPES)]
    return Made((TRACED_SIZE, *shape[1:]), dtype, varies=True) if varies else Made(shape, dtype)


def _grow(grower: Grower, step: tuple[int, int, int]) -> None:
    """One call (or a few), from one of the last values."""
    choose = random.Random(repr(step))
    weights = [weight for weight, _ in COMPOSITES]
    for attempt in range(TRIES):
        recent = step[1] % min(len(grower.values), 6) if attempt == 0 else choose.randrange(len(grower.values))
        drawer = Drawer(grower, choose, Ref(len(grower.values) - 1 - recent))
        if choose.random() < 0.4:
            taken = choose.choices(COMPOSITES, weights)[0][1](drawer)
        else:
            functions = overloads()
            number = step[0] if attempt == 0 else choose.randrange(len(functions))
            taken = drawer.call(choose.choice(functions[number % len(functions)]))
        if taken:
            return


def used_part(graph: Graph) -> Graph:
    """The graph without the calls and weights that no output needs."""
    from tests.properties.shrink import without_unused

    return without_unused(graph)


def codes(count: int, seed: int | None = None) -> list[Code]:
    """Random codes; without a seed always the same, whatever else runs in the process."""
    source = random.Random(0 if seed is None else seed)

    def number() -> int:
        return source.randrange(1 << 16)

    return [
        (
            [(number(), number()) for _ in range(source.randint(1, 3))],  # inputs
            [(number(), number(), number()) for _ in range(source.randint(2, 12))],  # steps: function, value, the rest
            [number() for _ in range(source.randint(0, 3))],  # outputs besides the last value
        )
        for _ in range(count)
    ]


def bundles(count: int, seed: int | None = None) -> Iterator[tuple[list[Graph], bool]]:
    """Graphs in bundles that one package holds, and whether it is fused and folded; a bundle is of one kind."""
    waiting: dict[bool, list[Graph]] = {False: [], True: []}
    number = 0
    drawn = codes(count, seed)
    for position, code in enumerate(drawn):
        kind = position % 5 == 4
        graph = build(code, varies=kind)
        if graph.calls:
            waiting[kind].append(graph)
        for held, graphs in waiting.items():
            if len(graphs) == BUNDLE or (position == len(drawn) - 1 and graphs):
                yield graphs, number % 4 != 3
                waiting[held] = []
                number += 1
