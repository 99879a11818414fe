"""Softmax and log-softmax along any axis, with cheap ops before them and element-wise ones behind: three passes over a
row. The last one computes the exponentials anew, so that nothing is stored in between."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.softmax import LogSoftmax, Softmax
from transpiler.target import Target

from ..fuse import lowered
from ..gpu.lines import rows_of
from ..gpu.workgroup import SUM, Fold
from ..sizes import count, extent, is_empty, is_fixed
from ..tir import unflatten
from ..vectors import held
from .rows import RowGroup

Expr = Any
EXP_COST = 12
# Which of them is NaN does not matter here.
LARGEST = Fold(lambda a, b: T.max(a, b), "max")


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, Softmax | LogSoftmax):
        return None
    rows = RowGroup(group, name)
    if not rows.fits:
        return None
    axis, shape = node.op.axis, rows.shape
    outer, along, inner = (extent(count(dims)) for dims in (shape[:axis], shape[axis : axis + 1], shape[axis + 1 :]))
    log = isinstance(node.op, LogSoftmax)
    with rows.builder:
        if not is_empty(shape):
            with rows_of(outer * inner, along, rows.dtype, strided=not is_fixed(inner) or inner > 1) as (row, walk):
                leading = [held(i) for i in unflatten(row, (*shape[:axis], *shape[axis + 1 :]))]

                def x(position: Expr) -> Expr:
                    return rows.element([*leading[:axis], position, *leading[axis:]])

                s = rows.s
                lowest = s.const(-math.inf, rows.dtype)
                # NaN comes out of the exponentials.
                largest = walk.reduce(along, rows.dtype, lowest, x, LARGEST)

                def exponential(position: Expr) -> Expr:
                    return s.call("exp", s.bind(x(position) - largest))

                total = walk.reduce(along, rows.dtype, s.const(0.0, rows.dtype), exponential, SUM)
                shift = held(s.call("log", total) if log else tirx.const(1.0, rows.dtype) / total)
                with walk.over(along) as position:
                    result = x(position) - largest - shift if log else exponential(position) * shift
                    rows.store([*leading[:axis], position, *leading[axis:]], result)
    return lowered(group, rows.builder, flops=rows.size * EXP_COST)
