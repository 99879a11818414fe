"""Layer, root-mean-square and group norm: two reductions over a row in L1, then one pass that writes it.

A row is what shares statistics: the last `rank` dims, or the channels of one group with all their positions.
The rows are one parallel loop. Per row: the sum, then the distances from the mean and their squares (two passes: the
one-pass formula cancels) in four vector accumulators each, 64 partial sums in all for float32. The distances' own
mean is what rounding left of the mean, and corrects it and the variance (Chan, Golub, LeVeque, "Algorithms for
computing the sample variance", 1983): 1 / sqrt(eps) would make a number of it where a row is constant. Then (x -
mean) / sqrt(var + eps), weight, bias and epilogue in one vector loop. Weight and bias run along the row for
layer and RMS norm and are one scalar per channel for group norm. Limited by L1 loads: three reads and a write
of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.target import Target

from ..fuse import lowered
from ..sizes import Extent, count, extent, is_empty, is_fixed, is_large, is_several
from ..tir import loop, unflatten
from ..vectors import Registers, Vectors, held, sweep, unrolled
from .rows import RowGroup

Expr = Any

EPILOGUE = True
PROLOGUE = True
COST = 8


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if group.anchor_node is None or group.anchor_node.op.name not in ("layer_norm", "rms_norm", "group_norm"):
        return None
    rows = RowGroup(group)
    if not rows.fits:
        return None
    op: Any = group.anchor_node.op
    if op.name == "group_norm":
        if not isinstance(rows.shape[1], int):
            return None
        channels = rows.shape[1] // op.groups
        outer, along = rows.shape[0] * op.groups, channels * count(rows.shape[2:])
    else:
        channels = 0
        first = len(rows.shape) - op.rank
        outer, along = count(rows.shape[:first]), count(rows.shape[first:])
    builder = rows.builder(name)
    with builder:
        if not is_empty(rows.shape):
            rows.begin(builder)
            with loop(extent(outer), parallel=is_several(outer) and is_large(rows.size * COST)) as row:
                _row(rows, op, row, extent(along), channels)
    return lowered(group, builder, flops=rows.size * COST, workspace=rows.workspace_bytes)


def _row(rows: RowGroup, op: Any, row: Expr, extent: Extent, channels: int) -> None:
    """Normalise row number `row` of `extent` elements; `channels` of them share a group, 0 if weights run
    along it.
    """
    v = Vectors(rows.dtype)
    base = row * extent
    source = rows.source
    weight, bias = rows.parameter(1), rows.parameter(2)
    rows.fill(extent, lambda x: unflatten(base + x, rows.shape), lambda x: base + x)

    def means(terms: Callable[[Expr], Sequence[Expr]], several: int) -> list[Expr]:
        unroll = unrolled(v, extent)
        every = [Registers(v, unroll + 1) for _ in range(several)]
        for sums in every:
            sums.fill(0.0)

        def accumulate(offset: Expr, register: int, valid: Extent | None) -> None:
            register = unroll if valid is not None else register
            for sums, value in zip(every, terms(v.load(source, base + offset, valid)), strict=True):
                sums[register] = sums[register] + (v.keep(value, valid) if valid is not None else value)

        sweep(v, extent, accumulate, unroll=unroll)
        totals = [v.fold(sums.combined(lambda a, b: a + b), lambda a, b: a + b) for sums in every]
        return [held(total / _const(rows, extent)) for total in totals]

    def powers(x: Expr) -> list[Expr]:
        distance = held(x - v.splat(rough)) if rough is not None else x
        return [distance, distance * distance]

    mean = rough = None
    if op.name == "rms_norm":
        (variance,) = means(lambda x: powers(x)[1:], 1)
    else:
        (rough,) = means(lambda x: [x], 1)
        rest, spread = means(powers, 2)
        mean, variance = held(rough + rest), T.max(_const(rows, 0.0), spread - rest * rest)
    scale = held(_const(rows, 1.0) / T.sqrt(variance + _const(rows, op.eps)))

    def write(start: Expr, length: Extent, element: Callable[[Expr, Expr], Expr]) -> None:
        def normalised(position: Expr) -> Expr:
            x = source[start + position]
            return element((x - mean if mean is not None else x) * scale, position)

        rows.finish(length, lambda x: unflatten(start + x, rows.shape), lambda x: start + x, normalised)

    if weight is None:
        write(base, extent, lambda x, _: x)
    elif not channels or (is_fixed(extent) and channels == extent):
        first = tirx.floormod(row, op.groups) * channels if channels else 0
        if bias is None:
            write(base, extent, lambda x, position: x * weight[position])
        else:
            write(base, extent, lambda x, position: x * weight[first + position] + bias[first + position])
    else:
        assert bias is not None
        with T.serial(0, channels) as channel:
            number = tirx.floormod(row, op.groups) * channels + channel
            factor, shift = held(weight[number]), held(bias[number])
            length = extent // channels
            write(base + channel * length, length, lambda x, _: x * factor + shift)


def _const(rows: RowGroup, value: float | Extent) -> Expr:
    return tirx.const(float(value), rows.dtype) if isinstance(value, int | float) else T.Cast(rows.dtype, value)
