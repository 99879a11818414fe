"""Running sums, products, extremes and log-sum-exps: rows in parallel, and along a row by warps.

A thread has some neighbouring elements of a tile and scans them in registers; the lanes of a warp scan their totals by
exchanges of 1, 2, 4, 8 and 16 lanes, the warps of a block theirs in shared memory, and the tile's total is carried to
the next one. The order is fixed: the same bits at every call. A row that is not long has a warp to itself and no
barrier; short rows, and columns where there are many, have one thread. Limited by memory, log-sum-exps by their
functions.

Sums and products of float32 are made in float64, as PyTorch's are on CPUs: parts of a row that overflow would spoil
what comes behind them though the whole does not. Products of float64, which have nothing wider, are made element after
element.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.wide import wide_dtype
from transpiler.target import Target

from ..fuse import lowered
from ..gpu.lines import MANY_ROWS, Walk, rows_of
from ..gpu.scan import Steps, lines_of, of, put
from ..gpu.threads import each_thread
from ..gpu.workgroup import barrier, exchanged, shared
from ..sizes import ceil_div, count, is_empty
from ..tir import KernelBuilder, when
from ..vectors import held

Expr = Any
# Elements of a thread in a tile: of a warp's row, and of a block's.
ITEMS, LONG_ITEMS = 4, 8


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    lines = lines_of(group)
    if lines is None:
        return None
    node = group.nodes[0]
    op, x = node.op.name, node.inputs[0].type
    alone = lines.short or lines.columns(MANY_ROWS * target.gpu.subgroup) or (op, x.dtype) == ("cumprod", "float64")
    work = wide_dtype(x.dtype)
    if op in ("cumsum", "cumprod") and work == "float32":
        work = "float64"
    builder = KernelBuilder(name, [x], [value.type for value in node.outputs])
    with builder:
        if not is_empty(x.shape):
            steps = _WarpSteps(builder, op, lines, work)
            if alone:
                with each_thread(lines.rows) as row:
                    steps.chain(held(row))
            else:
                with rows_of(lines.rows, lines.along) as (row, walk):
                    steps.scan(row, walk, target.gpu.subgroup)
    return lowered(group, builder, flops=count(x.shape))


class _WarpSteps(Steps):
    def scan(self, row: Expr, walk: Walk, warp: int) -> None:
        """A row by the threads of `walk`: a warp, or a block of them."""
        base, items = self.base(row), ITEMS if walk.threads == warp else LONG_ITEMS
        lane = held(tirx.floormod(walk.thread, warp))
        carry, state, prefix, own = self.states(), self.states(), self.states(), self.states(items)
        many = walk.threads // warp
        sums = [shared(many, dtype) for dtype in self.dtypes] if many > 1 else []
        put(carry, self.neutral())
        with T.serial(0, ceil_div(self.along, walk.threads * items)) as tile:
            first = held((tile * walk.threads + walk.thread) * items)
            self.load_own(base, first, own, items)
            put(state, of(own, items - 1))
            distance = 1
            while distance < warp:
                others = [held(exchanged(T.tvm_warp_shuffle_up, part, distance, warp)) for part in state]
                joined = self.combined(others, of(state))
                with when(lane >= distance):
                    put(state, joined)
                distance *= 2
            before = [held(exchanged(T.tvm_warp_shuffle_up, part, 1, warp)) for part in state]
            if many > 1:
                number = held(tirx.floordiv(walk.thread, warp))
                with when(lane == warp - 1):
                    put(sums, of(state), number)
                barrier()
                with T.serial(0, many) as other:
                    with when(other == number):
                        put(prefix, of(carry))
                    put(carry, self.combined(of(carry), [held(part[other]) for part in sums]))
                barrier()
            else:
                put(prefix, of(carry))
                total = [held(exchanged(T.tvm_warp_shuffle, part, warp - 1, warp)) for part in state]
                put(carry, self.combined(of(carry), total))
            with when(lane > 0):
                put(prefix, self.combined(of(prefix), before))
            self.store_own(base, first, prefix, own, items)
