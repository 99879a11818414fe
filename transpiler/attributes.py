"""Building ops from names and attributes that come from outside: nothing is trusted, nothing is evaluated."""

from __future__ import annotations

import dataclasses
import keyword
import types
import typing
from collections.abc import Mapping
from typing import Any

from transpiler.dims import SymExpr
from transpiler.errors import TranspileError
from transpiler.ir import DTYPES
from transpiler.ops import REGISTRY, Op

MAX_RANK = 16
MAX_TEXT = 4096
MAX_NESTING = 8


def bad_graph(message: str) -> TranspileError:
    """The error for a graph file that does not hold what it should."""
    return TranspileError("bad-graph", f"Not a valid graph: {message}")


def check_identifier(name: object, what: str) -> str:
    """Raises TranspileError "bad-graph" unless `name` can stand as a name in generated code."""
    if not isinstance(name, str) or len(name) > 256 or not name.isascii() or not name.isidentifier():
        raise bad_graph(f"{what} {_short(name)} is not an identifier")
    if keyword.iskeyword(name):
        raise bad_graph(f"{what} {_short(name)} is a Python keyword")
    return name


def check_text(text: object, what: str, *, empty: bool = True) -> str:
    """A string of printable characters on one line."""
    if not isinstance(text, str) or len(text) > MAX_TEXT or not (text or empty) or not all(map(_harmless, text)):
        raise bad_graph(f"{what} {_short(text)} is not a short line of text")
    return text


def _harmless(character: str) -> bool:
    return character.isprintable() or character == "\t"


def check_dtype(dtype: object) -> str:
    if dtype not in DTYPES:
        raise bad_graph(f"unknown dtype {_short(dtype)}; known: {', '.join(DTYPES)}")
    return str(dtype)


def make_op(name: object, attributes: Mapping[str, Any]) -> Op:
    """The op, if its name is known and every attribute has the type that the op declares.

    Raises:
        TranspileError: "bad-graph".
    """
    if not isinstance(name, str) or name not in REGISTRY:
        raise bad_graph(f"unknown op {_short(name)}; known: {', '.join(sorted(REGISTRY))}")
    cls = REGISTRY[name]
    fields = {item.name: item for item in dataclasses.fields(cls)}
    if extra := sorted(set(attributes) - set(fields)):
        raise bad_graph(f"{name} has no attribute {', '.join(map(_short, extra))}; it has: {', '.join(fields)}")
    hints = _hints(cls)
    for key, item in fields.items():
        if key in attributes:
            if not _matches(attributes[key], hints.get(key, Any), 0):
                raise bad_graph(f"attribute {key} of {name} is {_short(attributes[key])}, expected {item.type}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise bad_graph(f"{name} needs the attribute {key}")
    try:
        return cls(**attributes)
    except Exception as error:  # a check in the op's own __post_init__
        raise bad_graph(f"{name}: {error}") from error


def _hints(cls: type[Op]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:  # a name imported for type checking only: the value is still an Attribute
        return {}


def _matches(value: Any, hint: Any, depth: int) -> bool:
    """Whether a value has a declared type; with no (usable) declaration, whether it is any attribute at
    all."""
    if depth > MAX_NESTING:
        return False
    if hint is Any or isinstance(hint, typing.ForwardRef | str):
        return _is_attribute(value, depth)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, part, depth + 1) for part in typing.get_args(hint))
    if origin is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if len(parts) == 2 and parts[1] is Ellipsis:
            return all(_matches(item, parts[0], depth + 1) for item in value)
        return len(value) == len(parts) and all(_matches(v, p, depth + 1) for v, p in zip(value, parts, strict=True))
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return type(value) in (int, float)
    if hint in (int, bool, str, tuple, SymExpr):
        return type(value) is hint and _is_attribute(value, depth)
    return _is_attribute(value, depth)


def _is_attribute(value: Any, depth: int) -> bool:
    if isinstance(value, tuple):
        return depth < MAX_NESTING and all(_is_attribute(item, depth + 1) for item in value)
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and all(map(_harmless, value))
    return value is None or isinstance(value, bool | int | float | SymExpr)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
