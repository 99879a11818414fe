"""Key/value caches of transformers: in the inputs of a call, across torch.export, and switched off."""

from __future__ import annotations

import sys
from typing import Any

import torch

from transpiler.model_file import Example


def caching_configs(module: torch.nn.Module) -> list[Any]:
    """Configs with use_cache on, of transformers models anywhere in the module."""
    if "transformers" not in sys.modules:
        return []
    from transformers import PreTrainedModel

    found: dict[int, Any] = {}
    for item in module.modules():
        if isinstance(item, PreTrainedModel):
            for config in (item.config, item.config.get_text_config()):
                if getattr(config, "use_cache", False) is True:
                    found[id(config)] = config
    return list(found.values())


def holds_cache(example: Example) -> bool:
    """Whether a call is given a key/value cache of transformers, or asks for one."""
    args, kwargs = example
    if kwargs.get("use_cache") is True:
        return True
    if "transformers" not in sys.modules:
        return False
    from transformers import Cache

    return any(isinstance(item, Cache) for item in (*args, *kwargs.values()))


def register_caches() -> None:
    """Let transformers' DynamicCache cross torch.export as a list of (key, value) pairs, one per layer; only where
    transformers is in use.

    Its own registration builds the cache through `update`, which leaves constants that cannot be traced.
    """
    if "transformers" not in sys.modules:
        return
    from torch.utils import _pytree
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    make_layer: Any = DynamicLayer  # which has no types
    if DynamicCache in _pytree.SUPPORTED_NODES:
        return

    def flatten(cache: Any) -> tuple[list[Any], Any]:
        layers = [layer for layer in cache.layers if layer.is_initialized]
        if any(type(layer) is not DynamicLayer for layer in layers):
            raise TypeError("a DynamicCache of layers that are no plain DynamicLayer, such as sliding windows")
        return [(layer.keys, layer.values) for layer in layers], None

    def unflatten(pairs: Any, context: Any) -> Any:
        cache = DynamicCache()
        for key, value in pairs:
            layer = make_layer()
            layer.keys, layer.values, layer.is_initialized = key, value, True
            layer.dtype, layer.device = getattr(key, "dtype", None), getattr(key, "device", None)
            cache.layers.append(layer)
        return cache

    def flatten_with_keys(cache: Any) -> tuple[list[tuple[Any, Any]], Any]:
        pairs, context = flatten(cache)
        return [(_pytree.SequenceKey(index), pair) for index, pair in enumerate(pairs)], context

    _pytree.register_pytree_node(
        DynamicCache,
        flatten,
        unflatten,
        serialized_type_name="transformers.DynamicCache",
        flatten_with_keys_fn=flatten_with_keys,
    )
