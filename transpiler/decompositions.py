"""The project's own ATen -> ATen decompositions, applied right after `torch.export`.

PyTorch's default table is not used as it is: it breaks composites into pieces that are slow to put together again (an
LSTM becomes hundreds of nodes, linear becomes addmm plus transposes). Here an operator is decomposed if no importer
knows it, by PyTorch's own definition; or if it is listed below. What has an importer and is not listed stays whole:
linear, matmul, convolutions, attention, norms, softmax, gelu and other activations, lstm/gru/rnn, pools, upsampling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from transpiler.decomposed_here import own_decompositions
from transpiler.ops import ATEN

# No dot: the default overload. The definitions are PyTorch's.
DECOMPOSED = (
    # Also imported for graphs that were not decomposed; written with other ops at no loss of speed.
    "outer", "ger", "tensordot", "inner", "chain_matmul", "linalg_multi_dot", "bilinear", "addr",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
    "swapaxes", "swapdims", "moveaxis.int", "moveaxis.intlist", "movedim.int", "movedim.intlist",
    "unflatten.int", "fliplr", "flipud", "roll",
    "unsafe_chunk", "unsafe_split.Tensor", "unsafe_split_with_sizes",
    "addcdiv", "addcmul", "lerp.Scalar", "lerp.Tensor", "fix",
    "std_mean.correction", "std_mean", "std_mean.dim",
    # Not in PyTorch's default table, but it has a definition.
    "dist", "cartesian_prod", "tril_indices", "triu_indices", "ldexp.Tensor",
    "addmm.dtype", "_addmm_activation", "lift", "max_pool2d_with_indices_backward",
    "_native_batch_norm_legit_functional", "_batch_norm_with_update_functional", "_batch_norm_no_update",
)  # fmt: skip


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """The table for `ExportedProgram.run_decompositions`.

    Names that this torch does not have, or has no decomposition for, are left out: such an op then stays whole and is
    reported as unsupported if a model uses it.
    """
    return {**listed_decompositions(), **automatic_decompositions(), **own_decompositions()}


@cache
def listed_decompositions() -> Mapping[Any, Callable[..., Any]]:
    """PyTorch's definitions of the ops in `DECOMPOSED`."""
    available = _default_table()
    chosen = {}
    for name in DECOMPOSED:
        base, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, base, None), overload or "default", None)
        if op is None:
            continue
        function = available.get(op) or torch._decomp.decomposition_table.get(op)
        if function is not None:
            chosen[op] = function
        elif is_composite(op):
            chosen[op] = op.decompose
    return chosen


@cache
def automatic_decompositions() -> Mapping[Any, Callable[..., Any]]:
    """PyTorch's definitions of the functional ops that no importer knows."""
    return {
        op: function
        for op, function in _default_table().items()
        if isinstance(op, torch._ops.OpOverload)
        and op.namespace == "aten"
        and not op._schema.is_mutable
        and str(op).removeprefix("aten.") not in ATEN
    }


def is_composite(op: Any) -> bool:
    """Whether the op is defined by other ops in PyTorch itself."""
    return bool(op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


@cache
def _default_table() -> Mapping[Any, Callable[..., Any]]:
    from torch.export import default_decompositions

    return dict(default_decompositions())
