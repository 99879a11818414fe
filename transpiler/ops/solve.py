"""Importers of ATen's linear algebra on LU, Cholesky and triangular systems."""

from __future__ import annotations

from typing import Any

import numpy as np

from transpiler.ir import Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, aten, broadcast_shapes
from transpiler.ops.compare import Eq, Ne
from transpiler.ops.creation import Arange, Full
from transpiler.ops.dtypes import out_type
from transpiler.ops.elementwise_unary import Abs, Log, Sign
from transpiler.ops.factorize import Cholesky, LuFactor, LuPermutation, TriangularSolve
from transpiler.ops.index import Gather
from transpiler.ops.linalg import Matmul
from transpiler.ops.reduce import ReduceProd, ReduceSum
from transpiler.ops.shape_edges import Diagonal, Tril, Triu


def _size(value: Value, axis: int) -> int:
    size = value.shape[axis]
    assert isinstance(size, int)
    return size


def eye(context: ImportContext, n: int, dtype: str) -> Value:
    """The identity matrix, as a constant."""
    return context.array(np.eye(n, dtype=dtype))


def batched(context: ImportContext, *matrices: Value) -> list[Value]:
    """The matrices with one shape of leading dims."""
    batch = broadcast_shapes(*(matrix.shape[:-2] for matrix in matrices))
    return [compose.broadcast_to(context, matrix, (*batch, *matrix.shape[-2:])) for matrix in matrices]


def triangular(
    context: ImportContext, a: Value, b: Value, *, upper: bool, unit: bool = False, transposed: bool = False
) -> Value:
    a, b = batched(context, a, b)
    return compose.emit(context, TriangularSolve(upper, unit, transposed), a, b)


# --- LU ----------------------------------------------------------------------------------------------------


def factor(context: ImportContext, a: Value, check: bool = False) -> tuple[Value, Value, Value]:
    lu, pivots, info = context.emit(LuFactor(check), a)
    return lu, pivots, info


@aten("linalg_lu_factor_ex.default")
def _lu_factor_ex(context: ImportContext, a: Value, *, pivot: bool = True, check_errors: bool = False) -> Any:
    if not pivot:
        raise context.unsupported("LU without pivoting")
    return factor(context, a, check_errors)


@aten("linalg_lu_factor.default")
def _lu_factor(context: ImportContext, a: Value, *, pivot: bool = True) -> Any:
    return _lu_factor_ex(context, a, pivot=pivot, check_errors=True)[:2]


@aten("_lu_with_info.default")
def _lu_with_info(context: ImportContext, a: Value, pivot: bool = True, check_errors: bool = True) -> Any:
    return _lu_factor_ex(context, a, pivot=pivot, check_errors=check_errors)


def _order(context: ImportContext, pivots: Value, rows: int) -> Value:
    return compose.emit(context, LuPermutation(rows), pivots)


def _triangles(context: ImportContext, lu: Value) -> tuple[Value, Value]:
    """(L[..., M, K], U[..., K, N])"""
    rows, columns = _size(lu, -2), _size(lu, -1)
    k, rank = min(rows, columns), lu.type.rank
    left = compose.emit(context, Tril(-1), compose.slice_axis(context, lu, rank - 1, 0, k))
    unit = context.array(np.eye(rows, k, dtype=lu.dtype))
    upper = compose.emit(context, Triu(0), compose.slice_axis(context, lu, rank - 2, 0, k))
    return compose.add(context, left, unit), upper


def _permutation_matrix(context: ImportContext, order: Value, dtype: str) -> Value:
    """P[..., M, M] with P L U = A: P[order[j], j] = 1."""
    rows = _size(order, -1)
    index = compose.reshape(context, compose.emit(context, Arange(0, 1, rows, "int64")), (rows, 1))
    row = compose.reshape(context, order, (*order.shape[:-1], 1, rows))
    return context.cast(compose.emit(context, Eq(), index, row), dtype)


@aten("linalg_lu.default")
def _lu(context: ImportContext, a: Value, *, pivot: bool = True) -> Any:
    lu, pivots, _ = _lu_factor_ex(context, a, pivot=pivot)
    lower, upper = _triangles(context, lu)
    return _permutation_matrix(context, _order(context, pivots, _size(a, -2)), a.dtype), lower, upper


