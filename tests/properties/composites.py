"""Layers whose arguments depend on each other too much to be drawn from a signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.properties.calls import FLOATS, Made, Ref
from tests.properties.signatures import Drawer

Composite = Callable[[Drawer], list[Ref]]


def _float(d: Drawer, rank: int = 0, most: int = 9) -> bool:
    return d.x.dtype in FLOATS and rank <= d.x.ndim <= most and 0 not in d.x.shape


def _normal(d: Drawer, *shape: int, kind: str = "normal") -> Any:
    return d.grower.weight(Made(shape, d.x.dtype, kind))


def _chain(d: Drawer, refs: list[Ref]) -> Drawer | None:
    return Drawer(d.grower, d.choose, refs[0]) if refs else None


def conv(d: Drawer) -> list[Ref]:
    if not _float(d, 3, 5):
        return []
    spatial, channels = d.x.ndim - 2, d.x.shape[1]
    out = d.choose.choice([channels, 16, 5, 20, 32])
    kernel = d.choose.choice([1, 3, 3, 2])
    groups = d.choose.choice([1, 1, 1, channels])
    out = channels if groups > 1 else out
    bias = _normal(d, out) if d.choose.random() < 0.7 else None
    stride, padding = d.choose.choice([1, 1, 2]), min(d.choose.randrange(3), kernel // 2)
    if d.choose.random() < 0.2:
        weight = _normal(d, channels, out // groups, *[kernel] * spatial)
        return d.grower.call(f"F.conv_transpose{spatial}d", d.ref, weight, bias, stride, padding, 0, groups)
    weight = _normal(d, out, channels // groups, *[kernel] * spatial)
    dilation = d.choose.choice([1, 1, 1, 2])
    return d.grower.call(f"F.conv{spatial}d", d.ref, weight, bias, stride, padding, dilation, groups)


def linear(d: Drawer) -> list[Ref]:
    if not _float(d, 1):
        return []
    out = d.choose.choice([d.x.shape[-1], 16, 9, 33])
    return d.grower.call(
        "F.linear", d.ref, _normal(d, out, d.x.shape[-1]), _normal(d, out) if d.choose.random() < 0.7 else None
    )


def batch_norm(d: Drawer) -> list[Ref]:
    if not _float(d, 2, 5):
        return []
    channels = d.x.shape[1]
    mean, var = _normal(d, channels), _normal(d, channels, kind="positive")
    scale = [_normal(d, channels), _normal(d, channels)] if d.choose.random() < 0.7 else [None, None]
    return d.grower.call("F.batch_norm", d.ref, mean, var, *scale)


def norm(d: Drawer) -> list[Ref]:
    if not _float(d, 1):
        return []
    shape = tuple(d.x.shape)
    match d.choose.randrange(5):
        case 0:
            last = shape[-d.choose.choice([1, 1, min(2, len(shape))]) :]
            return d.grower.call("F.layer_norm", d.ref, list(last), _normal(d, *last), _normal(d, *last))
        case 1:
            return d.grower.call("F.rms_norm", d.ref, [shape[-1]], _normal(d, shape[-1]), 1e-5)
        case 2 if len(shape) > 2:
            groups = d.choose.choice([1, shape[1]])
            return d.grower.call("F.group_norm", d.ref, groups, _normal(d, shape[1]), _normal(d, shape[1]))
        case 3:
            return d.grower.call("F.softmax", d.ref, d.choose.randrange(len(shape)))
        case _:
            return d.grower.call("F.normalize", d.ref, 2.0, d.choose.randrange(len(shape)), 1e-3)


def pool(d: Drawer) -> list[Ref]:
    if not _float(d, 3, 5) or min(d.x.shape[2:]) < 2:
        return []
    spatial = d.x.ndim - 2
    match d.choose.randrange(6):
        case 0:
            return d.grower.call(f"F.max_pool{spatial}d", d.ref, 2, d.choose.choice([1, 2]), d.choose.choice([0, 1]), 1,
                                 d.choose.random() < 0.5)  # fmt: skip
        case 1:
            return d.grower.call(f"F.avg_pool{spatial}d", d.ref, 2, d.choose.choice([1, 2]), 1,
                                 d.choose.random() < 0.5, d.choose.random() < 0.5)  # fmt: skip
        case 2:
            return d.grower.call(f"F.adaptive_avg_pool{spatial}d", d.ref, d.choose.choice([1, 2, 3]))
        case 3:
            return d.grower.call(f"F.adaptive_max_pool{spatial}d", d.ref, d.choose.choice([1, 2, 3]))
        case 4:
            mode = d.choose.choice(["constant", "reflect", "replicate", "circular"])
            return d.grower.call("F.pad", d.ref, [1, 0] * spatial, mode)
        case _:
            modes = {1: ["nearest", "linear"], 2: ["nearest", "bilinear", "bicubic"], 3: ["nearest", "trilinear"]}
            return d.grower.call("F.interpolate", d.ref, None, d.choose.choice([2.0, 1.5, 0.5]),
                                 d.choose.choice(modes[spatial]))  # fmt: skip


def matmul(d: Drawer) -> list[Ref]:
    if not _float(d, 1):
        return []
    inner = d.x.shape[-1]
    match d.choose.randrange(5):
        case 0 if d.x.ndim > 1:
            other = d.grower.call("aten.transpose.int", d.ref, -1, -2)
            return d.grower.call("torch.matmul", d.ref, *other)
        case 1:
            return d.grower.call("torch.matmul", d.ref, _normal(d, inner, 7))
        case 2:
            return d.grower.call("torch.matmul", _normal(d, 4, 3, inner), Ref(d.ref.number)) if d.x.ndim == 1 else []
        case 3:
            return d.grower.call("torch.einsum", "...i,ij->...j", d.ref, _normal(d, inner, 5))
        case _:
            return d.grower.call("torch.matmul", d.ref, _normal(d, inner))


def attention(d: Drawer) -> list[Ref]:
    if not _float(d, 2, 4):
        return []
    inner, length = d.x.shape[-1], d.x.shape[-2]
    key = d.ref if d.choose.random() < 0.5 else d.grower.weight(Made((*d.x.shape[:-2], 6, inner), d.x.dtype))
    if d.grower.varies and key is not d.ref:
        key = d.ref
    causal = d.choose.random() < 0.3
    mask = None
    if not causal and key is d.ref and d.choose.random() < 0.4:
        mask = _normal(d, length, length)
    function = "F.scaled_dot_product_attention"
    return d.grower.call(function, d.ref, key, key, attn_mask=mask, is_causal=causal)


def recurrent(d: Drawer) -> list[Ref]:
    if not _float(d, 3, 3) or d.x.shape[1] > 8:
        return []
    kind, gates = d.choose.choice([("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)])
    inner, hidden, both = d.x.shape[-1], 5, d.choose.random() < 0.4
    weights: list[Any] = []
    for _ in range(1 + both):
        weights += [_normal(d, gates * hidden, inner), _normal(d, gates * hidden, hidden),
                    _normal(d, gates * hidden), _normal(d, gates * hidden)]  # fmt: skip
    batch_first = True if d.grower.varies else d.choose.random() < 0.5
    batch = d.x.shape[0 if batch_first else 1]
    start = d.grower.call("aten.new_zeros.default", d.ref, [1 + both, batch, hidden])
    if not start:
        return []
    first: Any = [start[0], start[0]] if kind == "lstm" else start[0]
    return d.grower.call(f"torch.{kind}", d.ref, first, weights, True, 1, 0.0, False, both, batch_first)


def positive_definite(d: Drawer) -> list[Ref]:
    """A matrix that is far from singular, and what linear algebra makes of it."""
    if d.x.dtype not in (torch.float32, torch.float64) or d.x.ndim < 2 or d.x.shape[-1] > 9 or 0 in d.x.shape:
        return []
    finite = d.grower.call("torch.nan_to_num", d.ref, 0.5, 2.0, -2.0)
    bounded = finite and _chain(d, d.grower.call("aten.tanh.default", finite[0]))
    other = bounded and _chain(d, d.grower.call("aten.transpose.int", bounded.ref, -1, -2))
    product = other and bounded and d.grower.call("torch.matmul", other.ref, bounded.ref)
    if not product:
        return []
    size = d.x.shape[-1]
    eye = d.grower.call("torch.eye", size, dtype=d.x.dtype)
    shifted = eye and d.grower.call("aten.add.Tensor", product[0], eye[0], alpha=size)
    if not shifted:
        return []
    a = shifted[0]
    functions = ["cholesky", "inv", "det", "slogdet", "eigvalsh", "svdvals", "matrix_exp", "qr", "lu_factor", "solve"]
    match d.choose.choice(functions):
        case "solve":
            return d.grower.call("torch.linalg.solve", a, _normal(d, size, 3))
        case "matrix_exp":
            small = d.grower.call("aten.div.Scalar", a, 4 * size)
            return small and d.grower.call("torch.linalg.matrix_exp", small[0])
        case name:
            return d.grower.call(f"torch.linalg.{name}", a)


def spectrum(d: Drawer) -> list[Ref]:
    if d.x.dtype not in (torch.float32, torch.float64) or d.x.ndim < 1 or 0 in d.x.shape or d.x.shape[-1] < 2:
        return []
    finite = d.grower.call("torch.nan_to_num", d.ref, 0.5, 2.0, -2.0)
    name = d.choose.choice(["rfft", "filtered", "as_complex"])
    return finite and d.grower.call(f"properties.{name}", finite[0])


def bounded(d: Drawer) -> list[Ref]:
    """Keeps values of order 1, so that graphs go on."""
    if d.x.dtype not in FLOATS:
        return []
    return d.grower.call(d.choose.choice(["aten.tanh.default", "aten.sigmoid.default", "aten.relu.default",
                                          "aten.gelu.default", "aten.silu.default"]), d.ref)  # fmt: skip


def cast(d: Drawer) -> list[Ref]:
    dtype = d.choose.choice([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64,
                             torch.int32, torch.int8, torch.uint8, torch.bool])  # fmt: skip
    return d.grower.call("Tensor.to", d.ref, dtype)


def lookup(d: Drawer) -> list[Ref]:
    if d.x.dtype not in (torch.int64, torch.int32) or d.x.ndim > 2 or d.x.numel() > 64:
        return []
    rest = d.grower.call("aten.remainder.Scalar", d.ref, 10)
    return rest and d.grower.call("F.embedding", rest[0], d.grower.weight(Made((10, 4))))


def arithmetic(d: Drawer) -> list[Ref]:
    """Two operands that broadcast: what is fused into and before everything else."""
    other = d.operand()
    a, b = (d.ref, other) if d.choose.random() < 0.5 else (other, d.ref)
    match d.choose.randrange(6):
        case 0 | 1:
            return d.grower.call("aten.add.Tensor", a, b)
        case 2:
            return d.grower.call("aten.sub.Tensor", a, b, alpha=d.choose.choice([1, 1, 2]))
        case 3:
            return d.grower.call("aten.mul.Tensor", a, b)
        case 4:
            return d.grower.call("aten.maximum.default", a, b)
        case _:
            return d.grower.call("aten.where.self", d.mask(), a, b)


COMPOSITES: list[tuple[int, Composite]] = [
    (10, arithmetic), (6, conv), (5, linear), (2, batch_norm), (4, norm), (3, pool), (4, matmul), (2, attention),
    (2, recurrent),    (3, positive_definite), (2, spectrum), (3, bounded), (3, cast), (2, lookup),
]  # fmt: skip
