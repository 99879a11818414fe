"""Choosing a schedule: the target's rules are asked in order, the first that takes the group wins."""

from __future__ import annotations

import importlib.util
import math
import sys
from functools import cache
from typing import Any, cast

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
    """The target's schedule modules in order."""
    return tuple(cast(Rule, import_schedule(f"{target.name}.{name}")) for name in target.schedules)


def schedule(group: Group, target: Target, name: str) -> Lowered:
    """The kernel for a group.

    Raises:
        LookupError: no rule of the target takes it.
    """
    foreign = {value.dtype for node in group.nodes for value in (*node.inputs, *node.outputs)} - set(target.dtypes)
    if foreign:
        raise LookupError(f"target {target.name!r} has no {', '.join(sorted(foreign))}")
    largest = max((value.type for value in (*group.inputs, *group.outputs)), key=_elements)
    if _elements(largest) >= MAX_ELEMENTS:
        raise LookupError(f"{largest} has 2^31 elements or more")
    with import_schedule("sizes").kernel_symbols(_symbols(group)):
        for rule in rules(target):
            try:
                result = rule.apply(group, target, name)
            except SymbolicShapeError:  # the rule needs fixed sizes; a plainer one may not
                continue
            if result is not None:
                return result
    ops = " + ".join(node.op.name for node in group.nodes)
    varying = " with sizes that vary" if _symbols(group) else ""
    raise LookupError(f"no schedule of target {target.name!r} takes {ops}{varying}")