@aten("lu_unpack.default")
def _lu_unpack(
    context: ImportContext, lu: Value, pivots: Value, unpack_data: bool = True, unpack_pivots: bool = True
) -> Any:
    p, lower, upper = context.out_types()
    empty = [compose.emit(context, Full(0.0, kind.shape, kind.dtype)) for kind in (p, lower, upper)]
    if unpack_pivots:
        order = _order(context, context.cast(pivots, "int32"), _size(lu, -2))
        empty[0] = _permutation_matrix(context, order, lu.dtype)
    if unpack_data:
        empty[1:] = _triangles(context, lu)
    return tuple(empty)


def _permuted(context: ImportContext, b: Value, order: Value) -> Value:
    """Row i of the result is row order[i] of `b`."""
    index = compose.broadcast_to(context, compose.reshape(context, order, (*order.shape, 1)), b.shape)
    return compose.emit(context, Gather(b.type.rank - 2), b, index)


def lu_solve(context: ImportContext, lu: Value, pivots: Value, b: Value, transposed: bool = False) -> Value:
    """X with A X = B, or A^T X = B, from the factors of A; batch dims broadcast."""
    lu, b = batched(context, lu, b)
    order = _order(context, pivots, _size(lu, -2))
    order = compose.broadcast_to(context, order, (*lu.shape[:-2], _size(lu, -2)))
    if not transposed:
        y = triangular(context, lu, _permuted(context, b, order), upper=False, unit=True)
        return triangular(context, lu, y, upper=True)
    y = triangular(context, lu, b, upper=True, transposed=True)
    y = triangular(context, lu, y, upper=False, unit=True, transposed=True)
    return compose.emit(context, Matmul(), _permutation_matrix(context, order, y.dtype), y)


@aten("linalg_lu_solve.default")
def _linalg_lu_solve(
    context: ImportContext, lu: Value, pivots: Value, b: Value, *, left: bool = True, adjoint: bool = False
) -> Any:
    pivots = context.cast(pivots, "int32")
    if left:
        return lu_solve(context, lu, pivots, b, adjoint)
    x = lu_solve(context, lu, pivots, compose.swap_last(context, b), not adjoint)
    return compose.swap_last(context, x)


@aten("lu_solve.default")
def _lu_solve(context: ImportContext, b: Value, lu: Value, pivots: Value) -> Any:
    return lu_solve(context, lu, context.cast(pivots, "int32"), b)


def _is_vector(a: Value, b: Value) -> bool:
    """Whether linalg.solve takes `b` as (a batch of) vectors.

    Source: linalg_solve_is_vector_rhs in aten/src/ATen/native/LinearAlgebraUtils.h.
    """
    return b.type.rank == 1 or (a.type.rank - 1 == b.type.rank and b.shape == a.shape[:-1])


@aten("_linalg_solve_ex.default")
def _solve_ex(context: ImportContext, a: Value, b: Value, *, left: bool = True, check_errors: bool = False) -> Any:
    """(X, LU, pivots, info); PyTorch may factor the transpose, so its factors can differ from ours."""
    lu, pivots, info = factor(context, a, check_errors)
    vector = _is_vector(a, b)
    columns = compose.reshape(context, b, (*b.shape, 1)) if vector else b
    if left:
        x = lu_solve(context, lu, pivots, columns)
    else:
        if vector:
            raise context.unsupported("solve from the right with a vector")
        x = compose.swap_last(context, lu_solve(context, lu, pivots, compose.swap_last(context, columns), True))
    return compose.reshape(context, x, x.shape[:-1]) if vector else x, lu, pivots, info


@aten("linalg_solve_ex.default")
def _linalg_solve_ex(
    context: ImportContext, a: Value, b: Value, *, left: bool = True, check_errors: bool = False
) -> Any:
    x, _, _, info = _solve_ex(context, a, b, left=left, check_errors=check_errors)
    return x, info


@aten("linalg_solve.default")
def _solve(context: ImportContext, a: Value, b: Value, *, left: bool = True) -> Any:
    return _solve_ex(context, a, b, left=left, check_errors=True)[0]


def inverse(context: ImportContext, a: Value, check: bool) -> tuple[Value, Value]:
    """(A^-1, info)"""
    lu, pivots, info = factor(context, a, check)
    identity = compose.broadcast_to(context, eye(context, _size(a, -1), a.dtype), a.shape)
    return lu_solve(context, lu, pivots, identity), info


@aten("linalg_inv_ex.default")
def _inv_ex(context: ImportContext, a: Value, *, check_errors: bool = False) -> Any:
    return inverse(context, a, check_errors)


@aten("linalg_inv.default", "inverse.default")
def _inv(context: ImportContext, a: Value) -> Any:
    return inverse(context, a, True)[0]


