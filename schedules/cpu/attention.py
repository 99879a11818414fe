"""Fused scaled dot-product attention: no L x S buffer exists, scores of a block of query rows stay in L1/L2.

Work items are (batch and head, block of 16 or 32 query rows; the last block of a head may be the smaller one), dealt
to at most TASKS parallel tasks; each task has a workspace of its own. Heads are read and written where they lie: slices
of [L, 3, heads, E], transposes to [heads, L, E] and the one back are strides. The vector lanes are query rows, so that
the softmax needs no horizontal step and S no tail:

1. The query block, scaled, is transposed to [E][rows].
2. Scores, transposed [S][rows]: a register tile of keys x query vectors accumulates over E; each element of K
   is a broadcast, so that K is read as it lies and needs no packing. Mask and causal bound are applied to the
   tile on its way to the score buffer, and a running maximum is kept. Tiles beyond the causal bound are
   skipped.
3. exp(score - max) in place, and the sums.
4. Output rows x value columns: a register tile accumulates over S, weights as broadcasts, V as it lies;
   scaled by 1/sum on the way out.

Where L or S is a symbol, the last tile of keys overlaps the one before it: scores that are computed twice come out the
same. Fewer keys than a tile has go one by one.

Scores take 4 * S * rows bytes (16 KB at S = 128: L1; 128 KB at S = 1024: L2). Multiply-adds limit it; a mask
that differs per row costs 16 strided loads per vector of scores. A row whose scores are all -inf is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import floordiv
from transpiler.group import Group, Lowered
from transpiler.ir import fixed_size
from transpiler.ops.attention import MASKING_KEYS
from transpiler.ops.shape import Transpose
from transpiler.target import Target

from ..fuse import lowered
from ..sizes import ceil_div, count, extent, extents, is_empty, is_fixed, is_large
from ..strided import result_steps, views_of
from ..tir import KernelBuilder, loop, unflatten
from ..vectors import Registers, Vectors, accumulators, held

Expr = Any

EPILOGUE = False
PROLOGUE = False
TASKS = 16
QUERY_VECTORS = 2


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or node.op.name != "attention" or len(group.epilogue) > 1:
        return None
    if not all(isinstance(item.op, Transpose) for item in group.epilogue) or views_of(group, widens=False) is None:
        return None
    if node.output.dtype not in ("float32", "float64"):
        return None
    if not is_fixed(node.inputs[0].shape[-1], node.inputs[2].shape[-1]):
        return None
    attention = _Attention(group, target)
    builder = KernelBuilder(
        name,
        [value.type for value in group.inputs],
        [group.outputs[0].type],
        workspace=attention.workspace,
        workspace_dtype=attention.dtype,
    )
    with builder:
        if attention.workspace != 0:
            attention.emit(builder)
    width = 8 if attention.dtype == "float64" else 4
    return lowered(group, builder, flops=attention.flops, workspace=attention.workspace * width)


class _Attention:
    """Sizes and buffers of one kernel: L queries, S keys, E and Ev elements."""

    def __init__(self, group: Group, target: Target) -> None:
        node = group.anchor_node
        assert node is not None
        op: Any = node.op
        self.op = op
        views = views_of(group, widens=False)
        assert views is not None
        self.positions = [group.input_index(view.source) for view in views]
        # Of q, k, v and the mask, and of the result: elements from an index to the next, by axis.
        self.steps = [extents(view.steps) for view in views]
        self.offsets = [extent(view.offset) for view in views]
        self.out_steps = extents(result_steps(group))
        self.shapes = [value.type.shape for value in node.inputs]
        self.out_shape = node.output.type.shape
        self.dtype = node.output.dtype
        self.v = v = Vectors(self.dtype)
        length, keys = self.shapes[0][-2], self.shapes[2][-2]
        self.E, self.Ev = fixed_size(self.shapes[0][-1]), fixed_size(self.shapes[2][-1])
        self.L, self.S = extent(length), extent(keys)
        self.batch = self.out_shape[:-2]
        self.scale = 1 / math.sqrt(max(self.E, 1)) if op.scale is None else float(op.scale)
        self._limit = accumulators(target, v)
        self.columns = min(2 if self._limit >= 16 else 1, max(1, v.blocks(self.Ev)))
        self._set_block(min(QUERY_VECTORS, max(1, v.blocks(self.L))) if is_fixed(self.L) else QUERY_VECTORS)
        self.blocks = ceil_div(self.L, self.rows)
        items = count(self.batch) * ceil_div(length, self.rows)
        self.items = extent(items)
        self.flops = 2 * count(self.batch) * length * keys * (self.E + self.Ev + 6)
        tasks = min(TASKS, items) if is_fixed(items) else TASKS
        self.tasks = tasks if is_large(self.flops // 4) else 1
        task_size = ceil_div((self.E + keys + 1) * self.rows, 16) * 16
        self.sizes = [self.E * self.rows, self.S * self.rows, self.rows]
        self.task_size = extent(task_size)
        self.workspace = 0 if is_empty(self.out_shape) else self.tasks * task_size

    def _set_block(self, vectors: int) -> None:
        """Blocks of so many vectors of query rows: what is emitted from now on."""
        self.vectors = vectors
        self.rows = vectors * self.v.lanes
        self.keys = max(1, self._limit // vectors)
        # Of the output tile, beside its value vectors: a power of two, which divides the block.
        self.out_rows = min(self.rows, 1 << (max(1, self._limit // self.columns).bit_length() - 1))

    def emit(self, builder: KernelBuilder) -> None:
        self.q, self.k, self.value, *masks = (builder.inputs[position] for position in self.positions)
        self.mask = masks[0] if masks else None
        self.output = builder.outputs[0]
        self.space = builder.scratch(self.workspace)
        per_task = ceil_div(self.items, self.tasks)
        with loop(self.tasks, parallel=self.tasks > 1) as task, T.serial(0, per_task) as turn:
            item = task * per_task + turn
            if is_fixed(self.items) and self.tasks * per_task == self.items:
                self._item(task, item)
            else:
                with T.If(item < self.items), T.Then():
                    self._item(task, item)

    def _base(self, index: Sequence[Expr], which: int, gqa: bool = False) -> Expr:
        """Flat offset of the matrix of input `which` for the batch index, which it may broadcast."""
        shape = self.shapes[which]
        batch = shape[:-2]
        own = list(index[len(index) - len(batch) :]) if batch else []
        if gqa and batch[-1] != self.batch[-1]:
            own[-1] = tirx.floordiv(own[-1], extent(floordiv(self.batch[-1], batch[-1])))
        places = zip(own, batch, self.steps[which][:-2], strict=True)
        offset: Expr = sum((position * step for position, size, step in places if size != 1), self.offsets[which])
        return offset

    def _item(self, task: Expr, item: Expr) -> None:
        last = self._last_vectors()
        if last == self.vectors:
            self._block(task, item)
            return
        with T.If(tirx.EQ(tirx.floormod(item, self.blocks), self.blocks - 1)):
            with T.Then():
                vectors, start = self.vectors, (self.blocks - 1) * self.rows
                self._set_block(last)
                self._block(task, item, start)
                self._set_block(vectors)
            with T.Else():
                self._block(task, item)

    def _last_vectors(self) -> int:
        """Query vectors of the last block of every head, which costs what it has."""
        if not is_fixed(self.L):
            return self.vectors
        vectors: int = self.v.blocks(self.L % self.rows)
        return vectors or self.vectors

    def _block(self, task: Expr, item: Expr, start: int | None = None) -> None:
        """A block of query rows, by default of the usual size."""
        index = unflatten(tirx.floordiv(item, self.blocks), self.batch) if self.batch else []
        if not is_fixed(self.items):  # TVM's simplifier overflows on quotients of quotients by symbols
            index = [held(position) for position in index]
        first = held(tirx.floormod(item, self.blocks) * self.rows) if start is None else tirx.const(start, "int32")
        queries = held(task * self.task_size)
        scores = held(queries + self.sizes[0])
        inverse = held(scores + self.sizes[1])
        self._pack_queries(held(self._base(index, 0)), first, queries)
        columns = self._scores(index, first, queries, scores, inverse)
        self._output(index, item, first, scores, inverse, columns)

    def _row(self, row: Expr) -> Expr:
        """A query row that exists: the last one in place of those beyond it."""
        return row if is_fixed(self.L) and self.L % self.rows == 0 else T.min(row, self.L - 1)

    def _pack_queries(self, base: Expr, start: Expr, queries: Expr) -> None:
        v = self.v

        def pack(first: int) -> None:
            v.transpose(
                lambda lane, column: (self.q, base + self._row(start + first + lane) * self.steps[0][-2] + column),
                lambda column: (self.space, queries + column * self.rows + first),
                rows=v.lanes,
                columns=self.E,
                finish=lambda vector: vector * v.const(self.scale),
            )

        for number in range(self.vectors):
            pack(number * v.lanes)

    def _scores(self, index: list[Expr], start: Expr, queries: Expr, scores: Expr, inverse: Expr) -> Expr:
        """Weights exp(score - max) to `scores`, 1/sum to `inverse`; returns the number of columns in use."""
        v, s = self.v, self.v.s
        base = held(self._base(index, 1, self.op.enable_gqa))
        largest = Registers(v, self.vectors)
        largest.fill(-math.inf)
        full, rest = self.S // self.keys, self.S % self.keys
        if self.op.causal:
            tiles = held(T.min(tirx.floordiv(start + (self.rows + self.keys - 1), self.keys), full))
            beyond = held(T.Cast("int32", start + self.rows > full * self.keys))
            columns = held(tiles * self.keys + beyond * rest)
        else:
            tiles, columns = full, self.S
        if not is_fixed(full) or full:
            with T.serial(0, tiles) as tile:
                self._score_tile(index, base, start, queries, scores, tile * self.keys, self.keys, largest)
        if not is_fixed(rest):
            tail = rest > 0
            with T.If(tirx.And(tail, beyond != 0) if self.op.causal else tail), T.Then(), T.If(full > 0):
                with T.Then():
                    self._score_tile(index, base, start, queries, scores, self.S - self.keys, self.keys, largest)
                with T.Else(), T.serial(0, rest) as key:
                    self._score_tile(index, base, start, queries, scores, key, 1, largest)
        elif rest and self.op.causal:
            with T.If(beyond != 0), T.Then():
                self._score_tile(index, base, start, queries, scores, full * self.keys, rest, largest)
        elif rest:
            self._score_tile(index, base, start, queries, scores, full * self.keys, rest, largest)
        sums = Registers(v, self.vectors)
        sums.fill(0.0)
        lowest, zero, few = v.const(-math.inf), v.const(0.0), self._masks_nan()
        with T.serial(0, columns) as column:
            for number in range(self.vectors):
                at = scores + column * self.rows + number * v.lanes
                empty = s.eq(largest[number], lowest)
                shifted = v.load(self.space, at) - s.select(empty, zero, largest[number])
                weight = held(v.exp_nonpositive(shifted))
                if few is not None:
                    weight = held(s.select(few, s.select(empty, zero, weight), weight))
                v.store(self.space, at, weight)
                sums[number] = sums[number] + weight
        for number in range(self.vectors):
            total = held(sums[number])
            reciprocal = s.select(s.eq(total, v.const(0.0)), v.const(0.0), v.const(1.0) / total)
            v.store(self.space, inverse + number * v.lanes, reciprocal)
        return columns

    def _masks_nan(self) -> Expr | None:
        """Lanes of true where a row of nothing but NaN is 0, by the number of keys; None if there never are."""
        v = self.v
        if not self.op.may_mask_nan(len(self.out_shape), self.mask is not None):
            return None
        if is_fixed(self.S) and self.S >= MASKING_KEYS:
            return None
        few = T.Cast(self.dtype, self.S < MASKING_KEYS) if not is_fixed(self.S) else tirx.const(1.0, self.dtype)
        return v.s.eq(v.splat(held(few)), v.const(1.0))

    def _score_tile(
        self, index: list[Expr], base: Expr, start: Expr, queries: Expr, scores: Expr, first: Expr, keys: int,
        largest: Registers,
    ) -> None:  # fmt: skip
        """Scores of `keys` keys from `first` on with all query vectors of the block."""
        v, s = self.v, self.v.s
        tile = Registers(v, keys * self.vectors)
        tile.fill(0.0)
        with T.serial(0, self.E) as element:
            rows = [
                held(v.load(self.space, queries + element * self.rows + number * v.lanes))
                for number in range(self.vectors)
            ]
            for key in range(keys):
                weight = v.splat(self.k[base + (first + key) * self.steps[1][-2] + element])
                for number in range(self.vectors):
                    position = key * self.vectors + number
                    tile[position] = tile[position] + weight * rows[number]
        for key in range(keys):
            for number in range(self.vectors):
                score = self._masked(tile[key * self.vectors + number], index, start + number * v.lanes, first + key)
                score = held(score)
                v.store(self.space, scores + (first + key) * self.rows + number * v.lanes, score)
                # Leaves a NaN out: it comes back with the sum (but see `Attention.may_mask_nan`).
                largest[number] = s.select(score > largest[number], score, largest[number])

    def _masked(self, score: Expr, index: list[Expr], row: Expr, column: Expr) -> Expr:
        v, s = self.v, self.v.s
        lowest = v.const(-math.inf)
        if self.mask is not None:
            mask = self._mask_vector(index, row, column)
            is_bool = self.mask.dtype == "bool"
            score = s.select(mask, score, lowest) if is_bool else score + mask
        if self.op.causal:
            rows = T.ramp(row, 1, v.lanes) if v.lanes > 1 else row
            score = s.select(rows >= v.splat(column), score, lowest)
        return score

    def _mask_vector(self, index: list[Expr], row: Expr, column: Expr) -> Expr:
        """The mask of `lanes` query rows from `row` on against one key."""
        assert self.mask is not None
        v, mask = self.v, self.mask
        shape = tuple(self.shapes[3])
        if len(shape) < 2:
            shape = (1, *shape) if shape else (1, 1)
        batch = shape[:-2]
        own = index[len(index) - len(batch) :] if batch else []
        base: Expr = 0
        for position, size in zip(own, batch, strict=True):
            base = base * extent(size) + (0 if size == 1 else position)
        base = base * extent(shape[-2] * shape[-1]) + (0 if shape[-1] == 1 else column)
        if shape[-2] == 1:
            return v.splat(mask[base])
        offsets = [base + self._row(row + lane) * extent(shape[-1]) for lane in range(v.lanes)]
        if v.lanes == 1:
            return mask[offsets[0]]
        loaded = tirx.Shuffle([mask.handle[offset] for offset in offsets], _numbers(v.lanes))
        return tirx.NE(loaded, T.broadcast(tirx.const(0, "int8"), v.lanes)) if mask.dtype == "bool" else loaded

    def _output(self, index: list[Expr], item: Expr, start: Expr, scores: Expr, inverse: Expr, columns: Expr) -> None:
        base = held(self._base(index, 2, self.op.enable_gqa))
        target = held(sum((position * step for position, step in zip(index, self.out_steps[:-2], strict=True)), 0))
        width = self.columns * self.v.lanes
        with T.serial(0, self.rows // self.out_rows) as group:
            row = held(group * self.out_rows)

            def tiles() -> None:
                full = self.Ev // width
                if full:
                    with T.serial(0, full) as part:
                        self._output_tile(base, target, start, row, scores, inverse, columns, part * width, width)
                if self.Ev % width:
                    self._output_tile(base, target, start, row, scores, inverse, columns, full * width, self.Ev % width)

            if not is_fixed(self.L) or self.L % self.rows:
                with T.If(start + row < self.L), T.Then():
                    tiles()
            else:
                tiles()

    def _output_tile(
        self, base: Expr, target: Expr, start: Expr, row: Expr, scores: Expr, inverse: Expr, columns: Expr,
        first: Expr, width: int,
    ) -> None:  # fmt: skip
        """`out_rows` rows from `row` of the block on, `width` value elements from `first` on."""
        v = self.v
        count = v.blocks(width)
        valid = [min(v.lanes, width - part * v.lanes) for part in range(count)]
        tile = Registers(v, self.out_rows * count)
        tile.fill(0.0)
        with T.serial(0, columns) as column:
            values = [
                held(v.load(self.value, base + column * self.steps[2][-2] + first + part * v.lanes, valid[part]))
                for part in range(count)
            ]
            for lane in range(self.out_rows):
                weight = v.splat(self.space[scores + column * self.rows + row + lane])
                for part in range(count):
                    tile[lane * count + part] = tile[lane * count + part] + weight * values[part]

        def write(lane: int) -> None:
            scale = v.splat(self.space[inverse + row + lane])
            for part in range(count):
                at = target + (start + row + lane) * self.out_steps[-2] + first + part * v.lanes
                v.store(self.output, at, tile[lane * count + part] * scale, valid[part])

        for lane in range(self.out_rows):
            if not is_fixed(self.L) or self.L % self.rows:
                with T.If(start + row + lane < self.L), T.Then():
                    write(lane)
            else:
                write(lane)


def _numbers(count: int) -> list[Expr]:
    return [tirx.const(number, "int32") for number in range(count)]
