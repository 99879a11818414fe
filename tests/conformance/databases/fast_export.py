"""torch.export at a fraction of its fixed cost.

`run_decompositions` overrides every composite operator of PyTorch, thousands of registrations, before it looks at a
graph: half a second for a graph of three nodes. Here only those are overridden that our table or an importer names;
the others are composites that are decomposed anyway, which is what they do unless they are overridden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest import mock

import torch.export.exported_program as exported_program

from transpiler.decomposed_here import own_decompositions
from transpiler.decompositions import automatic_decompositions, is_composite, listed_decompositions


@cache
def _overridden() -> frozenset[Any]:
    every = exported_program._collect_all_valid_cia_ops()
    return frozenset(every - (set(automatic_decompositions()) - set(own_decompositions())))


@cache
def _table() -> dict[Any, Any]:
    rest = {op: function for op, function in automatic_decompositions().items() if not is_composite(op)}
    return {**listed_decompositions(), **rest, **own_decompositions()}


def _table_copy() -> dict[Any, Any]:
    """run_decompositions takes entries out of the table it is given."""
    return dict(_table())


@contextlib.contextmanager
def fast_export() -> Iterator[None]:
    """Exports inside cost a few milliseconds of fixed overhead instead of half a second."""
    _overridden()
    with (
        mock.patch.object(exported_program, "_collect_all_valid_cia_ops", _overridden),
        mock.patch("transpiler.capture.decomposition_table", _table_copy),
    ):
        yield
