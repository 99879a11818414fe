"""Sort and top-k: a stable merge sort per row, in workspace that stays in L1 or L2.

The positions of a row are sorted, keys are read through them: runs of 1, 2, 4, ... positions are merged back
and forth between two buffers. A merge step is one comparison and two selects without a branch on the data; n
log2 n of them per row, each waiting for the cursors of the last one, limit it. Rows are dealt to at most
TASKS parallel tasks, each with a workspace of its own. NaN counts as the largest; equal keys keep their
order, because the left run wins a tie.

Top-k with k <= INSERTION inserts each element into a sorted list of k instead: one comparison per element,
and a walk through the list only for the few that enter it.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.target import Target

from ..fuse import lowered
from ..scalar import Tir
from ..sizes import Extent, ceil_div, count, extent, is_empty, is_fixed, is_large, is_several, machine, smaller
from ..tir import Buffer, KernelBuilder, local, loop
from ..vectors import held

Expr = Any

EPILOGUE = False
PROLOGUE = False
TASKS = 16
INSERTION = 16
SYMBOLIC_LEVELS = 8  # of merging, for the estimate of the work


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if len(group.nodes) != 1 or group.nodes[0].op.name not in ("sort", "topk"):
        return None
    node = group.nodes[0]
    op: Any = node.op
    x = node.inputs[0].type
    length, inner = x.shape[op.axis], extent(count(x.shape[op.axis + 1 :]))
    rows = count(x.shape[: op.axis]) * count(x.shape[op.axis + 1 :])
    along = extent(length)
    descending: bool = op.descending if op.name == "sort" else op.largest
    most: Dim = length if op.name == "sort" else op.k
    kept = extent(most)
    insertion = is_fixed(most) and kept <= INSERTION and (not is_fixed(length) or kept * 4 <= along)
    levels = max(1, math.ceil(math.log2(max(along, 2)))) if is_fixed(length) else SYMBOLIC_LEVELS
    work = rows * length * (levels if not insertion else 2)
    # Where threads cost nothing, each has one row; what has warps sorts otherwise (see cuda/sort.py).
    alone = machine().is_gpu and not machine().warp
    some = (math.gcd(rows, TASKS) if isinstance(rows, int) else TASKS) if is_large(work) else 1
    dealt: Dim = rows if alone else some
    width = 0 if insertion else length * dealt
    # Keys are read from x through their positions: the workspace holds two buffers of int32 positions.
    builder = KernelBuilder(
        name, [x], [value.type for value in node.outputs], workspace=2 * width, workspace_dtype="int32"
    )
    with builder:
        if not is_empty((rows, most)):
            values, positions = builder.outputs
            spaces = [builder.scratch(2 * width)] if width != 0 else []
            tasks, total = extent(dealt), extent(rows)
            per_task = 1 if alone else ceil_div(total, some)
            with (
                loop(tasks, parallel=is_several(tasks)) as task,
                T.serial(0, per_task if is_fixed(total) else smaller(per_task, total - task * per_task)) as item,
            ):
                row = task * per_task + item
                base = held(tirx.floordiv(row, inner) * (along * inner) + tirx.floormod(row, inner))
                target_base = held(tirx.floordiv(row, inner) * (kept * inner) + tirx.floormod(row, inner))
                key = _Keys(builder.inputs[0], base, inner, descending)
                if insertion:
                    order: Buffer = local(kept, "int32")
                    _insert(key, order, along, kept)
                    first: Expr = 0
                else:
                    order = spaces[0]
                    first = _merge_sort(key, order, task * (2 * along), along)
                with T.serial(0, kept) as rank:
                    chosen = held(order[first + rank])
                    values.store(target_base + rank * inner, key.at(chosen))
                    positions.store(target_base + rank * inner, T.Cast("int64", chosen))
    return lowered(group, builder, flops=work, workspace=2 * width * 4)


class _Keys:
    """The elements of one row and their order."""

    def __init__(self, buffer: Buffer, base: Expr, stride: Extent, descending: bool) -> None:
        self._buffer, self._base, self._stride, self._descending = buffer, base, stride, descending

    def at(self, position: Expr) -> Expr:
        return self._buffer[self._base + position * self._stride]

    def before(self, a: Expr, b: Expr) -> Expr:
        """Whether `a` must stand before `b`; false for equal keys and for two NaN."""
        if self._buffer.dtype == "bool":
            a, b = T.Cast("int8", a), T.Cast("int8", b)
        first, second = (b, a) if self._descending else (a, b)
        less = first < second
        s = Tir()
        if not self._buffer.dtype.startswith("float"):
            return less
        return tirx.Or(less, tirx.And(tirx.Not(s.is_nan(first)), s.is_nan(second)))


def _insert(key: _Keys, order: Buffer, extent: Extent, kept: int) -> None:
    """`order` = the positions of the first `kept` elements, best first."""
    place = local(1, "int32")
    with T.serial(0, extent) as position:
        # Elements that came earlier win ties, so an element moves up only past strictly worse ones.
        enters = tirx.Or(position < kept, key.before(key.at(position), key.at(order[kept - 1])))
        with T.If(T.if_then_else(position < kept, tirx.const(True, "bool"), enters)), T.Then():
            place.store(0, tirx.Select(position < kept, position, tirx.const(kept - 1, "int32")))
            moving = T.if_then_else(
                place[0] > 0,
                key.before(key.at(position), key.at(order[place[0] - 1])),
                tirx.const(False, "bool"),
            )
            with T.While(moving):
                order.store(place[0], order[place[0] - 1])
                place.store(0, place[0] - 1)
            order.store(place[0], position)


def _merge_sort(key: _Keys, space: Buffer, start: Expr, extent: Extent) -> Expr:
    """Sort positions 0..extent in `space` from `start` on (2 * extent elements); returns where the result
    begins.
    """
    with T.serial(0, extent) as position:
        space.store(start + position, position)
    cursor = [local(1, "int32") for _ in range(2)]
    if not is_fixed(extent):
        state = [local(1, "int32") for _ in range(3)]
        for place, value in zip(state, (1, start, start + extent), strict=True):
            place.store(0, value)
        with T.While(state[0][0] < extent):
            width, source, target = (held(place[0]) for place in state)
            _merge_runs(key, space, cursor, width, source, target, extent)
            for place, value in zip(state, (width * 2, target, source), strict=True):
                place.store(0, value)
        return held(state[1][0])
    width, source, target = 1, start, start + extent
    while width < extent:
        _merge_runs(key, space, cursor, width, source, target, extent)
        width, source, target = 2 * width, target, source
    return source


def _merge_runs(
    key: _Keys, space: Buffer, cursor: list[Buffer], width: Extent, source: Expr, target: Expr, extent: Extent
) -> None:
    """Merge neighbouring runs of `width` positions from `source` to `target`."""
    runs = ceil_div(extent, 2 * width) if is_fixed(extent) else tirx.floordiv(extent + 2 * width - 1, 2 * width)
    with T.serial(0, runs) as run:
        low = held(run * (2 * width))
        middle, high = held(T.min(low + width, extent)), held(T.min(low + 2 * width, extent))
        cursor[0].store(0, low)
        cursor[1].store(0, middle)
        with T.serial(0, high - low) as step:
            # A cursor past its run still reads a position inside the row; the choice ignores it.
            left = held(space[source + T.min(cursor[0][0], extent - 1)])
            right = held(space[source + T.min(cursor[1][0], extent - 1)])
            right_first = held(
                T.Cast(
                    "int32",
                    tirx.And(
                        cursor[1][0] < high,
                        tirx.Or(cursor[0][0] >= middle, key.before(held(key.at(right)), held(key.at(left)))),
                    ),
                )
            )
            space.store(target + low + step, tirx.Select(right_first != 0, right, left))
            cursor[0].store(0, cursor[0][0] + 1 - right_first)
            cursor[1].store(0, cursor[1][0] + right_first)
