"""The project's own ATen -> ATen decompositions, applied right after `torch.export`.

PyTorch's default table is not used: it breaks composites into pieces that are slow to put together again (an
LSTM becomes hundreds of nodes, linear becomes addmm plus transposes) and fails on dynamic batches. The start
is the empty table, which only makes the graph functional. An op is listed here if it is written with other
ops at no loss of speed, so that the op set does not have to know it. Kept whole on purpose, even where
PyTorch could split them: linear, matmul, convolutions, attention, norms, softmax, gelu and other activations,
lstm/gru/rnn, pools, upsampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# No dot: the default overload. The comments: what the ops below become. The definitions are PyTorch's.
DECOMPOSED = (
    # Losses are forward values in some models: log_softmax, gather, mean and arithmetic.
    "cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss_forward",
    "nll_loss2d", "nll_loss2d_forward", "mse_loss", "l1_loss",
    "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "kl_div", "soft_margin_loss",
    "cosine_embedding_loss", "hinge_embedding_loss", "margin_ranking_loss",
    "triplet_margin_loss", "poisson_nll_loss",
    # Products of vectors and tensors: reshape, mul, matmul.
    "outer", "ger", "kron", "tensordot", "inner", "chain_matmul",
    "linalg_multi_dot", "linalg_cross", "cross", "bilinear", "addr",
    "vander", "linalg_vander",
    # Distances and norms of whole tensors: elementwise ops and one reduction.
    "cosine_similarity", "pairwise_distance", "dist", "pdist",
    "linalg_matrix_norm", "linalg_matrix_norm.str_ord", "nuclear_norm", "frobenius_norm.dim",
    "linalg_norm", "linalg_norm.ord_str", "renorm",
    # Shuffles: reshape and permute, which later passes merge.
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
    "swapaxes", "swapdims", "moveaxis.int", "moveaxis.intlist", "movedim.int", "movedim.intlist",
    "unflatten.int", "fliplr", "flipud", "rot90", "roll",
    "hstack", "vstack", "dstack", "column_stack", "row_stack",
    "block_diag", "combinations", "cartesian_prod", "take_along_dim",
    "unsafe_chunk", "unsafe_split.Tensor", "unsafe_split_with_sizes",
    # Elementwise functions with a formula over other elementwise ops.
    "addcdiv", "addcmul", "lerp.Scalar", "lerp.Tensor", "logit", "sinc",
    "xlogy.Tensor", "xlogy.Scalar_Self", "xlogy.Scalar_Other", "special_xlog1py", "special_entr",
    "logaddexp", "logaddexp2", "hypot", "heaviside", "rad2deg",
    "deg2rad", "nan_to_num", "logcumsumexp", "fix", "float_power.Tensor_Scalar",
    "float_power.Tensor_Tensor", "isclose", "isreal", "isposinf", "isneginf",
    # Statistics that are a mean and a variance.
    "std_mean.correction", "std_mean", "std_mean.dim", "cov", "corrcoef", "trapezoid.x",
    "trapezoid.dx", "diff", "gradient.scalarint", "nansum", "nanmean", "trace",
    # One-hot and grids.
    "one_hot", "meshgrid", "meshgrid.indexing", "tril_indices", "triu_indices",
)  # fmt: skip


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """The table for `ExportedProgram.run_decompositions`: PyTorch's definitions of the ops in `DECOMPOSED`.

    Names that this torch does not have, or has no decomposition for, are left out: such an op then stays
    whole and is reported as unsupported if a model uses it.
    """
    from torch.export import default_decompositions

    available = dict(default_decompositions())
    chosen = {}
    for name in DECOMPOSED:
        base, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, base, None), overload or "default", None)
        if op is None:
            continue
        function = available.get(op) or torch._decomp.decomposition_table.get(op)
        if function is not None:
            chosen[op] = function
        elif op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            chosen[op] = op.decompose
    return chosen
