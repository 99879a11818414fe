"""Discrete Fourier transforms as products with constant matrices, factorised for long ones.

Short transforms (and prime factors) are one matrix product. A length n = a * b is a transforms of length b after b
transforms of length a, with twiddle factors between (Cooley, Tukey, Math. Comp. 19, 1965); a long prime is a
convolution of a length that factorises (Bluestein, 1970). All constants are made in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from transpiler.ir import Array, Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, normalize_axis
from transpiler.ops.complex_math import times
from transpiler.ops.complex_pairs import Pair, on_complex
from transpiler.ops.dtypes import out_type
from transpiler.ops.elementwise_unary import Neg
from transpiler.ops.linalg import Linear
from transpiler.ops.shape_edges import Flip

# The longest transform that is one product with a matrix of (2n)^2 numbers.
DIRECT = 64
# The longest prime that is: beyond it, Bluestein's convolution.
DIRECT_PRIME = 256
# A complex value whose imaginary part may be missing.
Signal = tuple[Value, Value | None]


def _angles(rows: int, columns: int, n: int) -> Array:
    """2 pi r c / n, from the product reduced modulo n: exact for long transforms."""
    product = np.outer(np.arange(rows, dtype=np.int64), np.arange(columns, dtype=np.int64)) % n
    return np.asarray(2 * np.pi * product / n)


def _apply(context: ImportContext, parts: Sequence[Value], matrix: Array) -> list[Value]:
    """[parts side by side along the last axis] @ matrix, and the result cut into its two halves."""
    x = compose.concat(context, parts, parts[0].type.rank - 1)
    weight = context.array(np.ascontiguousarray(matrix.T).astype(x.dtype))
    y = compose.emit(context, Linear(), x, weight)
    half, axis = matrix.shape[1] // 2, y.type.rank - 1
    return [compose.slice_axis(context, y, axis, start, start + half) for start in (0, half)]


def _direct(context: ImportContext, x: Signal, sign: int, scale: float, kept: int) -> Pair:
    """The first `kept` coefficients along the last axis, by one product."""
    n = _size(context, x[0].shape[-1])
    angle = _angles(n, kept, n)
    c, s = scale * np.cos(angle), sign * scale * np.sin(angle)
    top = np.concatenate([c, s], 1)
    if x[1] is None:
        return Pair(*_apply(context, [x[0]], top))
    return Pair(*_apply(context, [x[0], x[1]], np.concatenate([top, np.concatenate([-s, c], 1)], 0)))


def _size(context: ImportContext, dim: Any) -> int:
    if not isinstance(dim, int):
        raise context.unsupported("a Fourier transform along a symbolic dim")
    return dim


def _split(n: int) -> int:
    """A divisor of n, at most DIRECT and as close to its root as possible; 1 if n is short or has none."""
    if n <= DIRECT:
        return 1
    divisors = [d for d in range(2, DIRECT + 1) if n % d == 0]
    return min(divisors, key=lambda d: (abs(math.log(d * d / n)), d), default=1)


def transform(context: ImportContext, x: Signal, sign: int, scale: float = 1.0, kept: int | None = None) -> Pair:
    """scale * sum_j x[..., j] exp(sign 2 pi i j k / n) along the last axis, for k < `kept` (default n)."""
    n = _size(context, x[0].shape[-1])
    kept = n if kept is None else kept
    a = _split(n)
    if a == 1 and n <= DIRECT_PRIME:
        return _direct(context, x, sign, scale, kept)
    full = _bluestein(context, x, sign, scale) if a == 1 else _mixed(context, x, sign, scale, a)
    if kept == n:
        return full
    axis = full.real.type.rank - 1
    return Pair(*(compose.slice_axis(context, part, axis, 0, kept) for part in (full.real, full.imag)))


def _mixed(context: ImportContext, x: Signal, sign: int, scale: float, a: int) -> Pair:
    """j = j1 b + j2 and k = k1 + a k2: transforms over j1, twiddles exp(sign 2 pi i j2 k1 / n), transforms over j2."""
    *outer, n = x[0].shape
    rank = len(outer)
    assert isinstance(n, int)
    b = n // a
    swapped = (*range(rank), rank + 1, rank)

    def columns(part: Value) -> Value:
        return compose.transpose(context, compose.reshape(context, part, (*outer, a, b)), swapped)

    first = _direct(context, (columns(x[0]), None if x[1] is None else columns(x[1])), sign, 1.0, a)
    angle = _angles(b, a, n)
    twiddle = Pair(*(_constant(context, part, x[0].dtype) for part in (np.cos(angle), sign * np.sin(angle))))
    turned = times(context, first, twiddle)
    rows = [compose.transpose(context, part, swapped) for part in (turned.real, turned.imag)]
    second = transform(context, (rows[0], rows[1]), sign, scale)
    flat = [compose.transpose(context, part, swapped) for part in (second.real, second.imag)]
    return Pair(*(compose.reshape(context, part, (*outer, n)) for part in flat))


def _bluestein(context: ImportContext, x: Signal, sign: int, scale: float) -> Pair:
    """j k = (j^2 + k^2 - (k - j)^2) / 2: a convolution with a chirp, done by transforms of a power of two."""
    n = _size(context, x[0].shape[-1])
    m = 1 << (2 * n - 2).bit_length()
    square = (np.arange(n, dtype=np.int64) ** 2) % (2 * n)
    chirp = np.exp(sign * 1j * np.pi * square / n)
    kernel = np.zeros(m, np.complex128)
    kernel[:n] = chirp.conj()
    kernel[m - n + 1 :] = chirp[1:].conj()[::-1]
    response = np.fft.fft(kernel) / m
    dtype = x[0].dtype

    def constant(array: Array) -> Pair:
        return Pair(_constant(context, array.real, dtype), _constant(context, array.imag, dtype))

    wave = constant(chirp)
    if x[1] is None:
        start = Pair(*(compose.mul(context, x[0], part) for part in (wave.real, wave.imag)))
    else:
        start = times(context, Pair(x[0], x[1]), wave)
    padded = [compose.pad_end(context, part, (m - n,)) for part in (start.real, start.imag)]
    product = times(context, transform(context, (padded[0], padded[1]), -1), constant(response))
    back = transform(context, (product.real, product.imag), 1, scale)
    axis = back.real.type.rank - 1
    cut = Pair(*(compose.slice_axis(context, part, axis, 0, n) for part in (back.real, back.imag)))
    return times(context, cut, wave)


def _constant(context: ImportContext, array: Array, dtype: str) -> Value:
    return context.array(array.astype(dtype))


def _to_real(context: ImportContext, x: Pair, n: int, scale: float) -> Value:
    """The real inverse transform of length n of the half spectrum x[..., n // 2 + 1].

    The other half is its mirror image; imaginary parts of coefficient 0 and n / 2 have no meaning and are dropped.
    """
    half = n // 2 + 1
    if n <= DIRECT:
        angle = _angles(half, n, n)
        weight = np.full((half, 1), 2.0)
        weight[0] = 1
        if n % 2 == 0:
            weight[-1] = 1
        matrix = scale * np.concatenate([weight * np.cos(angle), -weight * np.sin(angle)], 0)
        joined = compose.concat(context, [x.real, x.imag], x.real.type.rank - 1)
        return compose.emit(context, Linear(), joined, _constant(context, np.ascontiguousarray(matrix.T), x.dtype))
    axis = x.real.type.rank - 1
    parts = []
    for part, sign in ((x.real, 1), (x.imag, -1)):
        mirror = compose.emit(context, Flip((axis,)), compose.slice_axis(context, part, axis, 1, n - half + 1))
        if sign < 0:
            mirror = compose.emit(context, Neg(), mirror)
        parts.append(compose.concat(context, [part, mirror], axis))
    return transform(context, (parts[0], parts[1]), 1, scale).real


# --- importing from ATen ---------------------------------------------------------------------------------


def _along(context: ImportContext, parts: Sequence[Value], axis: int) -> list[Value]:
    """The parts with `axis` and the last one exchanged."""
    rank = parts[0].type.rank
    perm = list(range(rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    return [compose.transpose(context, part, perm) for part in parts]


def _scale(sizes: Sequence[int], normalization: int) -> float:
    """0: as it is, 1: by the root of the number of elements, 2: by the number."""
    count = math.prod(sizes)
    return (1.0, 1.0 / math.sqrt(count), 1.0 / count)[normalization]


def _complex_dims(context: ImportContext, x: Pair, axes: Sequence[int], sign: int, scale: float) -> Pair:
    for number, axis in enumerate(axes):
        real, imag = _along(context, [x.real, x.imag], axis)
        y = transform(context, (real, imag), sign, scale if number == 0 else 1.0)
        x = Pair(*_along(context, [y.real, y.imag], axis))
    return x


@on_complex("_fft_c2c.default")
def _fft_c2c(context: ImportContext, x: Pair, dim: Sequence[int], normalization: int, forward: bool) -> Pair:
    axes = [normalize_axis(axis, x.real.type.rank) for axis in dim]
    scale = _scale([_size(context, x.shape[axis]) for axis in axes], normalization)
    return _complex_dims(context, x, axes, -1 if forward else 1, scale)


@on_complex("_fft_r2c.default")
def _fft_r2c(context: ImportContext, x: Value, dim: Sequence[int], normalization: int, onesided: bool) -> Pair:
    axes = [normalize_axis(axis, x.type.rank) for axis in dim]
    scale = _scale([_size(context, x.shape[axis]) for axis in axes], normalization)
    last = axes[-1]
    (moved,) = _along(context, [x], last)
    size = _size(context, x.shape[last])
    y = transform(context, (moved, None), -1, scale, size // 2 + 1 if onesided else size)
    result = Pair(*_along(context, [y.real, y.imag], last))
    return _complex_dims(context, result, axes[:-1], -1, 1.0)


@on_complex("_fft_c2r.default")
def _fft_c2r(context: ImportContext, x: Pair, dim: Sequence[int], normalization: int, last_dim_size: int) -> Value:
    axes = [normalize_axis(axis, x.real.type.rank) for axis in dim]
    shape = out_type(context).shape
    scale = _scale([_size(context, shape[axis]) for axis in axes], normalization)
    x = _complex_dims(context, x, axes[:-1], 1, 1.0)
    real, imag = _along(context, [x.real, x.imag], axes[-1])
    half = last_dim_size // 2 + 1
    axis = real.type.rank - 1
    pair = Pair(*(compose.slice_axis(context, part, axis, 0, half) for part in (real, imag)))
    (result,) = _along(context, [_to_real(context, pair, last_dim_size, scale)], axes[-1])
    return result
