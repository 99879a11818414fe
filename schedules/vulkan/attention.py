"""Fused scaled dot-product attention with an online softmax: no L x S buffer exists (Dao et al., arXiv:2205.14135).

A thread takes up to ROWS query rows and walks over the keys, KEYS at a time:

1. Scores: a tile of rows x keys in registers, summed over E, both operands read where they lie.
2. The running maximum of each row grows, and what was summed so far is scaled down accordingly.
3. The weights exp(score - maximum) are added up, and their products with V to the output rows, which lie in the
   thread's own memory.

Where there are few rows (a decoding step has one per head), the threads of a workgroup share a row: each takes every
`threads`-th block of keys, and their maxima, sums and outputs meet in shared memory.

Limited by loads: rows + keys of them for rows * keys multiply-adds. A row that may attend to nothing is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ir import fixed_size
from transpiler.ops.dtypes import numpy_dtype
from transpiler.target import Target

from ..fuse import lowered
from ..gpu.attention import broadcast_offset, matrix_offset, reciprocal
from ..gpu.threads import each_thread
from ..gpu.workgroup import barrier, combined, combined_bytes, private, shared, workgroups
from ..halves import operand, seen
from ..scalar import Tir
from ..sizes import ceil_div, count, extent, extents, is_empty, is_fixed
from ..strided import only_moves_result, result_steps, views_of
from ..tir import Buffer, KernelBuilder, unflatten, when
from ..vectors import held

Expr = Any
ROWS, KEYS = 8, 8
SPLITS = (16, 4)  # threads that share a row, as many as their parts of it have room for
FEW_ITEMS = 64  # below this many rows in all, threads share rows


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or node.op.name != "attention" or views_of(group, widens=True) is None:
        return None
    if not only_moves_result(group):
        return None
    if node.output.dtype not in ("float32", "float64"):
        return None
    if not is_fixed(node.inputs[0].shape[-1], node.inputs[2].shape[-1]):
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    attention = _Attention(group, target.gpu.shared_bytes)
    with builder:
        if not is_empty(node.output.shape):
            attention.emit(builder)
    return lowered(group, builder, flops=attention.flops)


class _Attention:
    """Sizes and buffers of one kernel: L queries, S keys, E and Ev elements; threads share up to `shared_bytes`."""

    def __init__(self, group: Group, shared_bytes: int) -> None:
        node = group.anchor_node
        assert node is not None
        op: Any = node.op
        self.op, self.group, self.inputs = op, group, node.inputs
        views = views_of(group, widens=True)
        assert views is not None
        self.views = views
        # Elements from a row to the next of q, k and v; from an index to the next of the result, by axis.
        self.pitches = [extent(view.steps[-2]) for view in views[:3]]
        self.out_steps = extents(result_steps(group))
        self.shapes = [value.type.shape for value in node.inputs]
        self.out_shape = node.output.type.shape
        self.dtype = node.output.dtype
        self.s = Tir()
        self.E, self.Ev = fixed_size(self.shapes[0][-1]), fixed_size(self.shapes[2][-1])
        length, keys = self.shapes[0][-2], self.shapes[2][-2]
        self.L, self.S = extent(length), extent(keys)
        self.batch = self.out_shape[:-2]
        self.scale = 1 / math.sqrt(max(self.E, 1)) if op.scale is None else float(op.scale)
        self.flops = 2 * count(self.batch) * length * keys * (self.E + self.Ev + 6)
        rows = count(self.out_shape[:-1])
        few = is_fixed(rows) and rows < FEW_ITEMS
        self.threads = next((n for n in SPLITS if few and self._shared_bytes(n) <= shared_bytes), 1)
        self.rows = 1 if self.threads > 1 else min(ROWS, self.L) if is_fixed(self.L) else ROWS
        self.lowest, self.zero = self.s.const(-math.inf, self.dtype), tirx.const(0.0, self.dtype)

    def _shared_bytes(self, threads: int) -> int:
        """What threads of a row share in `_meet`."""
        values = threads * self.Ev * numpy_dtype(self.dtype).itemsize
        return values + 2 * combined_bytes(threads, self.dtype)

    def emit(self, builder: KernelBuilder) -> None:
        self.q, self.k, self.value = (
            seen(builder.inputs[self.group.input_index(view.source)], self.dtype) for view in self.views[:3]
        )
        self.mask = operand(self.group, builder, self.inputs[3]) if len(self.inputs) > 3 else None
        self.output = seen(builder.outputs[0], self.dtype)
        blocks = ceil_div(self.L, self.rows)
        items = extent(count(self.batch)) * blocks
        if self.threads > 1:
            with workgroups(items, self.threads) as (item, thread):
                self._item(item, blocks, thread)
        else:
            with each_thread(items) as item:
                self._item(item, blocks, 0)

    def _item(self, item: Expr, blocks: Expr, thread: Expr) -> None:
        index = [held(i) for i in unflatten(tirx.floordiv(item, blocks), self.batch)] if self.batch else []
        first = held(tirx.floormod(item, blocks) * self.rows)
        self.index, self.first = index, first
        # Rows beyond the last one compute it again and are not stored.
        self.own = [held(T.min(first + row, self.L - 1)) for row in range(self.rows)]
        base = self._matrix(0)
        self.query = [held(base + row * self.pitches[0]) for row in self.own]
        self.key_base, self.value_base = self._matrix(1), self._matrix(2)
        self.largest, self.total = private(self.rows, self.dtype), private(self.rows, self.dtype)
        self.sums = private(self.rows * self.Ev, self.dtype) if self.Ev else None
        for row in range(self.rows):
            self.largest.store(row, self.lowest)
            self.total.store(row, self.zero)
        if self.sums is not None:
            with T.serial(0, self.rows * self.Ev) as at:
                self.sums.store(at, self.zero)
        stop = held(T.min(self.S, first + self.rows)) if self.op.causal else self.S
        tiles = ceil_div(stop, KEYS)
        if self.threads == 1:
            with T.serial(0, tiles) as tile:
                self._tile(held(tile * KEYS))
            self._store(item)
        else:
            with T.serial(0, (tiles - thread + (self.threads - 1)) // self.threads) as step:
                self._tile(held((step * self.threads + thread) * KEYS))
            self._meet(item, thread)

    def _matrix(self, which: int) -> Expr:
        gqa = which > 0 and self.op.enable_gqa
        return held(matrix_offset(self.index, self.batch, self.inputs[which], self.views[which], gqa=gqa))

    def _tile(self, start: Expr) -> None:
        """KEYS keys from `start` on."""
        whole = is_fixed(self.S) and self.S % KEYS == 0
        keys = [held(start + key if whole else T.min(start + key, self.S - 1)) for key in range(KEYS)]
        scores = private(self.rows * KEYS, self.dtype)
        for at in range(self.rows * KEYS):
            scores.store(at, self.zero)
        offsets = [held(self.key_base + key * self.pitches[1]) for key in keys]
        with T.serial(0, self.E) as element:
            k = [held(self.k[offset + element]) for offset in offsets]
            q = [held(self.q[offset + element]) for offset in self.query]
            for row in range(self.rows):
                for key in range(KEYS):
                    at = row * KEYS + key
                    scores.store(at, scores[at] + q[row] * k[key])
        weights, factors = private(self.rows * KEYS, self.dtype), private(self.rows, self.dtype)
        for at in range(self.rows * KEYS):
            weights.store(at, scores[at])
        with T.serial(0, self.rows) as row:
            factors.store(row, self._weigh(row, start, weights, whole))
        if self.sums is None:
            return
        offsets = [held(self.value_base + key * self.pitches[2]) for key in keys]
        with T.serial(0, self.Ev) as element:
            values = [held(self.value[offset + element]) for offset in offsets]
            if not whole:  # the weight 0 of a key that is none must not meet an infinity
                values = [held(self.s.select(start + key < self.S, x, self.zero)) for key, x in enumerate(values)]
            for row in range(self.rows):
                total = self.sums[row * self.Ev + element] * factors[row]
                for key in range(KEYS):
                    total = total + weights[row * KEYS + key] * values[key]
                self.sums.store(row * self.Ev + element, total)

    def _weigh(self, row: Expr, start: Expr, weights: Buffer, whole: bool) -> Expr:
        """Scores of one row become weights; gives what the row's sums before them are to be scaled by.

        A loop over the tile's copy in memory: as many exponentials as the tile has elements take seconds to compile.
        """
        s = self.s
        own = held(T.min(self.first + row, self.L - 1))
        old = held(self.largest[row])
        largest, total = private(1, self.dtype), private(1, self.dtype)
        largest.store(0, old)
        with T.serial(0, KEYS) as key:
            at = held(row * KEYS + key)
            column = held(start + key if whole else T.min(start + key, self.S - 1))
            score = self._masked(weights[at] * tirx.const(self.scale, self.dtype), own, column)
            score = held(score if whole else s.select(start + key < self.S, score, self.lowest))
            weights.store(at, score)
            # Leaves a NaN out: it comes back with the sum (but see `Attention.may_mask_nan`).
            largest.store(0, s.select(score > largest[0], score, largest[0]))
        shift = held(self._shift(largest[0]))
        factor = held(s.call("exp", held(old - shift)))
        total.store(0, self.total[row] * factor)
        with T.serial(0, KEYS) as key:
            at = held(row * KEYS + key)
            weight = held(s.call("exp", held(weights[at] - shift)))
            weights.store(at, weight)
            total.store(0, total[0] + weight)
        self.largest.store(row, largest[0])
        self.total.store(row, total[0])
        return factor

    def _shift(self, largest: Expr) -> Expr:
        """What is subtracted from scores: 0 where all were -inf so far."""
        return self.s.select(self.s.eq(largest, self.lowest), self.zero, largest)

    def _masked(self, score: Expr, row: Expr, column: Expr) -> Expr:
        s = self.s
        if self.mask is not None:
            mask = self.mask[broadcast_offset([*self.index, row, column], self.shapes[3])]
            score = s.select(mask, score, self.lowest) if self.mask.dtype == "bool" else score + mask
        return s.select(column <= row, score, self.lowest) if self.op.causal else score

    def _reciprocal(self, largest: Expr, total: Expr) -> Expr:
        return reciprocal(self.op, len(self.out_shape), self.mask is not None, self.S, largest, total, self.dtype)

    def _result(self, reciprocal: Expr, x: Expr) -> Expr:
        """0 where the reciprocal is, even of NaN."""
        return self.s.select(self.s.eq(reciprocal, self.zero), self.zero, x * reciprocal)

    def _store(self, item: Expr) -> None:
        if self.sums is None:
            return
        base = held(self._out_row())
        for row in range(self.rows):
            scale = self._reciprocal(self.largest[row], self.total[row])
            inside = None if is_fixed(self.L) and self.L % self.rows == 0 else self.first + row < self.L
            with when(inside), T.serial(0, self.Ev) as element:
                result = self._result(scale, self.sums[row * self.Ev + element])
                self.output.store(base + row * self.out_steps[-2] + element, result)

    def _out_row(self) -> Expr:
        index = [*self.index, self.first]
        return sum((position * step for position, step in zip(index, self.out_steps, strict=False)), 0)

    def _meet(self, item: Expr, thread: Expr) -> None:
        """The parts of a row that the threads of a workgroup have."""
        s = self.s
        assert self.sums is not None or not self.Ev

        def larger(a: Sequence[Expr], b: Sequence[Expr]) -> list[Expr]:
            return [s.select(b[0] > a[0], b[0], a[0])]

        def plus(a: Sequence[Expr], b: Sequence[Expr]) -> list[Expr]:
            return [a[0] + b[0]]

        (largest,) = combined(self.threads, thread, [self.largest[0]], [self.dtype], larger)
        factor = held(s.call("exp", held(self.largest[0] - self._shift(largest))))
        (total,) = combined(self.threads, thread, [self.total[0] * factor], [self.dtype], plus)
        if self.sums is None:
            return
        parts = shared(self.threads * self.Ev, self.dtype)
        with T.serial(0, self.Ev) as element:
            parts.store(thread * self.Ev + element, self.sums[element] * factor)
        barrier()
        scale = self._reciprocal(largest, total)
        base = held(self._out_row())
        with T.serial(0, ceil_div(self.Ev, self.threads)) as step:
            element = held(step * self.threads + thread)
            with when(None if self.Ev % self.threads == 0 else element < self.Ev):
                joined = private(1, self.dtype)
                joined.store(0, parts[element])
                with T.serial(1, self.threads) as part:
                    joined.store(0, joined[0] + parts[part * self.Ev + element])
                self.output.store(base + element, self._result(scale, joined[0]))