@aten("linalg_tensorinv.default")
def _tensorinv(context: ImportContext, a: Value, ind: int = 2) -> Any:
    n = compose.product(a.shape[:ind])
    square = compose.reshape(context, a, (n, compose.product(a.shape[ind:])))
    return compose.reshape(context, inverse(context, square, True)[0], (*a.shape[ind:], *a.shape[:ind]))


@aten("linalg_tensorsolve.default")
def _tensorsolve(context: ImportContext, a: Value, b: Value, dims: Any = None) -> Any:
    if dims is not None:
        rank = a.type.rank
        moved = [dim % rank for dim in dims]
        a = compose.transpose(context, a, [*(axis for axis in range(rank) if axis not in moved), *moved])
    n = compose.product(b.shape)
    square = compose.reshape(context, a, (n, compose.product(a.shape[b.type.rank :])))
    x = _solve(context, square, compose.reshape(context, b, (n,)))
    return compose.reshape(context, x, out_type(context).shape)


def _determinant(context: ImportContext, a: Value) -> tuple[Value, Value, Value, Value]:
    """(the parity of the exchanges as +-1, the diagonal of U, LU, pivots)"""
    lu, pivots, _ = factor(context, a)
    steps = compose.emit(context, Arange(1, 1, _size(pivots, -1), "int32"))
    moved = context.cast(compose.emit(context, Ne(), pivots, steps), lu.dtype)
    signs = compose.sub(context, context.scalar(1.0, lu.dtype), compose.scale(context, moved, 2.0))
    parity = compose.emit(context, ReduceProd((signs.type.rank - 1,), False), signs)
    rank = lu.type.rank
    return parity, compose.emit(context, Diagonal(0, rank - 2, rank - 1), lu), lu, pivots


@aten("_linalg_det.default")
def _det(context: ImportContext, a: Value) -> Any:
    parity, diagonal, lu, pivots = _determinant(context, a)
    product = compose.emit(context, ReduceProd((diagonal.type.rank - 1,), False), diagonal)
    return compose.mul(context, parity, product), lu, pivots


@aten("_linalg_slogdet.default")
def _slogdet(context: ImportContext, a: Value) -> Any:
    parity, diagonal, lu, pivots = _determinant(context, a)
    axes = (diagonal.type.rank - 1,)
    signs = compose.emit(context, ReduceProd(axes, False), compose.emit(context, Sign(), diagonal))
    logs = compose.emit(context, Log(), compose.emit(context, Abs(), diagonal))
    return compose.mul(context, parity, signs), compose.emit(context, ReduceSum(axes, False), logs), lu, pivots


# --- triangular systems and Cholesky -------------------------------------------------------------------------


@aten("linalg_solve_triangular.default")
def _solve_triangular(
    context: ImportContext, a: Value, b: Value, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    if left:
        return triangular(context, a, b, upper=upper, unit=unitriangular)
    x = triangular(context, a, compose.swap_last(context, b), upper=upper, unit=unitriangular, transposed=True)
    return compose.swap_last(context, x)


@aten("triangular_solve.default")
def _old_triangular_solve(
    context: ImportContext, b: Value, a: Value, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> Any:
    a, b = batched(context, a, b)
    return triangular(context, a, b, upper=upper, unit=unitriangular, transposed=transpose), a


@aten("linalg_cholesky_ex.default")
def _cholesky_ex(context: ImportContext, a: Value, *, upper: bool = False, check_errors: bool = False) -> Any:
    """The upper factor is the transpose of the lower one of the transposed matrix: its upper triangle is read."""
    lower, info = context.emit(Cholesky(check_errors), compose.swap_last(context, a) if upper else a)
    return compose.swap_last(context, lower) if upper else lower, info


@aten("linalg_cholesky.default")
def _linalg_cholesky(context: ImportContext, a: Value, *, upper: bool = False) -> Any:
    return _cholesky_ex(context, a, upper=upper, check_errors=True)[0]


@aten("cholesky.default")
def _cholesky(context: ImportContext, a: Value, upper: bool = False) -> Any:
    return _linalg_cholesky(context, a, upper=upper)


@aten("cholesky_solve.default")
def _cholesky_solve(context: ImportContext, b: Value, factor: Value, upper: bool = False) -> Any:
    y = triangular(context, factor, b, upper=upper, transposed=upper)
    return triangular(context, factor, y, upper=upper, transposed=not upper)


@aten("cholesky_inverse.default")
def _cholesky_inverse(context: ImportContext, factor: Value, upper: bool = False) -> Any:
    return _cholesky_solve(context, eye(context, _size(factor, -1), factor.dtype), factor, upper)
