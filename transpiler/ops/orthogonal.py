"""Orthogonal factorisations: QR by reflections, eigenvalues and singular values by rotations. All take batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from transpiler.ir import Array, TensorType
from transpiler.ops.base import Opaque, OpError, Sample, rng
from transpiler.ops.factorize import check_matrix

# Jacobi: at most so many sweeps; a pair whose cosine is below TINY counts as orthogonal.
SWEEPS = 40
TINY = 1e-15


class HouseholderQr(Opaque, name="householder_qr"):
    """A[..., M, N] -> (R with the reflectors below its diagonal, their factors tau[..., min(M, N)]).

    Reflector j is I - tau v v^T with v = (0, ..., 1, packed[j + 1:, j]); their product, in order, is Q. Signs are those
    of LAPACK's geqrf: R[j, j] is negative unless nothing is left to clear.
    """

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        rows, columns = check_matrix(self.name, x)
        return x, x.with_shape((*x.shape[:-2], min(rows, columns)))

    def reference(self, x: Array) -> tuple[Array, ...]:
        packed = x.copy()
        rows, columns = x.shape[-2:]
        taus = np.zeros((*x.shape[:-2], min(rows, columns)), x.dtype)
        for j in range(min(rows, columns)):
            tail, alpha = packed[..., j + 1 :, j], packed[..., j, j].copy()
            largest = np.max(np.abs(tail), -1, initial=0)
            clear = largest == 0
            size = np.where(clear, 1, np.maximum(largest, np.abs(alpha))).astype(x.dtype)
            parts = np.concatenate([alpha[..., None], tail], -1) / size[..., None]
            norm = size * np.sqrt(np.sum(parts * parts, -1, dtype=x.dtype))
            beta = np.where(alpha < 0, norm, -norm)
            tau = np.where(clear, 0, (beta - alpha) / np.where(clear, 1, beta))
            packed[..., j + 1 :, j] = tail / np.where(clear, 1, alpha - beta)[..., None]
            packed[..., j, j] = np.where(clear, alpha, beta)
            taus[..., j] = tau
            reflect(packed, packed[..., j + 1 :], j, tau.astype(x.dtype))
        return packed, taus

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((1, 1), (5, 5), (2, 7, 4), (2, 2, 4, 7), (17, 9), (2, 0, 3)):
            label = "x".join(map(str, shape))
            yield Sample(label, cls(), (rng(f"qr {label}").standard_normal(shape, np.float32),))
        tiny = rng("qr tiny").standard_normal((5, 4), np.float32)
        yield Sample("tiny", cls(), (tiny * np.float32(1e-30),))
        yield Sample("huge", cls(), (tiny * np.float32(1e30),))
        yield Sample("zero_columns", cls(), (np.array([[1, 2, 0], [0, 0, 0], [0, 0, 0]], np.float32),))


def reflect(v: Array, x: Array, j: int, tau: Array) -> None:
    """Reflector j of `v` applied to `x` in place; `x` begins at any column."""
    tail = v[..., j + 1 :, j].copy()
    step = tau[..., None] * (x[..., j, :] + np.einsum("...i,...ic->...c", tail, x[..., j + 1 :, :]))
    x[..., j, :] -= step
    x[..., j + 1 :, :] -= tail[..., :, None] * step[..., None, :]


class ApplyReflectors(Opaque, name="apply_reflectors"):
    """(packed[..., M, N], tau[..., K], C[..., M, P]) -> Q C, or Q^T C if `transposed`; Q as in `householder_qr`."""

    transposed: bool = False

    def infer(self, packed: TensorType, taus: TensorType, c: TensorType) -> TensorType:
        rows, columns = check_matrix(self.name, packed)
        fits = taus.shape[:-1] == packed.shape[:-2] == c.shape[:-2] and len({packed.dtype, taus.dtype, c.dtype}) == 1
        count = taus.static_shape()[-1] if taus.rank else 0
        if not fits or rows != check_matrix(self.name, c)[0] or count > min(rows, columns):
            raise OpError(f"apply_reflectors: {packed}, {taus} and {c} do not fit")
        return c

    def reference(self, packed: Array, taus: Array, c: Array) -> Array:
        result = c.copy()
        count = taus.shape[-1]
        for j in range(count) if self.transposed else reversed(range(count)):
            reflect(packed, result, j, taus[..., j])
        return result

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        cases: list[tuple[str, tuple[int, ...], int]] = [
            ("square", (5, 5), 5), ("tall", (2, 7, 4), 7), ("wide", (3, 6), 2), ("empty", (0, 0), 0),
        ]  # fmt: skip
        for label, shape, width in cases:
            x = rng(f"reflectors {label}").standard_normal(shape, np.float32)
            c = rng(f"reflectors c {label}").standard_normal((*shape[:-1], width), np.float32)
            for transposed in (False, True):
                packed, taus = HouseholderQr().reference(x)
                yield Sample(f"{label}{'_transposed' * transposed}", cls(transposed), (packed, taus, c))


def _finite(x: Array) -> Array:
    if not np.isfinite(x).all():
        raise np.linalg.LinAlgError("the matrix has NaN or infinities")
    return x


def _rotation(difference: float, twice: float) -> tuple[float, float]:
    """Cosine and sine of the smaller rotation that clears an off-diagonal element."""
    ratio = difference / twice
    tangent = (-1.0 if ratio < 0 else 1.0) / (abs(ratio) + np.sqrt(ratio * ratio + 1))
    cosine = 1 / np.sqrt(tangent * tangent + 1)
    return cosine, cosine * tangent


def _turn(x: Array, p: int, q: int, cosine: float, sine: float) -> None:
    x[p], x[q] = cosine * x[p] - sine * x[q], sine * x[p] + cosine * x[q]


class Eigh(Opaque, name="eigh"):
    """Symmetric A[..., N, N], its lower triangle read -> (eigenvalues ascending [..., N], eigenvectors as columns).

    Jacobi's cyclic method in float64 (Golub, Van Loan, 8.5). Vectors have length 1, their signs are arbitrary. A matrix
    with NaN or infinities fails the call at run time.
    """

    checks_index = True

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_matrix(self.name, x, square=True)
        return x.with_shape(x.shape[:-1]), x

    def reference(self, x: Array) -> tuple[Array, ...]:
        values, vectors = np.zeros(x.shape[:-1], x.dtype), np.zeros_like(x)
        for place in np.ndindex(*x.shape[:-2]):
            values[place], vectors[place] = self._one(x[place].astype(np.float64))
        return values, vectors

    @staticmethod
    def _one(x: Array) -> tuple[Array, Array]:
        work = _finite(np.tril(x) + np.tril(x, -1).T)
        n = len(work)
        turned = np.eye(n)
        for _ in range(SWEEPS):
            moved = False
            for p in range(n - 1):
                for q in range(p + 1, n):
                    size = abs(work[p, q])
                    if size > 0 and size > TINY * (abs(work[p, p]) + abs(work[q, q])):
                        moved = True
                        cosine, sine = _rotation(work[q, q] - work[p, p], 2 * work[p, q])
                        _turn(work, p, q, cosine, sine)
                        _turn(work.T, p, q, cosine, sine)
                        _turn(turned, p, q, cosine, sine)
            if not moved:
                break
        order = np.argsort(np.diag(work), kind="stable")
        return np.diag(work)[order], turned[order].T

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((1, 1), (2, 2), (5, 5), (2, 3, 6, 6), (17, 17), (2, 0, 0)):
            label = "x".join(map(str, shape))
            x = rng(f"eigh {label}").standard_normal(shape, np.float32)
            yield Sample(label, cls(), (x,))
        yield Sample("diagonal", cls(), (np.diag(np.array([3, -1, 0, 3], np.float32)),))
        yield Sample("float64", cls(), (rng("eigh float64").standard_normal((7, 7)),))


class SvdRows(Opaque, name="svd_rows"):
    """A[..., N, M], N <= M -> (W[..., N, N], S[..., N] descending, V[..., N, M]) with W A = diag(S) V.

    W is orthogonal; rows of V have length 1 and are orthogonal, except that a row of singular value 0 is 0 and one of a
    value that is only rounding may point anywhere. One-sided Jacobi in float64 (Golub, Van Loan, 8.6.3). A matrix with
    NaN or infinities fails the call at run time.
    """

    checks_index = True

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        rows, columns = check_matrix(self.name, x)
        if rows > columns:
            raise OpError(f"svd_rows: at most as many rows as columns expected, got {x}")
        return x.with_shape((*x.shape[:-1], rows)), x.with_shape(x.shape[:-1]), x

    def reference(self, x: Array) -> tuple[Array, ...]:
        types = self.infer(TensorType(str(x.dtype), x.shape))
        results = tuple(np.zeros(type_.static_shape(), x.dtype) for type_ in types)
        for place in np.ndindex(*x.shape[:-2]):
            for result, value in zip(results, self._one(x[place].astype(np.float64)), strict=True):
                result[place] = value
        return results

    @staticmethod
    def _one(x: Array) -> tuple[Array, Array, Array]:
        n = len(x)
        scale = np.max(np.abs(_finite(x)), initial=0) or 1.0
        work = x / scale
        turned = np.eye(n)
        for _ in range(SWEEPS):
            moved = False
            for p in range(n - 1):
                for q in range(p + 1, n):
                    alpha, beta, gamma = work[p] @ work[p], work[q] @ work[q], work[p] @ work[q]
                    if abs(gamma) > max(TINY * np.sqrt(alpha) * np.sqrt(beta), 0):
                        moved = True
                        cosine, sine = _rotation(beta - alpha, 2 * gamma)
                        _turn(work, p, q, cosine, sine)
                        _turn(turned, p, q, cosine, sine)
            if not moved:
                break
        norms = np.sqrt(np.sum(work * work, 1))
        order = np.argsort(-norms, kind="stable")
        safe = np.where(norms == 0, 1, norms)
        return turned[order], norms[order] * scale, (work / safe[:, None])[order]

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((1, 1), (1, 3), (5, 5), (2, 3, 4, 7), (9, 17), (2, 0, 3)):
            label = "x".join(map(str, shape))
            yield Sample(label, cls(), (rng(f"svd {label}").standard_normal(shape, np.float32),))
        yield Sample("tiny", cls(), (rng("svd tiny").standard_normal((4, 6)) * 1e-200,))
        yield Sample("huge", cls(), (rng("svd huge").standard_normal((4, 6)) * 1e200,))
        yield Sample("zero_row", cls(), (np.array([[0, 0, 0], [1, 2, -3]], np.float32),))
        yield Sample("float64", cls(), (rng("svd float64").standard_normal((4, 6)),))
