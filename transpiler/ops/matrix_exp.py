"""The exponential of a matrix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from transpiler.ir import Array, TensorType
from transpiler.ops.base import Opaque, Sample, rng
from transpiler.ops.factorize import check_matrix

# Terms of the Taylor series: for a matrix of norm 1/2 the rest is below 1e-19.
TERMS = 16
# Halvings of the matrix at most; beyond them the exponential of float64 is infinite or 0 anyway.
HALVINGS = 1100


class MatrixExp(Opaque, name="matrix_exp", aten=["linalg_matrix_exp.default", "matrix_exp.default"]):
    """exp(A) of A[..., N, N]: halved until its 1-norm is at most 1/2, Taylor's series, squared as often.

    In float64 (Higham, Functions of Matrices, 10.3). NaN if A has NaN or infinities.
    """

    def infer(self, x: TensorType) -> TensorType:
        check_matrix(self.name, x, square=True)
        return x

    def reference(self, x: Array) -> Array:
        result = np.zeros_like(x)
        for place in np.ndindex(*x.shape[:-2]):
            result[place] = self._one(x[place].astype(np.float64))
        return result

    @staticmethod
    def _one(x: Array) -> Array:
        n, halvings = len(x), 0
        norm = np.max(np.sum(np.abs(x), 0), initial=0)
        if not np.isfinite(norm):
            return np.full_like(x, np.nan)
        while norm > 0.5 and halvings < HALVINGS:
            norm, halvings = norm / 2, halvings + 1
        x = np.ldexp(x, -halvings)
        result = np.eye(n)
        for term in range(TERMS, 0, -1):
            result = np.eye(n) + x @ result / term
        for _ in range(halvings):
            result = result @ result
        return result

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((1, 1), (5, 5), (2, 3, 6, 6), (17, 17), (2, 0, 0)):
            label = "x".join(map(str, shape))
            yield Sample(label, cls(), (rng(f"matrix_exp {label}").standard_normal(shape, np.float32),))
        yield Sample("zero", cls(), (np.zeros((3, 3), np.float32),))
        yield Sample("nan", cls(), (np.array([[1, np.nan], [0, 2]], np.float32),))
        yield Sample("negative", cls(), (np.diag(np.array([-30, -1, 2], np.float32)),))
