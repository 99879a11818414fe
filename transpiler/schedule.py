"""Choosing a schedule: the target's rules are asked in order, the first that takes the group wins."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, cast

from transpiler.choices import choosing
from transpiler.dims import SymExpr, free_symbols
from transpiler.group import Group, Lowered, Rule
from transpiler.ir import SymbolicShapeError, TensorType
from transpiler.resources import tree
from transpiler.target import Target

# Kernels compute offsets in 32 bits.
MAX_ELEMENTS = 1 << 31


def _elements(type_: TensorType) -> int:
    """The number of elements, the fixed part of it if the shape is symbolic: the runtime checks the rest."""
    return math.prod(dim for dim in type_.shape if isinstance(dim, int))


def _symbols(group: Group) -> list[str]:
    """Every symbol in the sizes and attributes of a group, sorted."""
    names: set[str] = set()
    pending: list[Any] = [dim for value in group.inputs for dim in value.shape]
    for node in group.nodes:
        pending += [dim for value in node.outputs for dim in value.shape]
        pending += node.op.attributes().values()
    while pending:
        item = pending.pop()
        if isinstance(item, SymExpr):
            names |= free_symbols(item)
        elif isinstance(item, tuple | list):
            pending += item
    return sorted(names)


def choice_key(group: Group, target: Target) -> str:
    """What the choice points of a group's schedule depend on, as a digest: its anchor with the types around it (all
    nodes of a pointwise group or a pair) and the instruction set, but neither names nor what is fused behind it."""
    anchor = group.anchor_node
    facts: tuple[object, ...] = group.key()
    if anchor is not None and not group.is_pair:
        types = [str(value.type) for value in (*anchor.inputs, *anchor.outputs)]
        facts = (type(anchor.op).__name__, repr(anchor.op), types, len(group.prologue))
    return hashlib.sha256(repr((target.name, target.variant.name, facts)).encode()).hexdigest()[:24]


@cache
def _shipped(target: str, variant: str) -> Mapping[str, Mapping[str, str]]:
    """The choices beside the target's file, if any: by `choice_key`, the answers by point. See docs/tuning.md."""
    path = tree("targets") / f"{target}.choices.json"
    if not path.exists():
        return {}
    return cast("Mapping[str, Mapping[str, str]]", json.loads(path.read_text()).get(variant, {}))


def shipped_answers(group: Group, target: Target) -> Mapping[str, str]:
    """What was measured for this group when this version was made, if anything."""
    return _shipped(target.name, target.variant.name).get(choice_key(group, target), {})


@cache
def _schedules_package() -> None:
    """Make `schedules/` importable as `transpiler.schedules`, wherever it lies."""
    folder = tree("schedules")
    spec = importlib.util.spec_from_file_location(
        "transpiler.schedules", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["transpiler.schedules"] = module
    spec.loader.exec_module(module)


def import_schedule(name: str) -> Any:
    """The module `transpiler.schedules.<name>`."""
    _schedules_package()
    return importlib.import_module(f"transpiler.schedules.{name}")


@cache
def rules(target: Target) -> tuple[Rule, ...]:
    """The target's schedule modules in order; a name with a dot is one of another folder."""
    places = [name if "." in name else f"{target.name}.{name}" for name in target.schedules]
    return tuple(cast(Rule, import_schedule(place)) for place in places)


def schedule(group: Group, target: Target, name: str, answers: Mapping[str, str] | None = None) -> Lowered:
    """The kernel for a group; `answers` decide the choice points of its schedule, shipped ones by default.

    Raises:
        LookupError: no rule of the target takes it.
    """
    foreign = {value.dtype for node in group.nodes for value in (*node.inputs, *node.outputs)} - set(target.dtypes)
    if foreign:
        raise LookupError(f"target {target.name!r} has no {', '.join(sorted(foreign))}")
    largest = max((value.type for value in (*group.inputs, *group.outputs)), key=_elements)
    if _elements(largest) >= MAX_ELEMENTS:
        raise LookupError(f"{largest} has 2^31 elements or more")
    if answers is None:
        answers = shipped_answers(group, target)
    sizes = import_schedule("sizes")
    with sizes.kernel_symbols(_symbols(group), sizes.machine_of(target)):
        for rule in rules(target):
            with choosing(answers) as asked:
                try:
                    result = rule.apply(group, target, name)
                except SymbolicShapeError:  # the rule needs fixed sizes; a plainer one may not
                    continue
            if result is not None:
                return replace(result, points=tuple(asked.points.values()))
    ops = " + ".join(node.op.name for node in group.nodes)
    varying = " with sizes that vary" if _symbols(group) else ""
    raise LookupError(f"no schedule of target {target.name!r} takes {ops}{varying}")
