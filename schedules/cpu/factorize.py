"""LU, Cholesky and triangular systems, one matrix at a time (Golub, Van Loan, Matrix Computations, ch. 3 and 4)."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.target import Target

from ..vectors import held
from .matrix import Task, Variable, copy, per_matrix

Expr = Any

EPILOGUE = False
PROLOGUE = False


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    return per_matrix(group, name, KERNELS, RANKS, lambda shape: 0)


def _lu(t: Task) -> None:
    """Row by row elimination under the largest pivot of each column; the loop over columns is contiguous."""
    (a,), (lu, pivots, info) = t.inputs, t.outputs
    rows, columns = t.shape()
    copy(a, lu, rows, columns)
    failed = Variable("int32", tirx.const(0, "int32"))
    best, chosen = Variable(t.dtype, t.number(0)), Variable("int32", tirx.const(0, "int32"))
    with T.serial(0, min(rows, columns)) as k:
        best.set(t.s.call("abs", lu[k, k]))
        chosen.set(k)
        with T.serial(0, rows - 1 - k) as below:
            i = k + 1 + below
            size = held(t.s.call("abs", lu[i, k]))
            with T.If(size > best.get()), T.Then():
                best.set(size)
                chosen.set(i)
        pivots[0, k] = chosen.get() + 1
        with T.If(chosen.get() != k), T.Then(), T.serial(0, columns) as j:
            upper = held(lu[k, j])
            lu[k, j] = lu[chosen.get(), j]
            lu[chosen.get(), j] = upper
        pivot = held(lu[k, k])
        with T.If(t.s.ne(pivot, t.number(0))):
            with T.Then(), T.serial(0, rows - 1 - k) as below:
                i = k + 1 + below
                factor = held(lu[i, k] / pivot)
                lu[i, k] = factor
                with T.serial(0, columns - 1 - k) as right:
                    lu[i, k + 1 + right] = lu[i, k + 1 + right] - factor * lu[k, k + 1 + right]
            with T.Else(), T.If(failed.get() == 0), T.Then():
                failed.set(k + 1)
    info[0, 0] = failed.get()
    t.report_singular(failed.get())


def _permutation(t: Task) -> None:
    """The exchanges, in order, applied to 0, 1, 2, ..."""
    (pivots,), (order,) = t.inputs, t.outputs
    (count,) = t.types[0].static_shape()[-1:]
    with T.serial(0, t.op.rows) as i:
        order[0, i] = T.Cast("int64", i)
    with T.serial(0, count) as k:
        other = held(pivots[0, k] - 1)
        kept = held(order[0, k])
        order[0, k] = order[0, other]
        order[0, other] = kept


def _triangular(t: Task) -> None:
    """Substitution, row by row; all right-hand sides are the contiguous inner loop."""
    (a, b), (x,) = t.inputs, t.outputs
    n, columns = t.shape(1)
    lower = t.op.upper == t.op.transposed

    def entry(i: Expr, j: Expr) -> Expr:
        return a[j, i] if t.op.transposed else a[i, j]

    copy(b, x, n, columns)
    with T.serial(0, n) as step:
        i = step if lower else n - 1 - step
        with T.serial(0, step) as known:
            j = known if lower else n - 1 - known
            factor = held(entry(i, j))
            with T.serial(0, columns) as c:
                x[i, c] = x[i, c] - factor * x[j, c]
        if not t.op.unit:
            pivot = held(entry(i, i))
            with T.serial(0, columns) as c:
                x[i, c] = x[i, c] / pivot


def _cholesky(t: Task) -> None:
    """Column by column from the lower triangle; a pivot that is not positive is reported by its number."""
    (a,), (lower, info) = t.inputs, t.outputs
    n, _ = t.shape()
    failed = Variable("int32", tirx.const(0, "int32"))
    total = Variable(t.dtype, t.number(0))
    with T.serial(0, n) as j:
        with T.serial(0, j) as above:
            lower[above, j] = t.number(0)
        total.set(a[j, j])
        with T.serial(0, j) as k:
            total.set(total.get() - lower[j, k] * lower[j, k])
        positive = t.s.logical_and(total.get() > t.number(0), failed.get() == 0)
        with T.If(t.s.logical_and(t.s.logical_not(positive), failed.get() == 0)), T.Then():
            failed.set(j + 1)
        pivot = held(t.s.call("sqrt", total.get()))
        lower[j, j] = pivot
        with T.serial(0, n - 1 - j) as below:
            i = j + 1 + below
            total.set(a[i, j])
            with T.serial(0, j) as k:
                total.set(total.get() - lower[i, k] * lower[j, k])
            lower[i, j] = total.get() / pivot
    info[0, 0] = failed.get()
    t.report_singular(failed.get())


KERNELS = {"lu_factor": _lu, "lu_permutation": _permutation, "triangular_solve": _triangular, "cholesky": _cholesky}
RANKS = {"lu_factor": (2, 2, 1, 0), "lu_permutation": (1, 1), "triangular_solve": (2, 2, 2), "cholesky": (2, 2, 0)}
