"""Importers of ATen's linear algebra on QR, eigenvalues and singular values."""

from __future__ import annotations

from typing import Any

import numpy as np

from transpiler.ir import Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, aten, broadcast_shapes
from transpiler.ops.compare import Gt, Lt
from transpiler.ops.creation import Full
from transpiler.ops.dtypes import numpy_dtype
from transpiler.ops.elementwise import Div, Maximum
from transpiler.ops.elementwise_unary import Abs
from transpiler.ops.linalg import Matmul
from transpiler.ops.orthogonal import ApplyReflectors, Eigh, HouseholderQr, SvdRows
from transpiler.ops.shape_edges import Diagonal, Triu


def _sizes(context: ImportContext, x: Value) -> tuple[int, int]:
    rows, columns = x.shape[-2:]
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise context.unsupported("a matrix of symbolic sizes")
    return rows, columns


def _eye(context: ImportContext, like: Value, rows: int, columns: int) -> Value:
    """[..., rows, columns] with the batch of `like`."""
    matrix = context.array(np.eye(rows, columns, dtype=like.dtype))
    return compose.broadcast_to(context, matrix, (*like.shape[:-2], rows, columns))


def _product(context: ImportContext, a: Value, b: Value, transpose_b: bool = False) -> Value:
    return compose.emit(context, Matmul(transpose_b), a, b)


# --- QR ------------------------------------------------------------------------------------------------------


@aten("geqrf.default")
def _geqrf(context: ImportContext, a: Value) -> Any:
    return context.emit(HouseholderQr(), a)


@aten("linalg_qr.default")
def _qr(context: ImportContext, a: Value, mode: str = "reduced") -> Any:
    packed, taus = context.emit(HouseholderQr(), a)
    rows, columns = _sizes(context, a)
    k, rank = min(rows, columns), a.type.rank
    kept = rows if mode == "complete" else k
    r = compose.emit(context, Triu(0), compose.slice_axis(context, packed, rank - 2, 0, kept))
    if mode == "r":
        return compose.emit(context, Full(0.0, (0,), a.dtype)), r
    q = compose.emit(context, ApplyReflectors(), packed, taus, _eye(context, a, rows, kept))
    return q, r


@aten("linalg_householder_product.default", "orgqr.default")
def _householder_product(context: ImportContext, packed: Value, taus: Value) -> Any:
    rows, columns = _sizes(context, packed)
    return context.emit(ApplyReflectors(), packed, taus, _eye(context, packed, rows, columns))


@aten("ormqr.default")
def _ormqr(
    context: ImportContext, packed: Value, taus: Value, c: Value, left: bool = True, transpose: bool = False
) -> Any:
    """Q C, or C Q as the transpose of Q^T C^T; batch dims broadcast."""
    batch = broadcast_shapes(packed.shape[:-2], c.shape[:-2])
    packed = compose.broadcast_to(context, packed, (*batch, *packed.shape[-2:]))
    taus = compose.broadcast_to(context, taus, (*batch, *taus.shape[-1:]))
    c = compose.broadcast_to(context, c, (*batch, *c.shape[-2:]))
    if left:
        return context.emit(ApplyReflectors(transpose), packed, taus, c)
    return compose.swap_last(
        context, compose.emit(context, ApplyReflectors(not transpose), packed, taus, compose.swap_last(context, c))
    )


# --- eigenvalues -----------------------------------------------------------------------------------------------


@aten("_linalg_eigh.default", "linalg_eigh.default")
def _eigh(context: ImportContext, a: Value, UPLO: str = "L", compute_v: bool = True) -> Any:
    values, vectors = context.emit(Eigh(), a if UPLO.upper() == "L" else compose.swap_last(context, a))
    return values, vectors if compute_v else compose.emit(context, Full(0.0, (0,), a.dtype))


@aten("linalg_eigvalsh.default")
def _eigvalsh(context: ImportContext, a: Value, UPLO: str = "L") -> Any:
    return _eigh(context, a, UPLO)[0]


# --- singular values -------------------------------------------------------------------------------------------


