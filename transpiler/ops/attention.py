"""Scaled dot-product attention as one op."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from transpiler.dims import mod
from transpiler.ir import Array, TensorType, Value
from transpiler.ops.base import ImportContext, OpError, Product, Sample, aten, broadcast_shapes, rng
from transpiler.ops.wide import narrow, widen

# Lanes of PyTorch's fused kernel in float64 with AVX-512. In float32 it has 16: from 8 to 15 keys its results in the
# two precisions differ, and NaN, which is kept there, is as good as 0.
MASKING_KEYS = 8


class Attention(Product, name="attention"):
    """(q[..., L, E], k[..., S, E], v[..., S, Ev][, mask]) -> [..., L, Ev].

    softmax(q @ k.T * scale + mask) @ v (Vaswani et al., arXiv:1706.03762). Batch dims broadcast. `scale`
    None is 1/sqrt(E). `mask` broadcasts to [..., L, S]; it is bool (True attends) or is added. `causal` lets
    row i attend to columns 0..i. With `enable_gqa` each head of k and v (axis -3) serves as many consecutive
    heads of q as there are more of them (arXiv:2305.13245). A row that may attend to nothing is 0.
    """

    scale: float | None = None
    causal: bool = False
    enable_gqa: bool = False
    precision: str = ""

    def infer(self, *types: TensorType) -> TensorType:
        if len(types) not in (3, 4):
            raise OpError(f"attention: 3 or 4 inputs expected, got {len(types)}")
        q, k, v, *mask = types
        if any(t.dtype != q.dtype or t.rank < 2 for t in (k, v)) or q.rank < 2 or not q.is_float:
            raise OpError(f"attention: q, k, v of one float dtype and rank >= 2 expected, got {q}, {k}, {v}")
        if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
            raise OpError(f"attention: q[..., L, E], k[..., S, E], v[..., S, Ev] expected, got {q}, {k}, {v}")
        batches = [t.shape[:-2] for t in (q, k, v)]
        if self.enable_gqa:
            self._check_heads(q, k, v)
            batches = [q.shape[:-2], *((*batch[:-1], q.shape[-3]) for batch in batches[1:])]
        batch = broadcast_shapes(*batches)
        if mask:
            if mask[0].dtype not in ("bool", q.dtype):
                raise OpError(f"attention: a mask of bool or {q.dtype} expected, got {mask[0]}")
            scores = (*batch, q.shape[-2], k.shape[-2])
            if broadcast_shapes(mask[0].shape, scores) != scores:
                raise OpError(f"attention: a mask that broadcasts to {scores} expected, got {mask[0]}")
        return TensorType(q.dtype, (*batch, q.shape[-2], v.shape[-1]))

    def _check_heads(self, q: TensorType, k: TensorType, v: TensorType) -> None:
        if min(q.rank, k.rank, v.rank) < 3:
            raise OpError("attention: grouped queries need a head axis")
        for heads in (k.shape[-3], v.shape[-3]):
            if heads != q.shape[-3] and (heads == 0 or mod(q.shape[-3], heads) != 0):
                raise OpError(f"attention: {heads} heads do not divide {q.shape[-3]} query heads")

    @staticmethod
    def may_mask_nan(rank: int, mask: bool) -> bool:
        """Whether a row of nothing but NaN scores counts as masked where there are fewer keys than `MASKING_KEYS`.

        PyTorch's fused kernel, which takes tensors of rank 4, loses NaN where it looks for the maximum of fewer keys
        than it has lanes and adds no mask; its composite, which takes the other ranks, never does.
        """
        return rank == 4 and not mask

    def reference(self, *inputs: Array) -> Array:
        q, k, v = map(widen, inputs[:3])
        if self.enable_gqa:
            k, v = (np.repeat(t, q.shape[-3] // t.shape[-3], axis=-3) for t in (k, v))
        scale = 1 / math.sqrt(q.shape[-1]) if self.scale is None else self.scale
        scores = np.matmul(q, k.swapaxes(-1, -2)) * q.dtype.type(scale)
        if len(inputs) == 4:
            mask = inputs[3]
            scores = np.where(mask, scores, -math.inf) if mask.dtype == bool else scores + widen(mask)
        if self.causal:
            scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -math.inf)
        # PyTorch's maximum leaves NaN out.
        largest = np.fmax.reduce(scores, -1, keepdims=True, initial=-math.inf)
        with np.errstate(invalid="ignore", divide="ignore"):
            exponentials = np.exp(scores - largest)
            weights = exponentials / exponentials.sum(-1, keepdims=True)
        masked = largest == -math.inf
        if not (self.may_mask_nan(q.ndim, len(inputs) == 4) and k.shape[-2] < MASKING_KEYS):
            masked &= ~np.isnan(scores).any(-1, keepdims=True)
        weights = np.where(masked, 0, weights).astype(q.dtype)
        return narrow(np.asarray(np.matmul(weights, v)), inputs[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        # (id, op, batch and heads of q, heads of k and v, L, S, E, Ev)
        plain, causal = cls(), cls(causal=True)
        cases: list[tuple[str, Attention, tuple[int, ...], tuple[int, ...], int, int, int, int]] = [
            ("small", plain, (2, 3), (2, 3), 5, 7, 8, 8),
            ("one_by_one", plain, (1, 1), (1, 1), 1, 1, 1, 1),
            ("decode", plain, (1, 4), (1, 4), 1, 17, 16, 16),
            ("odd_value_size", plain, (1, 2), (1, 2), 9, 5, 6, 3),
            ("no_heads", plain, (), (), 5, 7, 16, 16),
            ("rank3", plain, (3,), (3,), 5, 7, 16, 16),
            ("broadcast_batch", plain, (2, 3), (1, 3), 4, 5, 8, 8),
            ("scale", cls(scale=0.3), (1, 2), (1, 2), 7, 7, 16, 16),
            ("causal", causal, (1, 2), (1, 2), 9, 9, 16, 16),
            ("causal_wide", causal, (1, 2), (1, 2), 5, 9, 16, 16),
            ("causal_tall", causal, (1, 2), (1, 2), 9, 5, 16, 16),
            ("gqa", cls(enable_gqa=True), (2, 6), (2, 2), 7, 9, 16, 16),
            ("mqa_causal", cls(causal=True, enable_gqa=True), (1, 4), (1, 1), 17, 17, 32, 32),
            ("vit", plain, (1, 3), (1, 3), 50, 50, 64, 64),
            ("gpt", causal, (1, 2), (1, 2), 67, 67, 64, 64),
            ("no_queries", plain, (1, 2), (1, 2), 0, 5, 8, 8),
        ]
        for label, op, batch, kv_batch, rows, columns, e, ev in cases:
            yield Sample(label, op, _draw(label, batch, kv_batch, rows, columns, e, ev))
        for label, op, columns in (("nan", plain, 8), ("nan_causal", causal, 21), ("nan_few_keys", plain, 7)):
            q, k, v = _draw(label, (1, 2), (1, 2), 19, columns, 16, 16)
            q[0, 0, 5, 3] = q[0, 1, 18] = math.nan
            k[0, 1, columns - 1, 2] = math.nan
            yield Sample(label, op, (q, k, v))
        q, k, v = _draw("masks", (2, 3), (2, 3), 5, 7, 8, 8)
        g = rng("attention_masks")
        keep = g.random((2, 1, 5, 7)) < 0.6
        keep[0, 0, 1] = False
        yield Sample("bool_mask", plain, (q, k, v, keep))
        yield Sample("bool_row_mask", plain, (q, k, v, np.array([True, False, True, True, False, True, True])))
        yield Sample("added_mask", plain, (q, k, v, g.standard_normal((5, 7), np.float32)))
        wide = _draw("wide_mask", (1, 2), (1, 2), 37, 5, 16, 16)
        yield Sample("wide_mask", plain, (*wide, g.standard_normal((37, 5), np.float32)))
        yield Sample("added_infinities", plain, (q, k, v, np.where(keep, 0, -math.inf).astype(np.float32)))
        yield Sample("added_per_head", cls(scale=1.0), (q, k, v, g.standard_normal((1, 3, 5, 7), np.float32)))
        yield Sample("lowest_mask", plain, (q, k, v, np.where(keep, 0, np.finfo(np.float32).min).astype(np.float32)))
        grouped = _draw("masked_gqa", (2, 4), (2, 2), 5, 7, 8, 8)
        yield Sample("bool_mask_gqa", cls(enable_gqa=True), (*grouped, keep))


def _draw(
    label: str, batch: tuple[int, ...], kv_batch: tuple[int, ...], rows: int, columns: int, e: int, ev: int
) -> tuple[Array, Array, Array]:
    g = rng("attention" + label)
    return (
        g.standard_normal((*batch, rows, e), np.float32),
        g.standard_normal((*kv_batch, columns, e), np.float32),
        g.standard_normal((*kv_batch, columns, ev), np.float32),
    )


@aten("scaled_dot_product_attention.default")
def _attention(
    context: ImportContext, query: Value, key: Value, value: Value, attn_mask: Value | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if dropout_p:
        raise context.unsupported("attention with dropout draws random numbers; call model.eval() first")
    grouped = enable_gqa and query.shape[-3] != key.shape[-3]
    masks = (
        [] if attn_mask is None else [attn_mask if attn_mask.dtype == "bool" else context.cast(attn_mask, query.dtype)]
    )
    return context.emit(Attention(scale, is_causal, grouped), query, key, value, *masks)
