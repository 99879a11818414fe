"""What the generated tests are run on: the user's example, drawn inputs, edge cases, redrawn weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transpiler.checks import is_float
from transpiler.dims import Dim, evaluate
from transpiler.draw import Array, Recipe, integers, make, numpy_dtype, seed_of

DRAWS = 3
EDGE_INPUTS = 3  # NaN and Inf are planted into at most this many inputs, one at a time


@dataclass(frozen=True)
class Argument:
    """A flat user input; `bounds` (included) are the integers it may hold, None means the example's.

    Sizes that vary are expressions; the example has values of its own for them.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    bounds: tuple[int, int] | None = None


@dataclass(frozen=True)
class Drawn:
    """A test case's inputs: a recipe and the array it makes, per flat input.

    `resized` says that sizes that vary are not those of the example.
    """

    name: str
    recipes: tuple[Recipe, ...]
    arrays: tuple[Array, ...]
    resized: bool = False


@dataclass(frozen=True)
class Inputs:
    """All cases and the arrays that their recipes refer to."""

    cases: tuple[Drawn, ...]
    stored: Mapping[str, Array] = field(default_factory=dict)

    def case(self, name: str) -> Drawn:
        return next(case for case in self.cases if case.name == name)


def draw_inputs(
    arguments: Sequence[Argument],
    examples: Sequence[Array],
    draws: int = DRAWS,
    sizes: Sequence[tuple[str, Mapping[str, int]]] = (),
) -> Inputs:
    """The example, `draws` random cases, edge cases, and a random case at each of the `sizes`.

    Floats are drawn with the example's mean and standard deviation (standard normal if it is constant),
    never below zero if the example is not; integers within their bounds; masks (zeros and ones, every row
    starting with 1; all true; all false) at random but for the first element of every row; other bools
    are true at least where the example is. Edge cases: zeros, 1e4, 1e-40, one NaN, +Inf or -Inf in an
    otherwise unchanged example, and the lowest and highest integers.
    """
    examples = [
        array.astype(numpy_dtype(item.dtype), copy=False) for item, array in zip(arguments, examples, strict=True)
    ]
    stored = {f"example/{item.name}": np.array(array) for item, array in zip(arguments, examples, strict=True)}
    keep: list[Recipe] = [{"kind": "stored", "key": f"example/{item.name}"} for item in arguments]
    cases = [
        ("example", keep),
        *_random_cases(arguments, examples, keep, draws),
        *_edge_cases(arguments, examples, keep),
    ]
    drawn = tuple(
        Drawn(
            name,
            tuple(recipes),
            tuple(make(r, a.dtype, e.shape, stored) for r, a, e in zip(recipes, arguments, examples, strict=True)),
        )
        for name, recipes in cases
    )
    resized = tuple(_resized(name, values, arguments, examples, stored) for name, values in sizes)
    return Inputs((*drawn, *resized), stored)


def _random_cases(
    arguments: Sequence[Argument], examples: Sequence[Array], keep: list[Recipe], draws: int
) -> Iterator[tuple[str, list[Recipe]]]:
    for number in range(1, draws + 1):
        recipes = [
            _random_recipe(item, array, seed_of(f"drawn_{number}/{item.name}"))
            for item, array in zip(arguments, examples, strict=True)
        ]
        if recipes == keep:  # nothing can be varied
            return
        yield f"drawn_{number}", recipes
        if not any("seed" in recipe for recipe in recipes):  # the next draw would be the same
            return


def _edge_cases(
    arguments: Sequence[Argument], examples: Sequence[Array], keep: list[Recipe]
) -> Iterator[tuple[str, list[Recipe]]]:
    floats = [i for i, item in enumerate(arguments) if is_float(item.dtype) and examples[i].size]
    plain = [i for i in floats if np.isfinite(examples[i]).all()]
    if plain:
        yield "zeros", _with(keep, {i: {"kind": "fill", "value": 0.0} for i in plain})
        for name, scale in (("large", 1e4), ("denormal", 1e-40)):
            if scale < 1 and any(arguments[i].dtype == "float16" for i in plain):
                continue  # 1e-40 is zero in float16
            yield name, _with(keep, {i: _normal(seed_of(f"{name}/{arguments[i].name}"), 0.0, scale) for i in plain})
    for i in floats[:EDGE_INPUTS]:
        at = int(integers(seed_of(f"poke/{arguments[i].name}"), 1, 0, examples[i].size - 1)[0])
        for label, value in (("nan", "nan"), ("plus_inf", "inf"), ("minus_inf", "-inf")):
            poke = {"kind": "poke", "base": keep[i], "at": at, "value": value}
            yield f"{label}_in_{arguments[i].name}", _with(keep, {i: poke})
    bounded = {i: item.bounds for i, item in enumerate(arguments) if item.bounds and not is_float(item.dtype)}
    if bounded:
        yield "lowest", _with(keep, {i: {"kind": "fill", "value": b[0]} for i, b in bounded.items()})
        yield "highest", _with(keep, {i: {"kind": "fill", "value": b[1]} for i, b in bounded.items()})


