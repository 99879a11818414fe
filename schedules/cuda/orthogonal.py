"""Reflections and Jacobi rotations, a block for each matrix (Golub, Van Loan, Matrix Computations, ch. 5 and 8).

A reflection is applied to many columns at once, each by a thread, or by a warp where they are few. Rotations of pairs
that share no row commute, so that of the CPU's order, (0, 1), (0, 2), ..., (1, 2), ..., all pairs of the same sum can
be turned at once, each by a warp: of two pairs with a common row the one that comes first has the smaller sum. The
results are the same up to rounding, signs included.

The matrix stays in global memory, where a block finds it in L1 or L2. Limited by the barriers, two for a column or
for pairs of one sum, and for large matrices by the one multiprocessor that works on each.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.orthogonal import SWEEPS, TINY
from transpiler.target import Target

from ..cpu.matrix import Matrix, Task, Variable
from ..cpu.orthogonal import RANKS, rank_of, rotation
from ..tir import when
from ..vectors import held
from .team import Team, added, by_blocks

Expr = Any
MANY = 128  # columns from which on each has a thread


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    return by_blocks(group, name, KERNELS, RANKS, SCRATCH.get(group.nodes[0].op.name, lambda shape: 0))


# --- reflections -----------------------------------------------------------------------------------------


def _qr(t: Task, team: Team) -> None:
    (a,), (packed, taus) = t.inputs, t.outputs
    rows, columns = t.shape()
    zero = t.number(0)
    team.copy(a, packed, rows, columns)
    team.meet()
    total = Variable(t.dtype, zero)
    with T.serial(0, min(rows, columns)) as j:
        below = held(rows - 1 - j)
        total.set(zero)
        with team.each(below) as i:
            total.set(t.s.maximum(total.get(), t.s.call("abs", packed[j + 1 + i, j])))
        (largest,) = team.joined([total.get()], [t.dtype], lambda p, q: [t.s.maximum(p[0], q[0])])
        there = held(t.s.cast(t.s.ne(largest, zero), "int32"))
        alpha = held(packed[j, j])
        # Divided by the largest element, so that no square over- or underflows.
        size = held(t.s.maximum(largest, t.s.call("abs", alpha)))
        total.set(zero)
        with when(there != 0), team.each(below) as i:
            part = held(packed[j + 1 + i, j] / size)
            total.set(total.get() + part * part)
        (squares,) = team.joined([total.get()], [t.dtype], added)
        norm = held(size * t.s.call("sqrt", squares + (alpha / size) * (alpha / size)))
        beta = held(t.s.select(alpha < zero, norm, zero - norm))
        tau = held((beta - alpha) / beta)
        team.meet()
        with when(there != 0), team.each(below) as i:
            packed[j + 1 + i, j] = packed[j + 1 + i, j] / (alpha - beta)
        with team.alone():
            taus[0, j] = t.s.select(there != 0, tau, zero)
            packed[j, j] = t.s.select(there != 0, beta, alpha)
        team.meet()
        with when(there != 0), _columns(team, columns, columns - 1 - j) as (right, reflect):
            reflect(packed, packed, j, held(j + 1 + right), tau, below, total)
        team.meet()


def _reflectors(t: Task, team: Team) -> None:
    """Every column meets all reflectors in the same thread or warp."""
    (v, taus, c), (result,) = t.inputs, t.outputs
    rows, columns = t.shape(2)
    (count,) = t.types[1].static_shape()[-1:]
    team.copy(c, result, rows, columns)
    team.meet()
    total = Variable(t.dtype, t.number(0))
    with _columns(team, columns, columns) as (column, reflect), T.serial(0, count) as step:
        j = held(step if t.op.transposed else count - 1 - step)
        reflect(v, result, j, column, held(taus[0, j]), held(rows - 1 - j), total)


@contextmanager
def _columns(team: Team, most: int, count: Any) -> Iterator[tuple[Expr, Callable[..., None]]]:
    """A loop over `count` columns, and what applies a reflector to one."""
    if most >= MANY:
        with team.each(count) as column:
            yield column, _reflect
    else:
        with team.by_warp(count) as column:
            yield column, functools.partial(_reflect, team=team)


def _reflect(
    v: Matrix, x: Matrix, j: Expr, column: Expr, tau: Expr, below: Expr, total: Variable, team: Team | None = None
) -> None:
    """x[j:, column] -= tau v v^T x[j:, column] with v = (1, v[j + 1:, j]); by a warp of a team, or by this thread."""

    def rows() -> Any:
        return T.serial(0, below) if team is None else team.by_lane(below)

    first = held(x[j, column])
    total.set(tirx.const(0.0, x.buffer.dtype))
    with rows() as i:
        total.set(total.get() + v[j + 1 + i, j] * x[j + 1 + i, column])
    own = [total.get()]
    (product,) = own if team is None else team.joined_in_warp(own, [x.buffer.dtype], added)
    step = held(tau * (first + product))
    with when(None) if team is None else team.alone_in_warp():
        x[j, column] = first - step
    with rows() as i:
        x[j + 1 + i, column] = x[j + 1 + i, column] - step * v[j + 1 + i, j]
    if team is not None:
        team.warp_meets()


# --- rotations -------------------------------------------------------------------------------------------


def _sweeps(team: Team, n: int, turn: Callable[[Expr, Expr, Expr, Variable], None]) -> None:
    """Sweeps over all pairs p < q until one needs no rotation. `turn(sum, first, count, moved)` takes the pairs of a
    sum, whose `count` p follow `first`; it sets `moved` to 1."""
    moved = Variable("int32", tirx.const(1, "int32"))
    with T.serial(0, SWEEPS):
        active = held(moved.get())
        moved.set(tirx.const(0, "int32"))
        with when(active != 0):
            with T.serial(1, max(2 * n - 2, 1)) as both:
                first = held(T.max(both - (n - 1), 0))
                turn(both, first, held(tirx.floordiv(both - 1, 2) - first + 1), moved)
            (anybody,) = team.joined([moved.get()], ["int32"], lambda p, q: [T.max(p[0], q[0])])
            moved.set(anybody)
            team.meet()


def _turned(x: Matrix, first: tuple[Expr, Expr], second: tuple[Expr, Expr], cosine: Expr, sine: Expr) -> None:
    """Two elements, rotated."""
    a, b = held(x[first]), held(x[second])
    x[first] = cosine * a - sine * b
    x[second] = sine * a + cosine * b


def _eigh(t: Task, team: Team) -> None:
    """Rows of the workspace become the eigenvectors. Rotations have a place behind them."""
    (a,), (values, vectors) = t.inputs, t.outputs
    n, _ = t.shape()
    assert t.scratch is not None
    work, turned, angles = (Matrix(t.scratch.buffer, t.scratch.base + part * n * n, n) for part in range(3))
    zero, one = tirx.const(0.0, "float64"), tirx.const(1.0, "float64")
    with team.grid(n, n) as (i, j):
        # Only the lower triangle is read.
        work[i, j] = T.Cast("float64", a[t.s.select(i < j, j, i), t.s.select(i < j, i, j)])
        turned[i, j] = t.s.select(t.s.eq(i, j), one, zero)
        t.report_nonfinite(work[i, j])
    team.meet()

    def turn(both: Expr, first: Expr, count: Expr, moved: Variable) -> None:
        with team.by_warp(count) as number:
            p = held(first + number)
            q = held(both - p)
            x, upper, lower = held(work[p, q]), held(work[p, p]), held(work[q, q])
            size, scale = held(t.s.call("abs", x)), held(t.s.call("abs", upper) + t.s.call("abs", lower))
            needed = held(t.s.cast(tirx.And(size > scale * tirx.const(TINY, "float64"), size > zero), "int32"))
            cosine, sine = rotation(t, lower - upper, x + x)
            team.warp_meets()  # all have read what is written now
            with team.alone_in_warp():
                angles[0, 2 * number] = t.s.select(needed != 0, cosine, one)
                angles[0, 2 * number + 1] = t.s.select(needed != 0, sine, zero)
            with when(needed != 0):
                moved.set(tirx.const(1, "int32"))
                with team.by_lane(n) as k:
                    _turned(work, (p, k), (q, k), cosine, sine)
                    _turned(turned, (p, k), (q, k), cosine, sine)
        team.meet()
        with team.grid(n, count) as (k, number):
            p = held(first + number)
            sine = held(angles[0, 2 * number + 1])
            with when(t.s.ne(sine, zero)):
                _turned(work, (k, p), (k, held(both - p)), held(angles[0, 2 * number]), sine)
        team.meet()

    _sweeps(team, n, turn)
    with team.by_warp(n) as i:
        place = rank_of(t, lambda j: work[j, j], i, n, descending=False)
        with team.alone_in_warp():
            values[0, place] = T.Cast(t.dtype, work[i, i])
        with team.by_lane(n) as k:
            vectors[k, place] = T.Cast(t.dtype, turned[i, k])


def _svd(t: Task, team: Team) -> None:
    """One-sided (Hestenes): rotations of pairs of rows until all are orthogonal."""
    (a,), (left, values, right) = t.inputs, t.outputs
    n, columns = t.shape()
    assert t.scratch is not None
    work = t.scratch
    turned = Matrix(work.buffer, work.base + n * columns, n)
    norms = Matrix(work.buffer, work.base + n * columns + n * n, n)
    zero, one = tirx.const(0.0, "float64"), tirx.const(1.0, "float64")
    # Divided by the largest element, so that no square over- or underflows.
    own = Variable("float64", zero)
    with team.grid(n, columns) as (i, j):
        element = held(T.Cast("float64", a[i, j]))
        t.report_nonfinite(element)
        own.set(t.s.maximum(own.get(), t.s.call("abs", element)))
    (largest,) = team.joined([own.get()], ["float64"], lambda p, q: [t.s.maximum(p[0], q[0])])
    scale = held(t.s.select(t.s.eq(largest, zero), one, largest))
    with team.grid(n, columns) as (i, j):
        work[i, j] = T.Cast("float64", a[i, j]) / scale
    with team.grid(n, n) as (i, j):
        turned[i, j] = t.s.select(t.s.eq(i, j), one, zero)
    team.meet()
    sums = [Variable("float64", zero) for _ in range(3)]

    def turn(both: Expr, first: Expr, count: Expr, moved: Variable) -> None:
        with team.by_warp(count) as number:
            p = held(first + number)
            q = held(both - p)
            for total in sums:
                total.set(zero)
            with team.by_lane(columns) as k:
                x, y = held(work[p, k]), held(work[q, k])
                for total, product in zip(sums, (x * x, y * y, x * y), strict=True):
                    total.set(total.get() + product)
            alpha, beta, gamma = team.joined_in_warp([total.get() for total in sums], ["float64"] * 3, added)
            size = held(t.s.call("abs", gamma))
            limit = t.s.call("sqrt", alpha) * t.s.call("sqrt", beta) * tirx.const(TINY, "float64")
            with when(tirx.And(size > limit, size > zero)):
                moved.set(tirx.const(1, "int32"))
                cosine, sine = rotation(t, beta - alpha, gamma + gamma)
                with team.by_lane(columns) as k:
                    _turned(work, (p, k), (q, k), cosine, sine)
                with team.by_lane(n) as k:
                    _turned(turned, (p, k), (q, k), cosine, sine)
        team.meet()

    _sweeps(team, n, turn)
    with team.by_warp(n) as i:
        sums[0].set(zero)
        with team.by_lane(columns) as k:
            sums[0].set(sums[0].get() + work[i, k] * work[i, k])
        (square,) = team.joined_in_warp([sums[0].get()], ["float64"], added)
        with team.alone_in_warp():
            norms[0, i] = t.s.call("sqrt", square)
    team.meet()
    with team.by_warp(n) as i:
        place = rank_of(t, lambda j: norms[0, j], i, n, descending=True)
        norm = held(norms[0, i])
        with team.alone_in_warp():
            values[0, place] = T.Cast(t.dtype, norm * scale)
        with team.by_lane(n) as k:
            left[place, k] = T.Cast(t.dtype, turned[i, k])
        divisor = held(t.s.select(t.s.eq(norm, zero), one, norm))
        with team.by_lane(columns) as k:
            right[place, k] = T.Cast(t.dtype, work[i, k] / divisor)


KERNELS = {"householder_qr": _qr, "apply_reflectors": _reflectors, "eigh": _eigh, "svd_rows": _svd}
SCRATCH: dict[str, Callable[[tuple[int, ...]], int]] = {
    "eigh": lambda shape: 2 * math.prod(shape) + 2 * (shape[0] // 2 + 1),
    "svd_rows": lambda shape: math.prod(shape) + shape[0] * (shape[0] + 1),
}
