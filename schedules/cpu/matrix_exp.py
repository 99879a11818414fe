"""The exponential of a matrix by scaling and squaring, in float64 workspace: some 20 products of n^3 operations."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.matrix_exp import HALVINGS, TERMS
from transpiler.target import Target

from ..vectors import held
from .matrix import Matrix, Task, Variable, copy, per_matrix

Expr = Any

EPILOGUE = False
PROLOGUE = False


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    return per_matrix(group, name, {"matrix_exp": _exp}, {"matrix_exp": (2, 2)}, lambda shape: 3 * math.prod(shape))


def _double(value: float) -> Expr:
    return tirx.const(value, "float64")


def _product(a: Matrix, b: Matrix, target: Matrix, n: int, factor: Expr) -> None:
    """target = factor * a @ b; the inner loop runs along contiguous rows."""
    with T.serial(0, n) as i:
        with T.serial(0, n) as j:
            target[i, j] = _double(0)
        with T.serial(0, n) as k:
            scaled = held(a[i, k] * factor)
            with T.serial(0, n) as j:
                target[i, j] = target[i, j] + scaled * b[k, j]


def _exp(t: Task) -> None:
    (a,), (result,) = t.inputs, t.outputs
    n, _ = t.shape()
    assert t.scratch is not None
    x = t.scratch
    total, spare = (Matrix(x.buffer, x.base + part * n * n, n) for part in (1, 2))
    norm, column, scale = (Variable("float64", _double(value)) for value in (0.0, 0.0, 1.0))
    halvings = Variable("int32", tirx.const(0, "int32"))
    with T.serial(0, n) as j:
        column.set(_double(0))
        with T.serial(0, n) as i:
            column.set(column.get() + t.s.call("abs", T.Cast("float64", a[i, j])))
        norm.set(t.s.maximum(norm.get(), column.get()))
    with T.serial(0, HALVINGS), T.If(norm.get() > _double(0.5)), T.Then():
        norm.set(norm.get() * _double(0.5))
        scale.set(scale.get() * _double(0.5))
        halvings.set(halvings.get() + 1)
    infinite = t.s.logical_or(t.s.call("isnan", norm.get()), t.s.call("isinf", norm.get()))
    factor = held(t.s.select(infinite, t.s.const(math.nan, "float64"), scale.get()))
    with T.serial(0, n) as i, T.serial(0, n) as j:
        x[i, j] = T.Cast("float64", a[i, j]) * factor
        total[i, j] = t.s.select(t.s.eq(i, j), _double(1), _double(0))
    with T.serial(0, TERMS) as step:
        _product(x, total, spare, n, held(_double(1) / T.Cast("float64", TERMS - step)))
        with T.serial(0, n) as i, T.serial(0, n) as j:
            total[i, j] = spare[i, j] + t.s.select(t.s.eq(i, j), _double(1), _double(0))
    with T.serial(0, halvings.get()):
        _product(total, total, spare, n, _double(1))
        copy(spare, total, n, n)
    with T.serial(0, n) as i, T.serial(0, n) as j:
        result[i, j] = T.Cast(t.dtype, total[i, j])
