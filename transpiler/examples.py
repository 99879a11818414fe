"""Example inputs and dynamic dimensions: from the command line's specs to torch objects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from transpiler.dims import SymbolRange
from transpiler.errors import UsageError
from transpiler.ops.base import rng
from transpiler.specs import DynamicSpec, InputSpec


def draw(spec: InputSpec, high: int | None = None, seed: str = "") -> torch.Tensor:
    """A tensor of the spec: normal floats, integers in its bounds (`high` where it has none), fair bools."""
    generator = rng(f"{seed}{spec}")
    if spec.dtype == "bool":
        return torch.from_numpy(np.asarray(generator.integers(0, 2, spec.shape), dtype=np.bool_))
    if "int" in spec.dtype:
        low = spec.low if spec.low is not None else 0
        top = spec.high if spec.high is not None else (high if high is not None else 1)
        return torch.from_numpy(np.asarray(generator.integers(low, top + 1, spec.shape), dtype=spec.dtype))
    values = np.asarray(generator.standard_normal(spec.shape), dtype=np.float64)
    return torch.from_numpy(values).to(getattr(torch, spec.dtype))


def smallest_embedding(module: torch.nn.Module) -> int | None:
    """The largest index that every embedding of the module takes: a safe bound before the graph is known."""
    sizes = [item.num_embeddings for item in module.modules() if isinstance(item, torch.nn.Embedding)]
    return min(sizes) - 1 if sizes else None


def bind_inputs(
    module: torch.nn.Module, specs: Sequence[InputSpec]
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Arguments for the module's forward: specs without a name by position, the others by keyword.

    Raises:
        UsageError: names that forward does not take, or required parameters that no spec gives.
    """
    bound = smallest_embedding(module)
    args = [spec for spec in specs if spec.name is None]
    named = {spec.name: spec for spec in specs if spec.name is not None}
    if len(args) + len(named) < len(specs):
        raise UsageError("bad-input", "an --input name is given twice.")
    parameters = inspect.signature(module.forward).parameters
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if (unknown := sorted(set(named) - set(parameters))) and not takes_any:
        takes = ", ".join(parameters)
        raise UsageError("bad-input", f"forward takes no argument {', '.join(unknown)}; it takes: {takes}.")
    if len(args) > len(positional) and not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        raise UsageError("bad-input", f"{len(args)} inputs without a name, but forward takes {len(positional)}.")
    free = [p.name for p in positional[len(args) :]]
    if clash := [p.name for p in positional[: len(args)] if p.name in named]:
        raise UsageError("bad-input", f"{', '.join(clash)} is given by position and by name.")
    # Leading parameters go by position even if they were named: that is how a caller writes them.
    leading = []
    while free and free[0] in named and parameters[free[0]].default is inspect.Parameter.empty:
        leading.append(named.pop(free.pop(0)))
    missing = [name for name in free if parameters[name].default is inspect.Parameter.empty and name not in named]
    missing += [
        p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in named
    ]
    if missing:
        flags = " ".join(f"--input {name}=SHAPE:DTYPE" for name in missing)
        raise UsageError("bad-input", f"No input for {', '.join(missing)}.", hints=[f"add {flags}"])
    tensors = tuple(draw(spec, bound, str(index)) for index, spec in enumerate([*args, *leading]))
    return tensors, {str(name): draw(spec, bound, str(name)) for name, spec in named.items()}


