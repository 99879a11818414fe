"""What a package has for each of its targets, and the one file of weights that they share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from transpiler.artifacts import Artifacts
from transpiler.ir import Array, Graph, Role, Value
from transpiler.memory import aligned
from transpiler.plan import KernelPlan, Storage

SHARED_FILE = "weights.safetensors"


@dataclass(frozen=True)
class Part:
    """What a package has for one target: a plan per function and what was compiled of them.

    `prepared` are the tensors that the kernels read, `constants` those of the rewritten program, which `prepare` reads.
    `verified` says whether the generated tests ran on a device, `errors` what was measured there (a record per output).
    """

    plans: Sequence[KernelPlan]
    artifacts: Artifacts
    prepared: Mapping[str, Array]
    constants: Mapping[str, Array] = field(default_factory=dict)
    verified: bool = False
    errors: Sequence[Mapping[str, Any]] = ()

    @property
    def target(self) -> str:
        return self.plans[0].target


def by_layout(targets: Sequence[str]) -> list[str]:
    """The order in which targets put tensors into the file of weights: C programs read it from its start."""
    return sorted(targets, key=lambda target: target != "cpu")


def share_weights(
    programs: Mapping[str, Sequence[Sequence[KernelPlan]]],
    constants: Mapping[str, Mapping[str, Array]],
    alignment: int,
) -> dict[str, list[tuple[KernelPlan, ...]]]:
    """The plans with places in one file of weights for all targets: a tensor that several read has one place.

    Two tensors are one if they are computed from the state_dict in the same way. Plans of a target's variants have the
    same weights, and stay alike.

    Args:
        programs: per target and variant the plans of every function.
        constants: per target those of the rewritten program, by key.
        alignment: of every tensor, in bytes.
    """
    order = by_layout(list(programs))
    firsts = {target: programs[target][0][0] for target in order}
    recipes = {target: _recipes(firsts[target].prepare, constants[target]) for target in order}
    readers: dict[str, list[str]] = {}  # recipe -> targets
    values: dict[str, Value] = {}
    for target in order:
        for value in firsts[target].weights:
            recipe = recipes[target][value.name]
            readers.setdefault(recipe, []).append(target)
            values.setdefault(recipe, value)
    # What a target reads lies close together: its own at an end, what it shares next to it.
    places: dict[str, tuple[str, int]] = {}
    names: set[str] = set()
    total = 0
    for recipe in sorted(readers, key=lambda recipe: _place(readers[recipe], order[0])):
        name = values[recipe].name
        stored = name if name not in names else f"{name}.{readers[recipe][0]}"
        names.add(stored)
        places[recipe] = (stored, total)
        total += aligned(_nbytes(values[recipe]), alignment)
    found: dict[str, list[tuple[KernelPlan, ...]]] = {}
    for target, plans_of in programs.items():
        weights = firsts[target].weights
        mine = {value.name: places[recipes[target][value.name]] for value in weights}
        end = max((mine[value.name][1] + aligned(_nbytes(value), alignment) for value in weights), default=0)
        found[target] = [tuple(_moved(plan, mine, end) for plan in plans) for plans in plans_of]
    return found


def _place(readers: Sequence[str], first: str) -> int:
    """Where a tensor stands in the file: those of the first target alone, what it shares, what others share, others."""
    if first in readers:
        return 0 if len(readers) == 1 else 1
    return 2 if len(readers) > 1 else 3


def _nbytes(value: Value) -> int:
    nbytes = value.type.bytes
    assert isinstance(nbytes, int), f"weight {value.name} has the symbolic type {value.type}"
    return nbytes


def _recipes(prepare: Graph, constants: Mapping[str, Array]) -> dict[str, str]:
    """Value -> a hash of how it is computed from the state_dict."""
    recipes: dict[str, str] = {}
    for item in prepare.inputs:
        if item.role is Role.CONSTANT:
            array = np.ascontiguousarray(constants[item.key])
            made = f"constant {item.value.type} {hashlib.sha256(array.tobytes()).hexdigest()}"
        else:
            made = f"weight {item.value.type} {item.key}"
        recipes[item.value.name] = _digest(made)
    for node in prepare.nodes:
        read = ", ".join(recipes[value.name] for value in node.inputs)
        for position, value in enumerate(node.outputs):
            made = f"{type(node.op).__name__} {node.op!r} {value.type} {position} ({read})"
            recipes[value.name] = _digest(made)
    return recipes


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _moved(plan: KernelPlan, places: Mapping[str, tuple[str, int]], end: int) -> KernelPlan:
    """The plan with its weights at other places. A view of a weight lies where the weight does."""
    moves: dict[int, int] = {}
    for value in sorted(
        plan.weights, key=lambda value: value.type.bytes != 0
    ):  # an empty one has its neighbour's place
        moves[plan.storage[value.name].offset] = places[value.name][1]
    storage = {
        name: Storage("weight", item.index, moves[item.offset]) if item.kind == "weight" else item
        for name, item in plan.storage.items()
    }
    stored = {name: stored for name, (stored, _) in places.items() if stored != name}
    return replace(plan, storage=storage, weight_bytes=end, stored=stored, weights_file=SHARED_FILE)
