"""Householder reflections and Jacobi rotations, one matrix at a time (Golub, Van Loan, Matrix Computations, ch. 5, 8).

Eigen- and singular values are computed in float64 workspace whatever the dtype: Jacobi's methods take a few sweeps over
all pairs of rows, each rotation two contiguous rows, O(n^3) operations per sweep.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.orthogonal import SWEEPS, TINY
from transpiler.target import Target

from ..vectors import held
from .matrix import Matrix, Task, Variable, copy, per_matrix

Expr = Any

EPILOGUE = False
PROLOGUE = False


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    return per_matrix(group, name, KERNELS, RANKS, SCRATCH.get(group.nodes[0].op.name, lambda shape: 0))


def _qr(t: Task) -> None:
    """Column by column: the reflection that clears it, applied to the columns on its right."""
    (a,), (packed, taus) = t.inputs, t.outputs
    rows, columns = t.shape()
    copy(a, packed, rows, columns)
    total = Variable(t.dtype, t.number(0))
    with T.serial(0, min(rows, columns)) as j:
        below = rows - 1 - j
        total.set(t.number(0))
        with T.serial(0, below) as i:
            total.set(t.s.maximum(total.get(), t.s.call("abs", packed[j + 1 + i, j])))
        with T.If(t.s.ne(total.get(), t.number(0))):
            with T.Then():
                alpha = held(packed[j, j])
                # Divided by the largest element, so that no square over- or underflows.
                size = held(t.s.maximum(total.get(), t.s.call("abs", alpha)))
                total.set((alpha / size) * (alpha / size))
                with T.serial(0, below) as i:
                    part = held(packed[j + 1 + i, j] / size)
                    total.set(total.get() + part * part)
                norm = held(size * t.s.call("sqrt", total.get()))
                beta = held(t.s.select(alpha < t.number(0), norm, t.number(0) - norm))
                tau = held((beta - alpha) / beta)
                with T.serial(0, below) as i:
                    packed[j + 1 + i, j] = packed[j + 1 + i, j] / (alpha - beta)
                packed[j, j] = beta
                taus[0, j] = tau
                with T.serial(0, columns - 1 - j) as right:
                    _reflect(packed, packed, j, j + 1 + right, tau, below, total)
            with T.Else():
                taus[0, j] = t.number(0)


def _reflect(v: Matrix, x: Matrix, j: Expr, column: Expr, tau: Expr, below: Expr, total: Variable) -> None:
    """x[j:, column] -= tau v v^T x[j:, column] with v = (1, v[j + 1:, j])."""
    total.set(x[j, column])
    with T.serial(0, below) as i:
        total.set(total.get() + v[j + 1 + i, j] * x[j + 1 + i, column])
    step = held(tau * total.get())
    x[j, column] = x[j, column] - step
    with T.serial(0, below) as i:
        x[j + 1 + i, column] = x[j + 1 + i, column] - step * v[j + 1 + i, j]


def _reflectors(t: Task) -> None:
    """H_1 H_2 ... H_k C from the last to the first, its transpose from the first to the last."""
    (v, taus, c), (result,) = t.inputs, t.outputs
    rows, columns = t.shape(2)
    (count,) = t.types[1].static_shape()[-1:]
    copy(c, result, rows, columns)
    total = Variable(t.dtype, t.number(0))
    with T.serial(0, count) as step:
        j = held(step if t.op.transposed else count - 1 - step)
        tau = held(taus[0, j])
        with T.serial(0, columns) as column:
            _reflect(v, result, j, column, tau, rows - 1 - j, total)


def rotation(t: Task, difference: Expr, twice: Expr) -> tuple[Expr, Expr]:
    """Cosine and sine of the rotation that clears an off-diagonal element, of the smaller angle."""
    one = tirx.const(1.0, "float64")
    ratio = held(difference / twice)
    size = held(t.s.call("abs", ratio) + t.s.call("sqrt", ratio * ratio + one))
    tangent = held(t.s.select(ratio < tirx.const(0.0, "float64"), tirx.const(-1.0, "float64"), one) / size)
    cosine = held(one / t.s.call("sqrt", tangent * tangent + one))
    return cosine, held(cosine * tangent)


def _turn(x: Matrix, p: Expr, q: Expr, cosine: Expr, sine: Expr, count: int, *, columns: bool = False) -> None:
    """Rows (or columns) p and q of `x`, rotated."""
    with T.serial(0, count) as k:
        first, second = ((k, p), (k, q)) if columns else ((p, k), (q, k))
        a, b = held(x[first]), held(x[second])
        x[first] = cosine * a - sine * b
        x[second] = sine * a + cosine * b


def _pairs(n: int, rotate: Any) -> None:
    """Sweeps over all pairs p < q until one needs no rotation; `rotate(p, q, moved)` sets `moved` to 1."""
    moved = Variable("int32", tirx.const(1, "int32"))
    with T.serial(0, SWEEPS):
        active = held(moved.get())
        moved.set(tirx.const(0, "int32"))
        with T.If(active != 0), T.Then(), T.serial(0, max(n - 1, 0)) as p, T.serial(0, n - 1 - p) as offset:
            rotate(p, held(p + 1 + offset), moved)


def rank_of(t: Task, values: Any, i: Expr, n: int, *, descending: bool) -> Expr:
    """How many of `values(j)` come before the i-th; equal ones keep their order."""
    place = Variable("int32", tirx.const(0, "int32"))
    own = held(values(i))
    with T.serial(0, n) as j:
        other = held(values(j))
        before = other > own if descending else other < own
        first = t.s.logical_or(before, t.s.logical_and(t.s.eq(other, own), j < i))
        with T.If(first), T.Then():
            place.set(place.get() + 1)
    return held(place.get())


def _eigh(t: Task) -> None:
    """Cyclic Jacobi on a symmetric matrix; rows of the workspace become the eigenvectors."""
    (a,), (values, vectors) = t.inputs, t.outputs
    n, _ = t.shape()
    assert t.scratch is not None
    work, turned = t.scratch, Matrix(t.scratch.buffer, t.scratch.base + n * n, n)
    zero, one = tirx.const(0.0, "float64"), tirx.const(1.0, "float64")
    with T.serial(0, n) as i, T.serial(0, n) as j:
        # Only the lower triangle is read.
        work[i, j] = T.Cast("float64", a[t.s.select(i < j, j, i), t.s.select(i < j, i, j)])
        turned[i, j] = t.s.select(t.s.eq(i, j), one, zero)
        t.report_nonfinite(work[i, j])

    def rotate(p: Expr, q: Expr, moved: Variable) -> None:
        x = held(work[p, q])
        scale = held(t.s.call("abs", work[p, p]) + t.s.call("abs", work[q, q]))
        size = held(t.s.call("abs", x))
        with T.If(tirx.And(size > scale * tirx.const(TINY, "float64"), size > zero)), T.Then():
            moved.set(tirx.const(1, "int32"))
            cosine, sine = rotation(t, work[q, q] - work[p, p], x + x)
            _turn(work, p, q, cosine, sine, n)
            _turn(work, p, q, cosine, sine, n, columns=True)
            _turn(turned, p, q, cosine, sine, n)

    _pairs(n, rotate)
    with T.serial(0, n) as i:
        place = rank_of(t, lambda j: work[j, j], i, n, descending=False)
        values[0, place] = T.Cast(t.dtype, work[i, i])
        with T.serial(0, n) as k:
            vectors[k, place] = T.Cast(t.dtype, turned[i, k])


def _svd(t: Task) -> None:
    """One-sided Jacobi (Hestenes): rotations of pairs of rows until all are orthogonal."""
    (a,), (left, values, right) = t.inputs, t.outputs
    n, columns = t.shape()
    assert t.scratch is not None
    work = t.scratch
    turned = Matrix(work.buffer, work.base + n * columns, n)
    norms = Matrix(work.buffer, work.base + n * columns + n * n, n)
    zero, one = tirx.const(0.0, "float64"), tirx.const(1.0, "float64")
    # Divided by the largest element, so that no square over- or underflows.
    largest = Variable("float64", zero)
    with T.serial(0, n) as i, T.serial(0, columns) as j:
        element = held(T.Cast("float64", a[i, j]))
        t.report_nonfinite(element)
        largest.set(t.s.maximum(largest.get(), t.s.call("abs", element)))
    scale = held(t.s.select(t.s.eq(largest.get(), zero), one, largest.get()))
    with T.serial(0, n) as i:
        with T.serial(0, columns) as j:
            work[i, j] = T.Cast("float64", a[i, j]) / scale
        with T.serial(0, n) as j:
            turned[i, j] = t.s.select(t.s.eq(i, j), one, zero)
    sums = [Variable("float64", zero) for _ in range(3)]

    def rotate(p: Expr, q: Expr, moved: Variable) -> None:
        for total in sums:
            total.set(zero)
        with T.serial(0, columns) as k:
            x, y = held(work[p, k]), held(work[q, k])
            for total, product in zip(sums, (x * x, y * y, x * y), strict=True):
                total.set(total.get() + product)
        alpha, beta, gamma = (held(total.get()) for total in sums)
        size = held(t.s.call("abs", gamma))
        limit = t.s.call("sqrt", alpha) * t.s.call("sqrt", beta) * tirx.const(TINY, "float64")
        with T.If(tirx.And(size > limit, size > zero)), T.Then():
            moved.set(tirx.const(1, "int32"))
            cosine, sine = rotation(t, beta - alpha, gamma + gamma)
            _turn(work, p, q, cosine, sine, columns)
            _turn(turned, p, q, cosine, sine, n)

    _pairs(n, rotate)
    total = sums[0]
    with T.serial(0, n) as i:
        total.set(zero)
        with T.serial(0, columns) as k:
            total.set(total.get() + work[i, k] * work[i, k])
        norms[0, i] = t.s.call("sqrt", total.get())
    with T.serial(0, n) as i:
        place = rank_of(t, lambda j: norms[0, j], i, n, descending=True)
        norm = held(norms[0, i])
        values[0, place] = T.Cast(t.dtype, norm * scale)
        with T.serial(0, n) as k:
            left[place, k] = T.Cast(t.dtype, turned[i, k])
        divisor = held(t.s.select(t.s.eq(norm, zero), one, norm))
        with T.serial(0, columns) as k:
            right[place, k] = T.Cast(t.dtype, work[i, k] / divisor)


KERNELS = {"householder_qr": _qr, "apply_reflectors": _reflectors, "eigh": _eigh, "svd_rows": _svd}
RANKS = {"householder_qr": (2, 2, 1), "apply_reflectors": (2, 1, 2, 2), "eigh": (2, 1, 2), "svd_rows": (2, 2, 1, 2)}
SCRATCH = {
    "eigh": lambda shape: 2 * math.prod(shape),
    "svd_rows": lambda shape: math.prod(shape) + shape[0] * (shape[0] + 1),
}