def _resized(
    name: str,
    sizes: Mapping[str, int],
    arguments: Sequence[Argument],
    examples: Sequence[Array],
    stored: Mapping[str, Array],
) -> Drawn:
    """A random case at other sizes; what is not drawn at random is the example, repeated or cut."""
    recipes: list[Recipe] = []
    arrays: list[Array] = []
    for item, example in zip(arguments, examples, strict=True):
        recipe = _random_recipe(item, example, seed_of(f"{name}/{item.name}"))
        if recipe["kind"] in ("stored", "either"):
            recipe = {"kind": "resized", "key": f"example/{item.name}"}
        recipes.append(recipe)
        arrays.append(make(recipe, item.dtype, [evaluate(dim, sizes) for dim in item.shape], stored))
    return Drawn(name, tuple(recipes), tuple(arrays), resized=True)


def _with(recipes: Sequence[Recipe], changed: Mapping[int, Recipe]) -> list[Recipe]:
    return [changed.get(i, recipe) for i, recipe in enumerate(recipes)]


def _normal(seed: int, mean: float, std: float, low: float | None = None) -> Recipe:
    return {"kind": "normal", "seed": seed, "mean": mean, "std": std, "low": low}


def _random_recipe(item: Argument, example: Array, seed: int) -> Recipe:
    stored = {"kind": "stored", "key": f"example/{item.name}"}
    if example.size == 0:
        return stored
    if is_float(item.dtype):
        if not np.isfinite(example).all():
            return stored  # an additive mask: its -inf pattern has a meaning
        mean, std = float(np.mean(example, dtype=np.float64)), float(np.std(example, dtype=np.float64))
        if std <= 1e-6 * abs(mean) or std == 0.0:
            return _normal(seed, 0.0, 1.0)
        return _normal(seed, mean, std, 0.0 if float(example.min()) >= 0 else None)
    is_bool = item.dtype == "bool"
    if item.bounds is not None and not is_bool:
        return {"kind": "integer", "seed": seed, "low": item.bounds[0], "high": item.bounds[1]}
    if example.ndim >= 1 and example.shape[-1] > 1:
        if np.isin(example, (0, 1)).all() and (example[..., 0] == 1).all() and not (is_bool and _mixed(example)):
            return {"kind": "mask", "seed": seed, "keep": 1}
        if is_bool and not example.any():
            return {"kind": "mask", "seed": seed, "keep": 0}
    if is_bool:
        return {"kind": "either", "seed": seed, "key": stored["key"]} if example.ndim else stored
    low, high = int(example.min()), int(example.max())
    return stored if low == high else {"kind": "integer", "seed": seed, "low": low, "high": high}


def _mixed(example: Array) -> bool:
    return bool(example.any()) and not bool(example.all())


# --- weights ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """New weights: a recipe, a dtype and a shape per state_dict key, and the arrays kept as they are."""

    recipes: Mapping[str, Mapping[str, Any]]
    stored: Mapping[str, Array]

    def arrays(self) -> dict[str, Array]:
        return {k: make(r["recipe"], r["dtype"], r["shape"], self.stored) for k, r in self.recipes.items()}


def draw_state(state: Mapping[str, Array], aliases: Mapping[str, str]) -> State:
    """Weights like the given ones: per float tensor uniform with its mean and standard deviation.

    A tensor that is nowhere negative (a running variance) stays at or above its own minimum. A constant
    tensor varies by a tenth of its value, or of 1 if that is more. Integers, bools and non-finite tensors are
    kept and stored (equal ones once). A tied key gets its target's values.
    """
    recipes: dict[str, dict[str, Any]] = {}
    stored: dict[str, Array] = {}
    seen: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    for key, given in sorted(state.items()):
        entry: dict[str, Any] = {"dtype": given.dtype.name, "shape": list(given.shape)}
        array = given.astype(numpy_dtype(given.dtype.name), copy=False)
        if array.dtype.kind == "f" and array.size and np.isfinite(array).all():
            mean, std = float(np.mean(array, dtype=np.float64)), float(np.std(array, dtype=np.float64))
            low = float(array.min())
            entry["recipe"] = {
                "kind": "uniform",
                "seed": seed_of(f"weights/{aliases.get(key, key)}"),
                "mean": mean,
                "std": std if std > 1e-6 * abs(mean) else 0.1 * max(abs(mean), 1.0),
                "low": low if low >= 0 else None,
            }
        else:
            identity = (given.dtype.name, array.shape, array.tobytes())
            name = seen.setdefault(identity, f"kept/{key}")
            stored[name] = np.array(array)
            entry["recipe"] = {"kind": "stored", "key": name}
        recipes[key] = entry
    return State(recipes, stored)