def named_arguments(method: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those of `**kwargs` too."""
    parameters = inspect.signature(method).parameters
    arguments: dict[str, Any] = {}
    for name, value in inspect.signature(method).bind(*args, **kwargs).arguments.items():
        arguments.update(value if parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return arguments


def dynamic_shapes(
    method: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], specs: Sequence[DynamicSpec]
) -> dict[str, Any]:
    """`dynamic_shapes` for torch.export, by argument name. One symbol used twice is one dimension. A dimension of an
    argument that holds several tensors, such as a key/value cache, is that of each of them.

    Raises:
        UsageError: an input or dimension that does not exist.
    """
    arguments = named_arguments(method, args, kwargs)
    dims: dict[str, Any] = {}
    for spec in specs:
        if spec.symbol not in dims or spec.bounds is not None:
            low, high = (spec.bounds.low, spec.bounds.high) if spec.bounds else (1, None)
            dims[spec.symbol] = torch.export.Dim(spec.symbol, min=low, max=high)
    shapes: dict[str, Any] = {name: _nothing(value) for name, value in arguments.items()}
    for spec in specs:
        tensors = _tensors_in(arguments.get(spec.name))
        if not tensors:
            known = [name for name, item in arguments.items() if _tensors_in(item)]
            raise UsageError(
                "bad-dynamic",
                f"--dynamic {spec.place}: no such input; known: {', '.join(known)}.",
            )
        rank = min(item.dim() for item in tensors)
        if spec.dim >= rank:
            raise UsageError("bad-dynamic", f"--dynamic {spec.place}: {spec.name} has {rank} dims.")
        dim = dims[spec.symbol]
        dim = spec.scale * dim if spec.scale != 1 else dim
        dim = dim + spec.offset if spec.offset else dim
        shapes[spec.name] = _with_dim(shapes[spec.name], arguments[spec.name], spec.dim, dim)
    return shapes


def _children(value: Any) -> list[Any] | None:
    """The parts of an argument that pytree takes apart, such as a cache of transformers; None for any other."""
    from torch.utils import _pytree

    if isinstance(value, tuple | list):
        return list(value)
    node = None if isinstance(value, torch.Tensor) else _pytree.SUPPORTED_NODES.get(type(value))
    return None if node is None else list(node.flatten_fn(value)[0])


def _tensors_in(value: Any) -> list[torch.Tensor]:
    from torch.utils import _pytree

    return [item for item in _pytree.tree_leaves(value) if isinstance(item, torch.Tensor)]


def _with_dim(entry: Any, value: Any, axis: int, dim: Any) -> Any:
    """An entry of `dynamic_shapes` in which dimension `axis` of every tensor of `value` is `dim` too."""
    if isinstance(value, torch.Tensor):
        return {**(entry or {}), axis: dim}
    if isinstance(value, dict):
        return {key: _with_dim((entry or {}).get(key), item, axis, dim) for key, item in value.items()}
    parts = _children(value)
    if parts is None:
        return entry
    entries = entry or [None] * len(parts)
    items = [_with_dim(old, item, axis, dim) for old, item in zip(entries, parts, strict=True)]
    return tuple(items) if isinstance(value, tuple) else items


def grown(args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with every varying dimension of size 1 doubled: torch.export takes a 1 for a fixed size."""
    from torch.utils import _pytree

    example = (tuple(args), dict(kwargs))
    leaves, spec = _pytree.tree_flatten(example)
    dims = list(dims_by_input(example, shapes))
    if len(dims) != len(leaves):
        return example
    for position, (leaf, varying) in enumerate(zip(leaves, dims, strict=True)):
        for axis, dim in varying.items():
            named = isinstance(getattr(dim, "__name__", None), str)
            if isinstance(leaf, torch.Tensor) and leaf.shape[axis] == 1 and (named or dim is torch.export.Dim.DYNAMIC):
                leaf = torch.cat([leaf, leaf], axis)
        leaves[position] = leaf
    result: tuple[tuple[Any, ...], dict[str, Any]] = _pytree.tree_unflatten(leaves, spec)
    return result


def _nothing(value: Any) -> Any:
    """The `dynamic_shapes` entry of an argument of which nothing varies, nested as the argument is."""
    if isinstance(value, dict):
        return {key: _nothing(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_nothing(item) for item in value)
    parts = _children(value)
    return None if parts is None else [_nothing(item) for item in parts]


def dims_by_input(example: tuple[tuple[Any, ...], Mapping[str, Any]], shapes: Any) -> Iterator[dict[int, Any]]:
    """The dims of each flat input, in order, from any form of `dynamic_shapes`."""
    args, kwargs = example
    values = [*args, *kwargs.values()]
    # By name they are in signature order, in which positional arguments come first.
    entries = list(shapes.values()) if isinstance(shapes, Mapping) else list(shapes)
    for value, entry in zip(values, _spread(values, entries), strict=False):
        yield from _dims(value, entry)


def _spread(values: Sequence[Any], entries: Sequence[Any]) -> list[Any]:
    """An entry per argument: what `*args` takes has one entry, a tuple of theirs, in `dynamic_shapes`."""
    spread: list[Any] = []
    for entry in entries:
        value = values[len(spread)] if len(spread) < len(values) else None
        several = isinstance(entry, tuple | list) and any(isinstance(part, Mapping | tuple | list) for part in entry)
        if isinstance(value, torch.Tensor) and several:
            spread += entry
        else:
            spread.append(entry)
    return spread


def _dims(value: Any, entry: Any) -> Iterator[dict[int, Any]]:
    if isinstance(value, torch.Tensor):
        if isinstance(entry, Mapping):
            yield dict(entry)
        elif isinstance(entry, tuple | list):
            yield dict(enumerate(entry))
        else:
            yield {}
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _dims(item, entry.get(key) if isinstance(entry, Mapping) else None)
    elif (children := _children(value)) is not None:
        parts = entry if isinstance(entry, tuple | list) else [None] * len(children)
        for item, part in zip(children, parts, strict=False):
            yield from _dims(item, part)
    else:
        yield {}


def dim_range(dim: Any) -> SymbolRange:
    """The bounds of a `torch.export.Dim`."""
    return SymbolRange(max(1, int(dim.min)), int(dim.max) if dim.max < 2**31 else None)


def equal_sizes(example: tuple[tuple[Any, ...], Mapping[str, Any]], shapes: Any) -> list[list[tuple[int, int]]]:
    """Places (flat input, dimension) that are one dimension: those for which `shapes` has the same named one, and the
    lengths of the keys and values of one layer of a cache, which attention wants to be equal whatever they vary as."""
    dims = list(dims_by_input(example, shapes))
    named: dict[str, list[tuple[int, int]]] = {}
    for index, varying in enumerate(dims):
        for axis, dim in varying.items():
            name = getattr(dim, "__name__", None)
            if isinstance(name, str) and not hasattr(dim, "root"):
                named.setdefault(name, []).append((index, axis))
    groups = [places for places in named.values() if len(places) > 1]
    position = 0
    for value in (*example[0], *example[1].values()):
        pairs = (_children(value) or []) if type(value).__name__ == "DynamicCache" else []
        at = position
        for pair in pairs:
            if all(dims[index].get(2) is not None for index in (at, at + 1)):
                groups.append([(at, 2), (at + 1, 2)])
            at += len(pair)
        position += len(_leaves(value))
    return groups


def _leaves(value: Any) -> list[Any]:
    from torch.utils import _pytree

    return list(_pytree.tree_leaves(value))


def draw_placeholders(exported: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example arguments for a program that was saved without: drawn from its placeholders' shapes.

    Symbolic sizes take the hint torch recorded, or the smallest allowed one above 1.
    """
    from torch.export.graph_signature import InputKind
    from torch.utils import _pytree

    specs = exported.graph_signature.input_specs
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder"]
    flat: list[Any] = []
    for spec, node in zip(specs, nodes, strict=True):
        if spec.kind is not InputKind.USER_INPUT:
            continue
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            shape = tuple(_size(size, exported) for size in value.shape)
            dtype = str(value.dtype).removeprefix("torch.")
            flat.append(draw(InputSpec(None, shape, dtype), seed=node.name))
        else:
            flat.append(getattr(spec.arg, "value", value))
    args, kwargs = _pytree.tree_unflatten(flat, exported.call_spec.in_spec)
    return args, kwargs


def _size(size: Any, exported: ExportedProgram) -> int:
    if isinstance(size, int):
        return size
    hint = getattr(size.node, "hint", None)
    if hint is not None:
        return int(hint)
    bounds = exported.range_constraints.get(size.node.expr)
    return max(2, int(bounds.lower)) if bounds is not None else 2
