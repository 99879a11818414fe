"""What statements of C do: what they name and call, where they leave a loop or a function."""

from __future__ import annotations

from collections.abc import Sequence

from .c_source import Node


def as_node(part: object) -> Node:
    assert isinstance(part, tuple)
    return part


def as_block(part: object) -> Sequence[Node]:
    assert isinstance(part, tuple)
    return part


def walk(part: object) -> list[Node]:
    """All nodes in it."""
    if not isinstance(part, tuple | list):
        return []
    own = [part] if part and isinstance(part[0], str) and isinstance(part, tuple) else []
    return [*own, *(node for item in part for node in walk(item))]


def names(node: Node) -> list[str]:
    return [str(item[1]) for item in walk(node) if item[0] in ("name", "item")]


def calls(part: object, name: str) -> bool:
    return any(node[:2] == ("call", name) for node in walk(part))


def leaves(node: Node) -> bool:
    """Whether the statement may return or break, and may not."""
    if node[0] == "for":
        return any(item[0] == "return" for item in walk(node))
    return node[0] == "if" and any(item[0] in ("return", "break") for item in walk(node))


def always_returns(statements: Sequence[Node]) -> bool:
    if not statements:
        return False
    last = statements[-1]
    if last[0] == "if":
        return always_returns(as_block(last[2])) and always_returns(as_block(last[3]))
    return last[0] == "return"


def returns_in_part(statements: Sequence[Node]) -> bool:
    """Whether a flag must say that the function has returned."""
    for node in statements:
        if node[0] == "for" and any(item[0] == "return" for item in walk(node)):
            return True
        if node[0] == "if":
            then, otherwise = as_block(node[2]), as_block(node[3])
            inside = returns_in_part(then) or returns_in_part(otherwise)
            partly = any(item[0] == "return" for item in walk((then, otherwise))) and not always_returns(then)
            if inside or partly:
                return True
    return False
