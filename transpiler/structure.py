"""How flat tensors nest in the user's arguments and results: a small, JSON-able mirror of PyTorch's pytrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Leaf:
    """The `index`-th flat tensor."""

    index: int


@dataclass(frozen=True)
class Literal:
    """A value that is not a tensor and was fixed at capture: None, bool, int, float or str."""

    value: bool | int | float | str | None


@dataclass(frozen=True)
class Sequence_:
    """A tuple or list."""

    kind: str  # "tuple" | "list"
    items: tuple[Structure, ...]


@dataclass(frozen=True)
class Mapping_:
    """A dict with string keys, a record: named fields reached as attributes too (a dataclass, a ModelOutput), or
    a namedtuple."""

    kind: str  # "dict" | "record" | "namedtuple"
    items: tuple[tuple[str, Structure], ...]
    type_name: str = ""  # the class of a record or namedtuple


Structure = Leaf | Literal | Sequence_ | Mapping_


def leaves(structure: Structure) -> Iterator[int]:
    """The flat indices in order."""
    match structure:
        case Leaf(index):
            yield index
        case Sequence_(_, items):
            for item in items:
                yield from leaves(item)
        case Mapping_(_, fields):
            for _, item in fields:
                yield from leaves(item)


def flatten(structure: Structure, value: Any) -> list[Any]:
    """The flat tensors of `value`, which must nest as `structure` says (used on trusted, captured examples)."""
    match structure:
        case Leaf():
            return [value]
        case Literal():
            return []
        case Sequence_(_, items):
            return [leaf for item, part in zip(items, value, strict=True) for leaf in flatten(item, part)]
        case Mapping_(_, fields):
            flat: list[Any] = []
            for key, item in fields:
                part = value[key] if isinstance(value, Mapping) else getattr(value, key)
                flat.extend(flatten(item, part))
            return flat


def to_json(structure: Structure) -> Any:
    match structure:
        case Leaf(index):
            return {"leaf": index}
        case Literal(value):
            return {"literal": value}
        case Sequence_(kind, items):
            return {kind: [to_json(item) for item in items]}
        case Mapping_(kind, fields, type_name):
            body = [[key, to_json(item)] for key, item in fields]
            return {kind: body} if kind == "dict" else {kind: body, "type": type_name}


def from_json(data: Any) -> Structure:
    """Inverse of `to_json`. Raises ValueError on anything else."""
    if not isinstance(data, Mapping):
        raise ValueError(f"not a structure: {data!r}")
    if "leaf" in data and isinstance(data["leaf"], int):
        return Leaf(data["leaf"])
    if "literal" in data and isinstance(data["literal"], None | bool | int | float | str):
        return Literal(data["literal"])
    for kind in ("tuple", "list"):
        if isinstance(data.get(kind), Sequence):
            return Sequence_(kind, tuple(from_json(item) for item in data[kind]))
    for kind in ("dict", "record", "namedtuple"):
        if isinstance(data.get(kind), Sequence):
            fields = tuple((str(key), from_json(item)) for key, item in data[kind])
            type_name = str(data.get("type", ""))
            names = [] if kind == "dict" else [type_name, *(key for key, _ in fields)]
            if not all(name.isidentifier() for name in names):
                raise ValueError(f"{kind} type and fields must be identifiers: {names}")
            return Mapping_(kind, fields, type_name)
    raise ValueError(f"not a structure: {data!r}")
