"""Numpy functions that bring PyTorch's weights into the layout of the kernels, for `prepare.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def put(target: Array, values: Array) -> None:
    """Copy `values` into `target`, which has as many elements."""
    np.copyto(target, values.reshape(target.shape), casting="unsafe")


def cast(x: Array, dtype: str) -> Array:
    """`x` in another dtype; bfloat16 is held as the uint16 of its bits, which nothing else uses."""
    if x.dtype == np.uint16:
        x = (x.astype(np.uint32) << 16).view(np.float32)
    if dtype == "bfloat16":
        return bfloat16_bits(x.astype(np.float32))
    with np.errstate(over="ignore"):  # `overflows` finds it
        return x.astype(dtype)


def overflows(x: Array, dtype: str) -> bool:
    """Whether half floats, as they are stored, have an infinity; no other dtype is looked at."""
    infinity = {"float16": 0x7C00, "bfloat16": 0x7F80}.get(dtype)
    return infinity is not None and bool(((x.view(np.uint16) & 0x7FFF) == infinity).any())


def bfloat16_bits(x: Array) -> Array:
    """float32 rounded to bfloat16, to nearest and ties to even; NaN stays quiet."""
    bits = np.ascontiguousarray(x).view(np.uint32).reshape(x.shape)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF).astype(np.uint32)) >> 16
    return np.where(np.isnan(x), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def pad_to(x: Array, axis: int, multiple: int) -> Array:
    """`x` with zeros appended along `axis` up to the next multiple of `multiple`."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return np.pad(x, widths)


