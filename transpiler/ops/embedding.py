"""Embedding tables: `take` along axis 0."""

from __future__ import annotations

from typing import Any

from transpiler.ir import Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, aten


@aten("embedding.default")
def _embedding(context: ImportContext, weight: Value, indices: Value, *_training: Any, **_training_by_name: Any) -> Any:
    """(weight[V, D], indices[...]) -> [..., D]; the options concern gradients."""
    return compose.take(context, weight, indices, 0)


@aten("embedding_bag.default", "embedding_bag.padding_idx", "_embedding_bag.default")
def _embedding_bag(context: ImportContext, *_: Any, **__: Any) -> Any:
    raise context.unsupported("bags of varying length are not implemented; embed and reduce fixed-size rows instead")
