"""LU, Cholesky, triangular systems and the exponential, a block for each matrix (Golub, Van Loan, Matrix Computations).

The algorithms of the CPU's schedules with the loops that depend on nothing dealt to the threads, in the form that
updates what is left of the matrix at every step: each element sees the same operations in the same order. The matrix
stays in global memory, where a block finds it in L1 or L2. Limited by the barriers of a step, two or three, and for
large matrices by the one multiprocessor that works on each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.matrix_exp import HALVINGS, TERMS
from transpiler.target import Target

from ..cpu.factorize import RANKS
from ..cpu.matrix import Matrix, Task, Variable
from ..tir import when
from ..vectors import held
from .team import Team, by_blocks

Expr = Any


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if group.nodes[0].op.name == "matrix_exp":
        return by_blocks(group, name, {"matrix_exp": _exp}, {"matrix_exp": (2, 2)}, lambda shape: 3 * math.prod(shape))
    return by_blocks(group, name, KERNELS, RANKS, lambda shape: 0)


def _lu(t: Task, team: Team) -> None:
    (a,), (lu, pivots, info) = t.inputs, t.outputs
    rows, columns = t.shape()
    team.copy(a, lu, rows, columns)
    failed, chosen = Variable("int32", tirx.const(0, "int32")), Variable("int32", tirx.const(0, "int32"))
    best = Variable(t.dtype, t.number(0))
    infinity = t.s.const(math.inf, t.dtype)

    def larger(left: Sequence[Expr], right: Sequence[Expr]) -> list[Expr]:
        better = t.s.logical_or(right[0] > left[0], t.s.logical_and(t.s.eq(right[0], left[0]), right[1] < left[1]))
        taken = held(t.s.cast(better, "int32"))
        return [held(tirx.Select(taken != 0, b, a)) for a, b in zip(left, right, strict=True)]

    team.meet()
    with T.serial(0, min(rows, columns)) as k:
        best.set(t.number(-1))
        chosen.set(k)
        with team.each(rows - k) as below:
            # A NaN is larger than nothing, and nothing than one that comes first.
            of_nan = t.s.select(t.s.eq(below, 0), infinity, t.number(-1))
            size = held(t.s.call("abs", lu[k + below, k]))
            size = held(t.s.select(t.s.is_nan(size), of_nan, size))
            with when(size > best.get()):
                best.set(size)
                chosen.set(k + below)
        _, row = team.joined([best.get(), chosen.get()], [t.dtype, "int32"], larger)
        with team.alone():
            pivots[0, k] = row + 1
        with when(row != k), team.each(columns) as j:
            upper = held(lu[k, j])
            lu[k, j] = lu[row, j]
            lu[row, j] = upper
        team.meet()
        pivot = held(lu[k, k])
        found = held(t.s.cast(t.s.ne(pivot, t.number(0)), "int32"))
        with when(found != 0), team.each(rows - 1 - k) as below:
            lu[k + 1 + below, k] = lu[k + 1 + below, k] / pivot
        with when(tirx.And(found == 0, failed.get() == 0)):
            failed.set(k + 1)
        team.meet()
        with when(found != 0), team.grid(rows - 1 - k, columns - 1 - k) as (below, right):
            i, j = held(k + 1 + below), held(k + 1 + right)
            lu[i, j] = lu[i, j] - lu[i, k] * lu[k, j]
        team.meet()
    with team.alone():
        info[0, 0] = failed.get()
        t.report_singular(failed.get())


def _triangular(t: Task, team: Team) -> None:
    """A row that is known is taken from those that are not."""
    (a, b), (x,) = t.inputs, t.outputs
    n, columns = t.shape(1)
    lower = t.op.upper == t.op.transposed

    def entry(i: Expr, j: Expr) -> Expr:
        return a[j, i] if t.op.transposed else a[i, j]

    team.copy(b, x, n, columns)
    team.meet()
    with T.serial(0, n) as step:
        i = held(step if lower else n - 1 - step)
        if not t.op.unit:
            pivot = held(entry(i, i))
            with team.each(columns) as c:
                x[i, c] = x[i, c] / pivot
            team.meet()
        with team.grid(n - 1 - step, columns) as (after, c):
            row = held(i + 1 + after if lower else i - 1 - after)
            x[row, c] = x[row, c] - entry(row, i) * x[i, c]
        team.meet()


def _cholesky(t: Task, team: Team) -> None:
    (a,), (lower, info) = t.inputs, t.outputs
    n, _ = t.shape()
    failed = Variable("int32", tirx.const(0, "int32"))
    with team.grid(n, n) as (i, j):
        lower[i, j] = t.s.select(j <= i, a[i, j], t.number(0))
    team.meet()
    with T.serial(0, n) as k:
        square = held(lower[k, k])
        positive = held(t.s.cast(square > t.number(0), "int32"))
        with when(tirx.And(positive == 0, failed.get() == 0)):
            failed.set(k + 1)
        pivot = held(t.s.call("sqrt", square))
        with team.each(n - 1 - k) as below:
            lower[k + 1 + below, k] = lower[k + 1 + below, k] / pivot
        team.meet()
        with team.alone():
            lower[k, k] = pivot
        with team.grid(n - 1 - k, n - 1 - k) as (below, right):
            i, j = held(k + 1 + below), held(k + 1 + right)
            with when(right <= below):
                lower[i, j] = lower[i, j] - lower[i, k] * lower[j, k]
        team.meet()
    with team.alone():
        info[0, 0] = failed.get()
        t.report_singular(failed.get())


@contextmanager
def _product(team: Team, a: Matrix, b: Matrix, n: int, factor: Expr) -> Iterator[tuple[Expr, Expr, Expr]]:
    """Row, column and value of the thread's elements of factor * a @ b."""
    with team.grid(n, n) as (i, j):
        total = Variable("float64", _double(0))
        with T.serial(0, n) as k:
            total.set(total.get() + a[i, k] * factor * b[k, j])
        yield i, j, held(total.get())
    team.meet()