def pack_matmul(w: Array) -> Array:
    """[N, K] -> [ceil(N/16), K, 16]: the 16 outputs of a vector side by side."""
    w = pad_to(w, 0, 16)
    return np.ascontiguousarray(w.reshape(w.shape[0] // 16, 16, w.shape[1]).transpose(0, 2, 1))


def pack_conv(w: Array) -> Array:
    """[O, I, *k] -> [ceil(O/16), ceil(I/16), *k, 16 (i), 16 (o)]: for blocked input and output channels."""
    w = pad_to(pad_to(w, 0, 16), 1, 16)
    split = w.reshape(w.shape[0] // 16, 16, w.shape[1] // 16, 16, *w.shape[2:])
    return np.ascontiguousarray(np.moveaxis(split, (3, 1), (-2, -1)))


def pack_depthwise(w: Array) -> Array:
    """[C, G, *k] -> [ceil(C/16), *k, G, 16]: one filter per blocked channel over its group's G."""
    w = pad_to(w, 0, 16)
    return np.ascontiguousarray(w.reshape(-1, 16, *w.shape[1:]).transpose(0, 3, 4, 2, 1))


def pack_conv_stem(w: Array) -> Array:
    """[O, I, *k] -> [ceil(O/16), I, *k, 16]: for plain input and blocked output channels."""
    w = pad_to(w, 0, 16)
    return np.ascontiguousarray(np.moveaxis(w.reshape(-1, 16, *w.shape[1:]), 1, -1))


def pack_winograd(w: Array, tile: int, stride: int = 1) -> Array:
    """[O, I, 3, 3] -> [ceil(O/16), (tile+2)^2, ceil(I/16), 16 (i), 16 (o)]: filters at the points of
    Winograd's F(tile x tile, 3 x 3), computed in float64. At stride 2 taps 0 and 2 are at the points
    and tap 1 is in place of the value at infinity."""
    points = {2: (1.0,), 4: (0.625, 1.5)}[tile]
    factors = [(1.0 / math.prod(-p * p for p in points), 0.0, 0.0)]
    for p in points:
        scale = 1.0 / (2.0 * p * p * math.prod(p * p - other * other for other in points if other != p))
        last = p * p * scale if stride == 1 else 0.0
        factors += [(scale, p * scale, last), (scale, -p * scale, last)]
    factors.append((0.0, 0.0, 1.0))
    wide = pad_to(pad_to(w, 0, 16), 1, 16).astype(np.float64)
    for axis in (2, 3):
        a, b, c = (np.take(wide, tap, axis=axis) for tap in ((0, 1, 2) if stride == 1 else (0, 2, 1)))
        wide = np.stack([f[0] * a + f[1] * b + f[2] * c for f in factors], axis=axis)
    split = wide.astype(w.dtype).reshape(wide.shape[0] // 16, 16, wide.shape[1] // 16, 16, -1)
    return np.ascontiguousarray(split.transpose(0, 4, 2, 3, 1))


def row_scales(w: Array) -> Array:
    """[N, K] -> [N]: the power of two at or below each row's largest magnitude, within 2^-60..2^60; NaN for
    a row that is not finite."""
    largest = np.max(np.abs(w), axis=1)
    scale = np.exp2(np.frexp(np.clip(largest, 2.0**-60, 2.0**60))[1] - 1.0)
    return np.where(np.isfinite(largest), scale, np.nan).astype(w.dtype)


def pack_strassen(w: Array, scales: Array) -> Array:
    """[N, K] -> [ceil(N/32), 7*K/2 + 2, 16]: the right factors of Strassen's seven products in panels of 16
    outputs, from rows divided by their scale, and the scales. Rows whose scale is NaN count as zeros."""
    finite, depth = np.isfinite(scales)[:, None], w.shape[1] // 2
    b = pad_to(np.where(finite, w, 0) / np.where(finite, scales[:, None], 1).astype(w.dtype), 0, 32)
    b = b.reshape(2, -1, 16, 2, depth).transpose(3, 0, 1, 4, 2)
    (b11, b12), (b21, b22) = b
    columns = np.concatenate([scales, np.ones(-len(scales) % 32, scales.dtype)])
    tail = columns.reshape(2, -1, 16).transpose(1, 0, 2)
    factors = (b11 + b22, b11, b12 - b22, b21 - b11, b22, b11 + b12, b21 + b22, tail)
    return np.concatenate(factors, axis=1)


def pack_conv_strassen(w: Array, scales: Array) -> Array:
    """[O, I] -> [O/32, 7*I/2 + 2, 16]: for every pair of blocks of outputs the right factors of Strassen's
    products in Winograd's form, from rows divided by their scale, and the scales. Rows whose scale is NaN
    count as zeros."""
    finite = np.isfinite(scales)[:, None]
    b = np.where(finite, w, 0) / np.where(finite, scales[:, None], 1).astype(w.dtype)
    b = b.reshape(-1, 2, 16, w.shape[1] // 32, 2, 16).transpose(4, 1, 0, 3, 5, 2)
    (b11, b12), (b21, b22) = b.reshape(2, 2, len(w) // 32, w.shape[1] // 2, 16)
    factors = (b11, b11 - b12 + b22, b22 - b12, b12 - b11 + b21 - b22, b21, b12 - b11, b22)
    return np.concatenate((*factors, scales.reshape(-1, 2, 16)), axis=1)


def phase_filters(w: Array, stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """[I, O, *k] of a transposed convolution -> [phases * 16 * ceil(O/16), I, *window]: a filter per phase of
    the output, all at unit stride."""
    places: list[list[tuple[int, int]]] = []  # per dim and tap: its phase, and which input it meets
    for size, s, p in zip(w.shape[2:], stride, padding, strict=True):
        found = [((k - p) % s, ((k - p) % s + p - k) // s) for k in range(size)]
        first = min(offset for _, offset in found)
        places.append([(phase, offset - first) for phase, offset in found])
    wide = pad_to(w, 1, 16)
    window = [1 + max(offset for _, offset in place) for place in places]
    result = np.zeros((*stride, wide.shape[1], wide.shape[0], *window), w.dtype)
    for y, (row, v) in enumerate(places[0]):
        for x, (column, u) in enumerate(places[1]):
            result[row, column, :, :, v, u] = wide[:, :, y, x].T
    return result.reshape(-1, wide.shape[0], *window)


def pack_channels(x: Array) -> Array:
    """[N, C, H, W] -> [N, ceil(C/16), H, W, 16]: an operand of a map with blocked channels."""
    x = pad_to(x, 1, 16)
    return np.ascontiguousarray(np.moveaxis(x.reshape(x.shape[0], -1, 16, *x.shape[2:]), 2, -1))


def unblock(x: Array, channels: int) -> Array:
    """[N, ceil(C/16), *spatial, 16] -> [N, C, *spatial]: the inverse of blocking an activation's channels."""
    wide = np.moveaxis(x, -1, 2)
    return np.ascontiguousarray(wide.reshape(x.shape[0], -1, *x.shape[2:-1])[:, :channels])
