"""How arguments and results nest: torch's pytree specs as `transpiler.structure`."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

from torch.utils import _pytree

from transpiler.errors import TranspileError
from transpiler.structure import Literal, Mapping_, Sequence_, Structure


def to_structure(spec: _pytree.TreeSpec, leaves: Iterator[Structure]) -> Structure:
    """The spec with its leaves filled in order. A DynamicCache is a list of (key, value) pairs.

    Raises:
        TranspileError: "unsupported-structure": a container that is no tuple, list, dict or record, or a dict
        whose
            keys are not strings.
    """
    if spec.is_leaf():
        return next(leaves)
    kind, context = spec.type, spec.context
    children = [to_structure(child, leaves) for child in spec.children()]
    if kind is None or kind is type(None):
        return Literal(None)
    if kind is list or kind.__name__ in ("immutable_list", "DynamicCache"):
        return Sequence_("list", tuple(children))
    if kind is tuple or kind.__name__ == "Size":
        return Sequence_("tuple", tuple(children))
    if kind in (dict, collections.OrderedDict) or kind.__name__ == "immutable_dict":
        return Mapping_("dict", _fields(context, children, kind))
    if kind is collections.defaultdict:
        return Mapping_("dict", _fields(context[1], children, kind))
    if kind.__module__ == "torch.return_types":
        return Sequence_("tuple", tuple(children))
    record = context if isinstance(context, type) else kind  # a namedtuple's class is its context
    fields = _fields(_record_keys(kind, context, len(children)), children, record)
    return Mapping_("namedtuple" if issubclass(record, tuple) else "record", fields, record.__name__)


def _fields(keys: Any, children: list[Structure], kind: Any) -> tuple[tuple[str, Structure], ...]:
    if not all(isinstance(key, str) for key in keys):
        raise TranspileError(
            "unsupported-structure",
            f"A {kind.__name__} with keys {', '.join(map(repr, keys))}: only string keys can be kept",
        )
    return tuple(zip(keys, children, strict=True))


def _record_keys(kind: Any, context: Any, count: int) -> list[str]:
    """Field names of a namedtuple, a registered dataclass or a ModelOutput."""
    if isinstance(context, type) and hasattr(context, "_fields"):
        return list(context._fields)
    if hasattr(kind, "_fields"):
        return list(kind._fields)
    if isinstance(context, list | tuple):
        # torch's register_dataclass keeps [names, names of None fields]; ModelOutput keeps the names.
        names = context[0] if len(context) == 2 and isinstance(context[0], list | tuple) else context
        if len(names) == count and all(isinstance(name, str) and name.isidentifier() for name in names):
            return list(names)
    raise TranspileError(
        "unsupported-structure",
        f"The model takes or returns a {kind.__name__}, whose fields are not known",
        hints=["return a tuple, a dict or a dataclass registered with torch.export.register_dataclass"],
    )
