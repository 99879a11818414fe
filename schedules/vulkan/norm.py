"""Layer, root-mean-square and group norm: the mean, the distances from it and their squares, then the result; one pass
over the row for each, as the one-pass formula for the variance cancels.

The distances' own mean is what rounding left of the mean, and corrects it and the variance (Chan, Golub, LeVeque,
"Algorithms for computing the sample variance", 1983): 1 / sqrt(eps) would make a number of it where a row is constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.target import Target

from ..fuse import lowered
from ..gpu.lines import rows_of
from ..gpu.workgroup import SUM
from ..sizes import count, extent, is_empty
from ..tir import unflatten
from ..vectors import held
from .rows import RowGroup

Expr = Any
COST = 8


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if group.anchor_node is None or group.anchor_node.op.name not in ("layer_norm", "rms_norm", "group_norm"):
        return None
    rows = RowGroup(group, name)
    if not rows.fits:
        return None
    op: Any = group.anchor_node.op
    shape = rows.shape
    outer: tuple[Dim, ...]
    inner: tuple[Dim, ...]
    if op.name == "group_norm":
        if not isinstance(shape[1], int):
            return None
        outer, inner = (shape[0], op.groups), (shape[1] // op.groups, *shape[2:])
    else:
        outer, inner = shape[: len(shape) - op.rank], shape[len(shape) - op.rank :]
    with rows.builder:
        if not is_empty(shape):
            length = extent(count(inner))
            with rows_of(extent(count(outer)), length, rows.dtype) as (row, walk):
                leading = [held(i) for i in unflatten(row, outer)]
                number = T.Cast(rows.dtype, length) if not isinstance(length, int) else tirx.const(length, rows.dtype)
                zero, one = (tirx.const(value, rows.dtype) for value in (0.0, 1.0))

                def place(position: Expr) -> list[Expr]:
                    within = unflatten(position, inner)
                    if op.name == "group_norm":
                        return [leading[0], leading[1] * inner[0] + within[0], *within[1:]]
                    return [*leading, *within]

                def x(position: Expr) -> Expr:
                    return rows.element(place(position))

                def means(terms: Callable[[Expr], Sequence[Expr]], several: int) -> list[Expr]:
                    totals = walk.reduce_all(length, rows.dtype, [zero] * several, terms, SUM)
                    return [held(total / number) for total in totals]

                def powers(position: Expr) -> list[Expr]:
                    distance = held(x(position) - rough if rough is not None else x(position))
                    return [distance, distance * distance]

                mean = rough = None
                if op.name == "rms_norm":
                    (variance,) = means(lambda position: powers(position)[1:], 1)
                else:
                    (rough,) = means(lambda position: [x(position)], 1)
                    rest, spread = means(powers, 2)
                    mean = held(rough + rest)
                    variance = T.max(zero, spread - rest * rest)
                scale = held(one / T.sqrt(variance + tirx.const(op.eps, rows.dtype)))
                weight, bias = rows.parameter(1), rows.parameter(2)
                with walk.over(length) as position:
                    index = place(position)
                    own = index[1] if op.name == "group_norm" else position
                    value = x(position)
                    result = held(value - mean if mean is not None else value) * scale
                    if weight is not None:
                        result = result * weight[own]
                    if bias is not None:
                        result = result + bias[own]
                    rows.store(index, result)
    return lowered(group, rows.builder, flops=rows.size * COST)
