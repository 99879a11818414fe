"""Softmax and log-softmax: three passes over a row that stays in L1.

Along the last axis, the rows are one parallel loop. Per row: the maximum in four vector accumulators; exp(x -
max) written to the row while four accumulators sum it; the scaling by 1/sum together with the epilogue. Along
another axis, the vector lanes are neighbours in the dims behind it, so that every reduction is lane by lane
and no lane is combined with another; one or four vectors of columns walk down the axis at a time. log_softmax
does not keep the exponentials: its last pass subtracts max + log(sum).

The exponential limits it (about 10 cycles per vector of 16); rows beyond L1 add a read and a write of L2 per
pass. A row of -inf and a row with +inf or NaN give NaN, because -inf - -inf and inf - inf do; that is
PyTorch's answer too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.softmax import LogSoftmax, Softmax
from transpiler.target import Target

from ..fuse import lowered
from ..sizes import Extent, count, extent, is_empty, is_fixed, is_large, is_several
from ..tir import loop, unflatten
from ..vectors import Registers, Vectors, held, sweep, unrolled
from .rows import RowGroup

Expr = Any

EPILOGUE = True
PROLOGUE = True
EXP_COST = 12


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, Softmax | LogSoftmax):
        return None
    rows = RowGroup(group)
    if not rows.fits:
        return None
    axis = node.op.axis
    outer, inner = extent(count(rows.shape[:axis])), extent(count(rows.shape[axis + 1 :]))
    along = extent(rows.shape[axis])
    builder = rows.builder(name)
    with builder:
        if not is_empty(rows.shape):
            rows.begin(builder)
            if is_fixed(inner) and inner == 1:
                _last_axis(rows, outer, along)
            else:
                _other_axis(rows, outer, along, inner)
    return lowered(group, builder, flops=rows.size * EXP_COST, workspace=rows.workspace_bytes)


def _is_parallel(rows: RowGroup) -> bool:
    return is_large(rows.size * EXP_COST)


def _last_axis(rows: RowGroup, outer: Extent, extent: Extent) -> None:
    v = Vectors(rows.dtype)
    log = rows.anchor.op.name == "log_softmax"
    source, row = rows.source, rows.rows
    with loop(outer, parallel=is_several(outer) and _is_parallel(rows)) as position:
        base = position * extent

        def index(column: Expr) -> list[Expr]:
            return unflatten(base + column, rows.shape)

        rows.fill(extent, index, lambda column: base + column)
        unroll = unrolled(v, extent)
        largest = Registers(v, unroll + 1)
        largest.fill(-math.inf)

        def find_largest(offset: Expr, register: int, valid: Extent | None) -> None:
            register = unroll if valid is not None else register
            largest[register] = T.max(largest[register], v.load(source, base + offset, valid, -math.inf))

        sweep(v, extent, find_largest, unroll=unroll)
        maximum = held(v.fold(largest.combined(T.max), T.max))
        sums = Registers(v, unroll + 1)
        sums.fill(0.0)

        def exponentiate(offset: Expr, register: int, valid: Extent | None) -> None:
            register = unroll if valid is not None else register
            x = v.load(source, base + offset, valid, -math.inf)
            exponential = held(v.exp_nonpositive(x - v.splat(maximum)))
            if not log:
                v.store(row, base + offset, exponential, valid)
            if valid is not None:  # a lane without an element adds exp(-inf - max), which is NaN if max is infinite
                exponential = v.keep(exponential, valid)
            sums[register] = sums[register] + exponential

        sweep(v, extent, exponentiate, unroll=unroll)
        total = held(v.fold(sums.combined(_add), _add))
        if log:
            shift = held(v.log(total))
            rows.finish(
                extent,
                index,
                lambda column: base + column,
                lambda column: source[base + column] - maximum - shift,
            )
        else:
            scale = held(v.one / total)
            rows.finish(extent, index, lambda column: base + column, lambda column: row[base + column] * scale)


def _other_axis(rows: RowGroup, outer: Extent, extent: Extent, inner: Extent) -> None:
    """Columns of `inner` side by side: `width` of them per step of the parallel loop, the rest after."""
    v = Vectors(rows.dtype)
    if not is_fixed(inner):
        with loop(outer, parallel=is_several(outer) and _is_parallel(rows)) as position:
            with loop(inner // v.lanes, parallel=not is_several(outer) and _is_parallel(rows)) as block:
                _columns(rows, v, (position * extent) * inner + block * v.lanes, extent, inner, v.lanes)
            if v.lanes > 1:
                rest = inner % v.lanes
                with T.If(rest > 0), T.Then():
                    _columns(rows, v, (position * extent) * inner + (inner - rest), extent, inner, rest)
        return
    width = v.lanes * (4 if inner >= 4 * v.lanes else 1)
    with loop(outer, parallel=is_several(outer) and _is_parallel(rows)) as position:
        if inner >= width:
            with loop(inner // width, parallel=not is_several(outer) and _is_parallel(rows)) as block:
                _columns(rows, v, (position * extent) * inner + block * width, extent, inner, width)
        rest = inner % width
        for start in range(inner - rest, inner, v.lanes):
            columns = min(v.lanes, inner - start)
            _columns(rows, v, (position * extent) * inner + start, extent, inner, columns)


def _columns(rows: RowGroup, v: Vectors, base: Expr, extent: Extent, inner: Extent, width: Extent) -> None:
    """Softmax down `width` neighbouring columns that start at flat offset `base`."""
    log = rows.anchor.op.name == "log_softmax"
    source, row = rows.source, rows.rows
    vectors = v.blocks(width) if is_fixed(width) else 1
    valid = [min(v.lanes, width - number * v.lanes) if is_fixed(width) else width for number in range(vectors)]

    def each(step: Expr, body: Callable[[int, Expr], None]) -> None:
        for number in range(vectors):
            body(number, base + step * inner + number * v.lanes)

    if rows.has_prologue:
        with T.serial(0, extent) as step:
            start = base + step * inner
            rows.fill(width, lambda c: unflatten(start + c, rows.shape), lambda c: start + c)
    largest, sums = Registers(v, vectors), Registers(v, vectors)
    largest.fill(-math.inf)
    sums.fill(0.0)

    def find_largest(number: int, offset: Expr) -> None:
        largest[number] = T.max(largest[number], v.load(source, offset, valid[number]))

    def exponentiate(number: int, offset: Expr) -> None:
        exponential = held(v.exp_nonpositive(v.load(source, offset, valid[number]) - largest[number]))
        if not log:
            v.store(row, offset, exponential, valid[number])
        sums[number] = sums[number] + exponential

    with T.serial(0, extent) as step:
        each(step, find_largest)
    with T.serial(0, extent) as step:
        each(step, exponentiate)
    # What the last pass takes per column, where its scalar expressions can read it.
    for number in range(vectors):
        sums[number] = v.s.const(1.0, v.dtype) / sums[number] if not log else v.log(sums[number])
    with T.serial(0, extent) as step:
        start = base + step * inner
        for number in range(vectors):
            first = start + number * v.lanes

            def element(column: Expr, number: int = number, first: Expr = first) -> Expr:
                if log:
                    return source[first + column] - largest.scalar(number, column) - sums.scalar(number, column)
                return row[first + column] * sums.scalar(number, column)

            def place(column: Expr, first: Expr = first) -> Expr:
                return first + column

            def position(column: Expr, first: Expr = first) -> list[Expr]:
                return unflatten(first + column, rows.shape)

            rows.finish(valid[number], position, place, element)


def _add(a: Expr, b: Expr) -> Expr:
    return a + b
