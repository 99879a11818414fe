"""Factorisations of matrices: LU, Cholesky, and the solution of triangular systems. All take leading batch dims."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from transpiler.ir import Array, TensorType
from transpiler.ops.base import Opaque, OpError, Sample, rng


def check_matrix(name: str, x: TensorType, *, square: bool = False) -> tuple[int, int]:
    """Rows and columns. Raises OpError for anything but a float32 or float64 matrix of fixed sizes."""
    if x.rank < 2 or x.dtype not in ("float32", "float64"):
        raise OpError(f"{name}: a float32 or float64 matrix expected, got {x}")
    if any(not isinstance(dim, int) for dim in x.shape):
        raise OpError(f"{name}: fixed sizes expected, got {x}")
    *_, rows, columns = x.static_shape()
    if square and rows != columns:
        raise OpError(f"{name}: a square matrix expected, got {x}")
    return rows, columns


def over_matrices(function: Any, *arrays: Array) -> tuple[Array, ...]:
    """`function` on each matrix of the batch; its results stacked."""
    batch = arrays[0].shape[:-2]
    rows = [function(*(array[place] for array in arrays)) for place in np.ndindex(*batch)]
    return tuple(np.stack(part).reshape((*batch, *part[0].shape)) for part in zip(*rows, strict=True))


def well_conditioned(label: str, *shape: int, dtype: str = "float32") -> Array:
    """Random square matrices with a heavy diagonal."""
    x = rng(label).standard_normal(shape) + 2 * np.eye(shape[-1])
    return x.astype(dtype)


class LuFactor(Opaque, name="lu_factor"):
    """A[..., M, N] = P L U by partial pivoting -> (L below and U on and above the diagonal, pivots, info).

    `pivots` int32 [..., K]: row k was exchanged with row pivots[k] - 1; `info` int32 [...]: the first k + 1 whose pivot
    is 0, else 0. With `check` such a matrix fails the call at run time.
    """

    checks_index = True
    check: bool = False

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        rows, columns = check_matrix(self.name, x)
        batch = x.shape[:-2]
        return x, TensorType("int32", (*batch, min(rows, columns))), TensorType("int32", batch)

    def reference(self, x: Array) -> tuple[Array, ...]:
        if 0 in x.shape[:-2]:
            types = self.infer(TensorType(str(x.dtype), x.shape))
            return tuple(np.zeros(type_.static_shape(), type_.dtype) for type_ in types)
        lu, pivots, info = over_matrices(self._factor, x)
        if self.check and info.any():
            raise np.linalg.LinAlgError("the matrix is singular")
        return lu, pivots, info

    @staticmethod
    def _factor(x: Array) -> tuple[Array, Array, Array]:
        lu, info = x.copy(), 0
        pivots = np.zeros(min(x.shape), np.int32)
        for k in range(len(pivots)):
            row = k + int(np.argmax(np.abs(lu[k:, k])))
            pivots[k] = row + 1
            lu[[k, row]] = lu[[row, k]]
            if lu[k, k] != 0:
                lu[k + 1 :, k] /= lu[k, k]
                lu[k + 1 :, k + 1 :] -= np.outer(lu[k + 1 :, k], lu[k, k + 1 :])
            else:
                info = info or k + 1
        return lu, pivots, np.asarray(info, np.int32)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((1, 1), (5, 5), (2, 3, 7, 4), (3, 4, 9), (17, 17), (0, 3), (2, 0, 0)):
            label = "x".join(map(str, shape))
            yield Sample(label, cls(), (rng(f"lu {label}").standard_normal(shape, np.float32),))
        yield Sample("singular", cls(), (np.ones((2, 3, 3), np.float32),))
        yield Sample("checked", cls(True), (well_conditioned("lu checked", 3, 6, 6, dtype="float64"),))


class LuPermutation(Opaque, name="lu_permutation"):
    """pivots[..., K] of `lu_factor` -> int64 [..., rows]: the row of A that each row of L U is."""

    rows: int

    def infer(self, pivots: TensorType) -> TensorType:
        if pivots.dtype != "int32" or pivots.rank < 1:
            raise OpError(f"lu_permutation: int32 pivots expected, got {pivots}")
        return TensorType("int64", (*pivots.shape[:-1], self.rows))

    def reference(self, pivots: Array) -> Array:
        order = np.broadcast_to(np.arange(self.rows), (*pivots.shape[:-1], self.rows)).copy()
        for place in np.ndindex(*pivots.shape[:-1]):
            for k, other in enumerate(pivots[place] - 1):
                order[place][[k, other]] = order[place][[other, k]]
        return order

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        pivots = np.array([[1, 4, 3], [3, 3, 5], [2, 5, 4]], np.int32)
        yield Sample("batch", cls(5), (pivots,), exact=True)
        yield Sample("one", cls(3), (pivots[1, :1],), exact=True)


class TriangularSolve(Opaque, name="triangular_solve"):
    """(A[..., N, N], B[..., N, K]) -> X with A X = B, or A^T X = B if `transposed`.

    Only the triangle that `upper` names is read, not its diagonal if `unit` says that it is 1. Zeros on the diagonal
    give infinities and NaN.
    """

    upper: bool
    unit: bool = False
    transposed: bool = False

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        rows, _ = check_matrix(self.name, a, square=True)
        if a.dtype != b.dtype or a.shape[:-1] != b.shape[:-1] or rows != check_matrix(self.name, b)[0]:
            raise OpError(f"triangular_solve: {a} and {b} do not fit")
        return b

    def reference(self, a: Array, b: Array) -> Array:
        matrix = np.swapaxes(a, -1, -2) if self.transposed else a
        lower = self.upper == self.transposed
        x = b.copy()
        n = x.shape[-2]
        for i in range(n) if lower else reversed(range(n)):
            known = slice(0, i) if lower else slice(i + 1, n)
            x[..., i, :] -= np.einsum("...j,...jc->...c", matrix[..., i, known], x[..., known, :])
            if not self.unit:
                x[..., i, :] /= matrix[..., i, i, None]
        return x

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for upper in (False, True):
            for unit in (False, True):
                for transposed in (False, True):
                    label = f"{'upper' if upper else 'lower'}{'_unit' * unit}{'_transposed' * transposed}"
                    a = well_conditioned(label, 2, 7, 7) / np.float32(2)
                    yield Sample(
                        label, cls(upper, unit, transposed), (a, rng(label).standard_normal((2, 7, 3), np.float32))
                    )
        a = well_conditioned("triangular", 1, 1)
        yield Sample("one", cls(True), (a, a))
        yield Sample("empty", cls(True), (np.zeros((2, 0, 0), np.float32), np.zeros((2, 0, 3), np.float32)))


class Cholesky(Opaque, name="cholesky"):
    """A[..., N, N] = L L^T, symmetric, its lower triangle read -> (L, info).

    `info` int32 [...]: the first k + 1 whose pivot is not positive, else 0; L is undefined then. With `check` such a
    matrix fails the call at run time.
    """

    checks_index = True
    check: bool = False

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_matrix(self.name, x, square=True)
        return x, TensorType("int32", x.shape[:-2])

    def reference(self, x: Array) -> tuple[Array, ...]:
        lower, n = np.zeros_like(x), x.shape[-1]
        info = np.zeros(x.shape[:-2], np.int32)
        for j in range(n):
            pivot = x[..., j, j] - np.sum(lower[..., j, :j] ** 2, -1, dtype=x.dtype)
            info = np.where((info == 0) & ~(pivot > 0), j + 1, info).astype(np.int32)
            lower[..., j, j] = np.sqrt(pivot)
            inner = np.einsum("...ik,...k->...i", lower[..., j + 1 :, :j], lower[..., j, :j])
            lower[..., j + 1 :, j] = (x[..., j + 1 :, j] - inner) / lower[..., j, j, None]
        if self.check and info.any():
            raise np.linalg.LinAlgError("the matrix is not positive definite")
        return lower, info

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((1, 1), (5, 5), (2, 3, 7, 7), (17, 17), (2, 0, 0)):
            label = "x".join(map(str, shape))
            x = rng(f"cholesky {label}").standard_normal(shape, np.float32)
            yield Sample(label, cls(True), ((x @ np.swapaxes(x, -1, -2) + np.eye(shape[-1])).astype(np.float32),))
        yield Sample("indefinite", cls(), (np.array([[[-1.0]], [[4.0]]], np.float32),))
