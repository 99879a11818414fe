"""Which sizes a package with varying dimensions is tested at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transpiler.dims import Dim, SymbolRange, evaluate

# What one test case may cost PyTorch, in multiply-adds and the like: a second or two, twice (float32 and float64).
MAX_WORK = 1e11
# The most that a symbol without an upper bound is tested at, as a multiple of the example's value.
UNBOUNDED_FACTOR = 4
ODD = (3, 7, 13, 29, 37, 61)

Sizes = Mapping[str, int]


def size_cases(
    symbols: Mapping[str, SymbolRange], example: Sizes, work: Sequence[Dim]
) -> list[tuple[str, dict[str, int]]]:
    """Named values of the symbols: all at their lower bounds, each and all at their upper bounds, and odd ones between.

    Upper bounds are lowered, the largest first, until the sum of `work` (operations of each kernel) is at most
    MAX_WORK. `example` holds the values of the example inputs, which have cases of their own.
    """
    if not symbols:
        return []

    def top(name: str) -> int:
        bounds = symbols[name]
        return bounds.high if bounds.high is not None else max(bounds.low, UNBOUNDED_FACTOR * example[name] + 1)

    def affordable(sizes: dict[str, int]) -> dict[str, int]:
        while sum(evaluate(item, sizes) for item in work) > MAX_WORK:
            name = max(sizes, key=lambda name: sizes[name] / symbols[name].low)
            if sizes[name] == symbols[name].low:
                break
            sizes = {**sizes, name: max(symbols[name].low, sizes[name] * 3 // 4)}
        return sizes

    low = {name: bounds.low for name, bounds in symbols.items()}
    cases = [("smallest", low)]
    if len(symbols) > 1:
        cases += [(f"largest_{name}", affordable({**low, name: top(name)})) for name in symbols]
    cases.append(("largest", affordable({name: top(name) for name in symbols})))
    for turn in range(2):
        odd = {}
        for position, (name, bounds) in enumerate(symbols.items()):
            value = ODD[(2 * turn + position) % len(ODD)]
            odd[name] = min(max(value, bounds.low), top(name))
        cases.append((f"odd_{turn + 1}", affordable(odd)))
    different: dict[tuple[int, ...], tuple[str, dict[str, int]]] = {}
    for name, sizes in cases:
        if any(sizes[key] != example[key] for key in sizes):
            different.setdefault(tuple(sizes.values()), (name, sizes))
    return list(different.values())