def _exp(t: Task, team: Team) -> None:
    (a,), (result,) = t.inputs, t.outputs
    n, _ = t.shape()
    assert t.scratch is not None
    x = t.scratch
    total, spare = (Matrix(x.buffer, x.base + part * n * n, n) for part in (1, 2))
    norm, column, scale = (Variable("float64", _double(value)) for value in (0.0, 0.0, 1.0))
    halvings = Variable("int32", tirx.const(0, "int32"))

    def unit(i: Expr, j: Expr) -> Expr:
        return t.s.select(t.s.eq(i, j), _double(1), _double(0))

    with team.each(n) as j:
        column.set(_double(0))
        with T.serial(0, n) as i:
            column.set(column.get() + t.s.call("abs", T.Cast("float64", a[i, j])))
        norm.set(t.s.maximum(norm.get(), column.get()))
    (largest,) = team.joined([norm.get()], ["float64"], lambda p, q: [t.s.maximum(p[0], q[0])])
    norm.set(largest)
    with T.serial(0, HALVINGS), when(norm.get() > _double(0.5)):
        norm.set(norm.get() * _double(0.5))
        scale.set(scale.get() * _double(0.5))
        halvings.set(halvings.get() + 1)
    infinite = t.s.logical_or(t.s.call("isnan", norm.get()), t.s.call("isinf", norm.get()))
    factor = held(t.s.select(infinite, t.s.const(math.nan, "float64"), scale.get()))
    with team.grid(n, n) as (i, j):
        x[i, j] = T.Cast("float64", a[i, j]) * factor
        total[i, j] = unit(i, j)
    team.meet()
    # Two steps at a time: from one matrix to the other and back.
    assert TERMS % 2 == 0
    with T.serial(0, TERMS // 2) as turn:
        for half, (source, target) in enumerate(((total, spare), (spare, total))):
            reciprocal = held(_double(1) / T.Cast("float64", TERMS - half - 2 * turn))
            with _product(team, x, source, n, reciprocal) as (i, j, value):
                target[i, j] = value + unit(i, j)
    with T.serial(0, halvings.get()):
        with _product(team, total, total, n, _double(1)) as (i, j, value):
            spare[i, j] = value
        team.copy(spare, total, n, n)
        team.meet()
    with team.grid(n, n) as (i, j):
        result[i, j] = T.Cast(t.dtype, total[i, j])


def _double(value: float) -> Expr:
    return tirx.const(value, "float64")


KERNELS = {"lu_factor": _lu, "triangular_solve": _triangular, "cholesky": _cholesky}
