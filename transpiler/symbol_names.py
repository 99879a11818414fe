"""What the sizes that vary are called, and within which bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from transpiler.dims import SymbolRange
from transpiler.errors import UsageError
from transpiler.examples import dims_by_input
from transpiler.specs import DynamicSpec
from transpiler.symbols import symbol_ranges


def user_names(exported: ExportedProgram, example: Any, shapes: Any) -> dict[str, str]:
    """torch's symbol -> the name of the torch.export.Dim the user gave for it."""
    if shapes is None:
        return {}
    values = [node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"]
    users = values[len(values) - _user_count(exported) :]
    names: dict[str, str] = {}
    for value, dims in zip(users, dims_by_input(example, shapes), strict=False):
        for axis, dim in dims.items():
            size = value.shape[axis] if isinstance(value, torch.Tensor) else None
            name = getattr(getattr(dim, "root", dim), "__name__", None)  # of 2*half: half
            if isinstance(size, torch.SymInt) and name and str(name).isidentifier():
                free = size.node.expr.free_symbols
                if len(free) == 1:
                    names.setdefault(str(*free), str(name))
    return names


def given_bounds(
    exported: ExportedProgram, names: Mapping[str, str], example: Any, shapes: Any
) -> dict[str, SymbolRange]:
    """Ranges that begin at 2 because torch.export takes no size for 1, though the user allowed 1: they begin at 1. What
    the graph does there is compared with the module."""
    if shapes is None:
        return {}
    least = {}
    for dims in dims_by_input(example, shapes):
        for dim in dims.values():
            root = getattr(dim, "root", dim)
            least[getattr(root, "__name__", "")] = getattr(root, "min", None)
    ranges = symbol_ranges(exported.range_constraints, names)
    return {
        name: SymbolRange(1, bounds.high)
        for name, bounds in ranges.items()
        if bounds.low == 2 and least.get(name, 2) in (0, 1)
    }


def _varying(exported: ExportedProgram) -> Iterator[tuple[str, int, Any]]:
    """(input, dimension, sympy expression) of every size of a user input that varies."""
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder"]
    for node in nodes[len(nodes) - _user_count(exported) :]:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            for axis, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt):
                    yield node.name, axis, size.node.expr


def default_names(exported: ExportedProgram, names: Mapping[str, str]) -> dict[str, str]:
    """`names`, and for torch's other symbols the input and dimension where they first stand: `ids_1`."""
    complete = dict(names)
    for name, axis, expression in _varying(exported):
        if expression.is_Symbol and str(expression) not in complete:
            wanted = f"{name}_{axis}"
            complete[str(expression)] = wanted if wanted not in complete.values() else f"{wanted}_size"
    return complete


def named_dimensions(
    exported: ExportedProgram, dynamic: Sequence[DynamicSpec]
) -> tuple[dict[str, str], dict[str, SymbolRange]]:
    """What `--dynamic` calls the symbols of a saved program, and the bounds it gives them."""
    found: dict[tuple[str, int], Any] = {(name, axis): expression for name, axis, expression in _varying(exported)}
    names: dict[str, str] = {}
    bounds: dict[str, SymbolRange] = {}
    for spec in dynamic:
        flag = f"--dynamic {spec.place}={spec.symbol}"
        own = (
            [spec.name]
            if (spec.name, spec.dim) in found
            else [name for name, axis in found if axis == spec.dim and name.startswith(f"{spec.name}_")]
        )
        if not own or spec.function not in ("", "forward"):
            known = ", ".join(f"{name}.{axis}" for name, axis in found) or "none"
            raise UsageError(
                "bad-dynamic",
                f"{flag}: this size is fixed in the saved program; those that vary: {known}.",
                hints=["export it with dynamic_shapes, or transpile the model.py"],
            )
        for expression in (found[name, spec.dim] for name in own):
            (symbol, *more) = sorted(map(str, expression.free_symbols))
            if more or names.setdefault(symbol, spec.symbol) != spec.symbol:
                raise UsageError(
                    "bad-dynamic", f"{flag}: the size is {expression} there, which has another name already."
                )
        if spec.bounds is not None:
            allowed = symbol_ranges(exported.range_constraints, names).get(spec.symbol, SymbolRange())
            above = allowed.high is not None and (spec.bounds.high is None or spec.bounds.high > allowed.high)
            if spec.bounds.low < allowed.low or above:
                raise UsageError("bad-dynamic", f"{flag}: the saved program allows {allowed}, not {spec.bounds}.")
            bounds[spec.symbol] = spec.bounds
    return names, bounds


def _user_count(exported: ExportedProgram) -> int:
    from torch.export.graph_signature import InputKind

    return sum(item.kind is InputKind.USER_INPUT for item in exported.graph_signature.input_specs)
