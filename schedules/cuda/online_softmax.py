"""The softmax of attention over keys that come block by block (Milakov and Gimelshein, arXiv:1805.02867; Dao,
arXiv:2307.08691), on scores that lie in registers as products on tensor cores leave them.

Of 16 rows a warp has, a lane has two, `row` and 8 behind it: scores[j * 4 + half * 2 + e] is of row half and of key
first + j * 8 + lane % 4 * 2 + e; the weighted values are summed up in the same places, by columns. Four lanes have a
row, and meet by shuffles. Of each row the largest score so far and the sum of its weights are kept in float32; where
the largest grows, what was summed before is scaled down.

A weight is 2 ** (score * factor - largest * factor), `factor` being scale * log2(e): a multiply-add and a power. Masks
that are added to the scores may hold the lowest number, whose product would overflow: with those the difference comes
first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from transpiler.dims import Dim
from transpiler.group import Group
from transpiler.ir import fixed_size
from transpiler.strides import View

from ..gpu.attention import broadcast_offset, matrix_offset, reciprocal
from ..gpu.workgroup import private
from ..halves import operand
from ..scalar import Tir
from ..sizes import ceil_div, count, extent, is_fixed
from ..tir import KernelBuilder, when
from ..vectors import held
from . import ptx
from .epilogue import RunEpilogue

Expr = Any
LOG2_E = math.log2(math.e)


class OnlineSoftmax:
    """L queries over S keys, `step` of them at a time, E elements of a query and Ev of a value."""

    # Set where a block begins: the index of its matrix, its first row, the warp's first row in it, the lane's first.
    index: Sequence[Expr]
    first: Expr
    own: Expr
    row: Expr
    lane: Expr

    def __init__(self, group: Group, views: Sequence[View], step: int) -> None:
        node = group.anchor_node
        assert node is not None
        self.group, self.inputs, self.views, self.step = group, node.inputs, views, step
        op: Any = node.op
        self.op = op
        self.shapes = [value.type.shape for value in node.inputs]
        self.batch = node.output.type.shape[:-2]
        self.rank = len(node.output.type.shape)
        self.E, self.Ev = fixed_size(self.shapes[0][-1]), fixed_size(self.shapes[2][-1])
        length, keys = self.shapes[0][-2], self.shapes[2][-2]
        self.L, self.S = extent(length), extent(keys)
        self.scale = 1 / math.sqrt(self.E) if op.scale is None else float(op.scale)
        self.flops: Dim = 2 * count(self.batch) * length * keys * (self.E + self.Ev + 6)
        self.wide = ceil_div(self.Ev, 16)
        added = len(node.inputs) > 3 and node.inputs[3].dtype != "bool"
        self.differs_first = added or not self.scale > 0
        self.s = Tir()
        self.lowest, self.zero = self.s.const(-math.inf, "float32"), tirx.const(0.0, "float32")

    def bind(self, builder: KernelBuilder) -> None:
        """The kernel's buffers."""
        self.sources = [builder.inputs[self.group.input_index(view.source)] for view in self.views[:3]]
        self.mask = operand(self.group, builder, self.inputs[3]) if len(self.inputs) > 3 else None
        self.epilogue = RunEpilogue(self.group, builder)

    def allocate(self) -> None:
        """Registers."""
        self.scores = private(self.step // 2)
        self.sums = private(self.wide * 8)
        self.largest, self.total, self.factors = private(2), private(2), private(2)

    def begin(self) -> None:
        """Nothing is summed up."""
        with ptx.unrolled(self.wide * 8) as i:
            self.sums.store(i, self.zero)
        for half in range(2):
            self.largest.store(half, self.lowest)
            self.total.store(half, self.zero)

    # --- masks
    def masks(self, first: Expr) -> None:
        """Scores of the keys from `first` on that do not count become -inf; others are scaled, if that comes first."""
        if self.differs_first:
            scale = tirx.const(self.scale, "float32")
            with ptx.unrolled(self.step // 2) as i:
                self.scores.store(i, self.scores[i] * scale)
        conditions = []
        if not (is_fixed(self.S) and self.S % self.step == 0):
            conditions.append(first + self.step > self.S)
        if self.op.causal:
            conditions.append(first + self.step > self.first + self.own)
        if self.mask is None and not conditions:
            return
        condition = conditions[0] if len(conditions) == 1 else tirx.Or(*conditions) if conditions else None
        with when(condition if self.mask is None else None), ptx.unrolled(self.step // 8) as j, ptx.unrolled(4) as e:
            row = held(self.row + tirx.floordiv(e, 2) * 8)
            column = held(first + j * 8 + tirx.floormod(self.lane, 4) * 2 + tirx.floormod(e, 2))
            self.scores.store(j * 4 + e, self._masked(self.scores[j * 4 + e], row, column))

    def _masked(self, score: Expr, row: Expr, column: Expr) -> Expr:
        s = self.s
        if self.mask is not None:
            inner = held(tirx.min(row, self.L - 1)), held(tirx.min(column, self.S - 1))
            place = held(broadcast_offset([*self.index, *inner], self.shapes[3]))
            if self.mask.dtype == "bool":
                score = s.select(self.mask[place], score, self.lowest)
            else:
                score = score + s.cast(self.mask[place], "float32")
        inside = column < self.S
        return s.select(tirx.And(inside, column <= row) if self.op.causal else inside, score, self.lowest)

    # --- weights
    def weigh(self, half: int) -> None:
        """Scores of one of the lane's two rows become weights; `factors` is what the sums so far have to be scaled
        by. A NaN is left out of the largest: it comes back with the sum (but see `Attention.may_mask_nan`)."""
        s = self.s
        old, largest, total = held(self.largest[half]), private(1), private(1)
        largest.store(0, self.lowest)
        self._over_row(half, lambda at: largest.store(0, ptx.larger(largest[0], self.scores[at])))
        for distance in (1, 2):
            largest.store(0, ptx.larger(largest[0], ptx.shuffle_xor(largest[0], distance)))
        new = largest[0] if self.differs_first else largest[0] * self._factor
        self.largest.store(half, ptx.larger(old, held(new)))
        shift = held(s.select(s.eq(self.largest[half], self.lowest), self.zero, self.largest[half]))
        self.factors.store(half, self.power(old - shift))
        total.store(0, self.total[half] * self.factors[half])

        def weigh(at: Expr) -> None:
            self.scores.store(at, self._weight(self.scores[at], shift))
            total.store(0, total[0] + self.scores[at])

        self._over_row(half, weigh)
        # Of this lane's columns only: the lanes of a row meet at the end.
        self.total.store(half, total[0])

    @property
    def _factor(self) -> Expr:
        return tirx.const(self.scale * LOG2_E, "float32")

    def _weight(self, score: Expr, shift: Expr) -> Expr:
        if self.differs_first:
            return self.power(score - shift)
        return ptx.power_of_two(ptx.multiply_add(score, self._factor, self.zero - shift))

    def power(self, difference: Expr) -> Expr:
        """The weight, relative to another, of what is so much larger as a score in `largest`."""
        return ptx.power_of_two(difference * tirx.const(LOG2_E, "float32") if self.differs_first else difference)

    def rescale(self, half: int) -> None:
        """What was summed up of a row before the last weights."""
        with ptx.unrolled(self.wide * 2) as j, ptx.unrolled(2) as e:
            at = j * 4 + half * 2 + e
            self.sums.store(at, self.sums[at] * self.factors[half])

    def _over_row(self, half: int, body: Callable[[Expr], None]) -> None:
        with ptx.unrolled(self.step // 8) as j, ptx.unrolled(2) as e:
            body(j * 4 + half * 2 + e)

    # --- results
    def row_total(self, half: int) -> Expr:
        """The sum of all weights of a row."""
        total = private(1)
        total.store(0, self.total[half])
        for distance in (1, 2):
            total.store(0, total[0] + ptx.shuffle_xor(total[0], distance))
        return total[0]

    def store_row(self, half: int) -> None:
        """The results of a row through the epilogue."""
        row, scale = held(self.row + half * 8), self.reciprocal(self.largest[half], self.row_total(half))
        with when(row < self.L), ptx.unrolled(self.Ev // 8) as j:
            column = held(j * 8 + tirx.floormod(self.lane, 4) * 2)
            self._store_pair(row, column, j * 4 + half * 2, scale)

    def _store_pair(self, row: Expr, column: Expr, at: Expr, scale: Expr) -> None:
        s = self.s

        def value(e: Expr) -> Expr:
            return s.select(s.eq(scale, self.zero), self.zero, self.sums[at + e] * scale)

        self.epilogue.store_run(lambda e: [*self.index, row, column + e], value, 2)

    def reciprocal(self, largest: Expr, total: Expr) -> Expr:
        """What the sums of a row are multiplied by; 0 for one that attends to nothing."""
        return reciprocal(self.op, self.rank, self.mask is not None, self.S, largest, total, "float32")

    def matrix(self, which: int) -> Expr:
        """Where the block's matrix of q, k or v begins."""
        gqa = which > 0 and self.op.enable_gqa
        return held(matrix_offset(self.index, self.batch, self.inputs[which], self.views[which], gqa=gqa))