def _orthonormal(context: ImportContext, rows: Value, count: int) -> Value:
    """[..., count, M] whose first rows are `rows`[..., N, M], the others complete them.

    Rows of zeros and of rounding errors are replaced too: Q of their QR factorisation is orthogonal in any case, and up
    to its signs, those of R's diagonal, equal to the rows that are orthonormal already.
    """
    columns = compose.swap_last(context, rows)
    packed, taus = context.emit(HouseholderQr(), columns)
    m, n = _sizes(context, columns)
    q = compose.emit(context, ApplyReflectors(), packed, taus, _eye(context, columns, m, count))
    rank = packed.type.rank
    diagonal = compose.emit(context, Diagonal(0, rank - 2, rank - 1), packed)
    negative = compose.emit(context, Lt(), diagonal, context.scalar(0.0, rows.dtype))
    signs = compose.where(context, negative, context.scalar(-1.0, rows.dtype), context.scalar(1.0, rows.dtype))
    if count > n:
        ones = compose.full(context, 1.0, (*signs.shape[:-1], count - n), rows.dtype)
        signs = compose.concat(context, [signs, ones], signs.type.rank - 1)
    signs = compose.reshape(context, signs, (*signs.shape, 1))
    return compose.mul(context, compose.swap_last(context, q), signs)


def svd(context: ImportContext, a: Value, full_matrices: bool) -> tuple[Value, Value, Value]:
    """(U, S, V^T)"""
    rows, columns = _sizes(context, a)
    tall = rows > columns
    small, large = min(rows, columns), max(rows, columns)
    count = large if full_matrices else small
    if small == 0:
        batch = a.shape[:-2]
        u = _eye(context, a, rows, rows if full_matrices else 0)
        return (
            u,
            compose.full(context, 0.0, (*batch, 0), a.dtype),
            _eye(context, a, columns if full_matrices else 0, columns),
        )
    turned, values, long = context.emit(SvdRows(), compose.swap_last(context, a) if tall else a)
    long = _orthonormal(context, long, count)
    if tall:
        return compose.swap_last(context, long), values, turned
    return compose.swap_last(context, turned), values, long


@aten("_linalg_svd.default")
def _svd(
    context: ImportContext, a: Value, full_matrices: bool = False, compute_uv: bool = True, *, driver: Any = None
) -> Any:
    if compute_uv:
        return svd(context, a, full_matrices)
    empty = compose.emit(context, Full(0.0, (0,), a.dtype))
    return empty, singular_values(context, a), empty


def singular_values(context: ImportContext, a: Value) -> Value:
    rows, columns = _sizes(context, a)
    if min(rows, columns) == 0:
        return compose.full(context, 0.0, (*a.shape[:-2], 0), a.dtype)
    _, values, _ = context.emit(SvdRows(), compose.swap_last(context, a) if rows > columns else a)
    assert isinstance(values, Value)
    return values


@aten("linalg_svdvals.default")
def _svdvals(context: ImportContext, a: Value, *, driver: Any = None) -> Any:
    return singular_values(context, a)


@aten("linalg_pinv.atol_rtol_tensor")
def _pinv(
    context: ImportContext, a: Value, *, atol: Value | None = None, rtol: Value | None = None, hermitian: bool = False
) -> Any:
    """V diag(1 / s) U^T over the singular values (absolute eigenvalues) above max(atol, rtol * the largest).

    Source: linalg_pinv in aten/src/ATen/native/LinearAlgebra.cpp.
    """
    rows, columns = _sizes(context, a)
    if 0 in a.shape:
        return compose.full(context, 0.0, (*a.shape[:-2], columns, rows), a.dtype)
    if hermitian:
        values, u = context.emit(Eigh(), a)
        v = u
    else:
        u, values, v = svd(context, a, False)
        v = compose.swap_last(context, v)
    sizes = compose.emit(context, Abs(), values)
    largest = compose.reduce_max(context, sizes, (sizes.type.rank - 1,))
    epsilon = float(np.finfo(numpy_dtype(a.dtype)).eps) * max(rows, columns)
    absolute, relative = (
        None if bound is None else compose.reshape(context, context.cast(bound, a.dtype), (*bound.shape, 1))
        for bound in (atol, rtol)
    )
    zero = context.scalar(0.0, a.dtype)
    if relative is None:
        relative = context.scalar(epsilon, a.dtype)
        if absolute is not None:
            relative = compose.where(context, compose.emit(context, Gt(), absolute, zero), zero, relative)
    limit = compose.mul(context, relative, largest)
    limit = compose.emit(context, Maximum(), limit, zero if absolute is None else absolute)
    kept = compose.emit(context, Gt(), sizes, limit)
    one = context.scalar(1.0, a.dtype)
    inverse = compose.emit(context, Div(), one, compose.where(context, kept, values, one))
    inverse = compose.where(context, kept, inverse, zero)
    scaled = compose.mul(context, v, compose.reshape(context, inverse, (*inverse.shape[:-1], 1, inverse.shape[-1])))
    return _product(context, scaled, u, transpose_b=True)
