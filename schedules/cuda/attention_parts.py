"""Attention of few queries over many keys: blocks take parts of the keys, a second launch puts them together.

Each part has the largest score of a row, the sum of its weights and of the weighted values, relative to that score.
They are combined in order, so that the bits are the same at every call (Dao et al., "Flash-Decoding", 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.ir import fixed_size

from ..gpu.threads import each_thread
from ..gpu.workgroup import private
from ..sizes import ceil_div, count
from ..tir import KernelBuilder, flat_offset, unflatten
from ..vectors import held
from . import ptx
from .online_softmax import OnlineSoftmax

Expr = Any
KEYS = 64  # that a block takes at a time
LEAST_STEPS = 4  # of so many keys, of a part: an estimate of what pays for the second launch
MOST_PARTS = 32
COMBINING = 128  # threads of a block of the second launch


def parts_of_keys(keys: int, blocks: int, processors: int) -> int:
    """How many times KEYS a part has, so that `blocks` times the parts fill the device; 0 if there are no parts."""
    steps = ceil_div(keys, KEYS)
    parts = min(processors // blocks, steps // LEAST_STEPS, MOST_PARTS)
    each: int = ceil_div(steps, parts) if parts > 1 else 0
    return each


class Partial:
    """What parts of `steps` times KEYS give, in float32 of the workspace: [part, batch, row], of sums an axis more."""

    def __init__(self, builder: KernelBuilder, attention: OnlineSoftmax, steps: int) -> None:
        self.attention, self.steps = attention, steps
        self.splits: int = ceil_div(ceil_div(attention.S, KEYS), steps)
        self.batch = tuple(fixed_size(size) for size in attention.batch)
        self.rows, self.elements = fixed_size(attention.L), attention.Ev
        self.lines: int = self.splits * count(self.batch) * self.rows
        space = builder.append_workspace(self.lines * (self.elements + 2))
        self.sums = space.part(0)
        self.largest = space.part(self.lines * self.elements)
        self.totals = space.part(self.lines * (self.elements + 1))

    def line(self, part: Expr, index: Sequence[Expr], row: Expr) -> Expr:
        """The place of a row's values among those of all parts."""
        return flat_offset([part, *index, row], (self.splits, *self.batch, self.rows))

    def combine(self) -> None:
        """The second launch: a thread for two elements of the result."""
        s, lowest, zero = self.attention.s, self.attention.lowest, self.attention.zero
        turns = (*self.batch, self.rows, self.elements // 2)
        with each_thread(count(turns), COMBINING) as position:
            *index, row, pair = (held(i) for i in unflatten(position, turns))
            column = held(pair * 2)
            largest, total, sums = private(1), private(1), private(2)
            largest.store(0, lowest)
            with T.serial(0, self.splits) as part:
                other = held(self.largest[self.line(part, index, row)])
                largest.store(0, ptx.larger(largest[0], other))
            shift = held(s.select(s.eq(largest[0], lowest), zero, largest[0]))
            for buffer, size in ((total, 1), (sums, 2)):
                for e in range(size):
                    buffer.store(e, zero)
            with T.serial(0, self.splits) as part:
                line = held(self.line(part, index, row))
                factor = held(self.attention.power(self.largest[line] - shift))
                total.store(0, total[0] + self.totals[line] * factor)
                for e in range(2):
                    sums.store(e, sums[e] + self.sums[line * self.elements + column + e] * factor)
            scale = held(self.attention.reciprocal(largest[0], total[0]))

            def value(e: Expr) -> Expr:
                return s.select(s.eq(scale, zero), zero, sums[e] * scale)

            self.attention.epilogue.store_run(lambda e: [*index, row, column + e], value, 2)
