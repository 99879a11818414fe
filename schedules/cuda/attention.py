"""Fused attention on tensor cores in half floats, with an online softmax (Dao, arXiv:2307.08691): no L x S buffer.

A block takes up to 64 query rows, a warp 16 of them, and walks over the keys, 64 at a time:

1. Keys and values come to shared memory by asynchronous copies, the next ones while these are used. They are read where
   they lie, views of one tensor by its steps.
2. Scores: the queries stay in registers as fragments, the keys' are loaded by ldmatrix; sums in float32.
3. Scores become weights (`online_softmax`).
4. Weights, rounded to half floats, become the left operand as they lie: the fragment of a result is that of an operand.

Masks are applied where they can matter: in the last block, near the diagonal, everywhere if there is a mask. Limited by
tensor cores and exponentials. A row that may attend to nothing is 0. Where queries are few and keys many, blocks take
parts of the keys (`attention_parts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.dtypes import HALF
from transpiler.strides import View
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..fuse import lowered
from ..gpu.workgroup import barrier, private, workgroups
from ..sizes import ceil_div, count, extent, is_empty, is_fixed
from ..strided import only_moves_result, views_of
from ..tir import KernelBuilder, unflatten, when
from ..vectors import held
from . import ptx
from .attention_parts import KEYS, Partial, parts_of_keys
from .online_softmax import OnlineSoftmax
from .product import DEPTHS, place
from .tiles import CARDS

Expr = Any
WARP_ROWS = 16
MOST_WARPS = 4
# Of a head: more half floats would not fit into registers, more floats not into shared memory.
MOST_ELEMENTS = {"float16": 128, "bfloat16": 128, "float32": 64}


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node, found = group.anchor_node, operands_of(group)
    if node is None or found is None:
        return None
    kind, views = found
    sizes = [value.type.shape[-1] for value in (node.inputs[0], node.inputs[2])]
    if not all(isinstance(size, int) and 0 < size <= MOST_ELEMENTS[kind] and size % 8 == 0 for size in sizes):
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    attention = (Attention if kind in HALF else _simt())(group, views, kind)
    with builder:
        if not is_empty(node.output.type.shape):
            attention.emit(builder, CARDS[target.gpu.arch].processors)
    return lowered(group, builder, flops=attention.flops, workspace=builder.appended_bytes)


def operands_of(group: Group) -> tuple[str, tuple[View, ...]] | None:
    """The dtype of the queries, keys and values of an attention, and where they lie; None if it is none, or they do not
    lie in chunks of 16 bytes."""
    node = group.anchor_node
    if node is None or node.op.name != "attention":
        return None
    views = views_of(group, widens=True)
    if views is None or not (only_moves_result(group) or elementwise_epilogue(group)):
        return None
    dtypes = {view.source.dtype for view in views[:3]}
    if len(dtypes) != 1 or not dtypes <= MOST_ELEMENTS.keys():
        return None
    return (dtypes.pop(), views) if all(view.is_aligned(ptx.CHUNK) for view in views[:3]) else None


def _simt() -> type[Attention]:
    from .attention_float32 import SimtAttention

    return SimtAttention


class _Tile:
    """Rows of a head in shared memory from an address on: as many chunks a row as the next power of two."""

    def __init__(self, lines: int, elements: int, chunk: int) -> None:
        self.lines, self.elements, self.chunk = lines, elements, chunk
        self.per_line = 1 << max(1, (elements // chunk - 1).bit_length())
        self.bytes = lines * self.per_line * ptx.CHUNK

    def at(self, start: Expr, line: Expr, chunk: Expr) -> Expr:
        return ptx.moved(start, place(line, chunk, self.per_line))


class Attention(OnlineSoftmax):
    """One kernel: L queries, S keys, E and Ev elements."""

    def __init__(self, group: Group, views: Sequence[View], kind: str) -> None:
        super().__init__(group, views, KEYS)
        self.kind = kind
        self.pitches = [extent(view.steps[-2]) for view in views[:3]]
        self.warps = min(MOST_WARPS, ceil_div(self.L, WARP_ROWS)) if is_fixed(self.L) else MOST_WARPS
        self.rows = self.warps * WARP_ROWS
        self.depth = ceil_div(self.E, 16)
        chunk = DEPTHS[kind]
        self.query, self.keys = _Tile(self.rows, self.E, chunk), _Tile(KEYS, self.E, chunk)
        self.values = _Tile(KEYS, self.Ev, chunk)

    def emit(self, builder: KernelBuilder, processors: int) -> None:
        self.bind(builder)
        blocks = ceil_div(self.L, self.rows)
        each = parts_of_keys(self.S, count(self.batch) * blocks, processors) if self._can_split(builder) else 0
        self.partial = Partial(builder, self, each) if each else None
        splits = self.partial.splits if self.partial else 1
        with workgroups(extent(count(self.batch)) * blocks * splits, self.warps * 32) as (block, thread):
            number = block
            if self.partial is not None:
                number, self.part = held(tirx.floordiv(block, splits)), held(tirx.floormod(block, splits))
            self.thread = held(thread)
            self.lane, warp = held(tirx.floormod(thread, 32)), tirx.floordiv(thread, 32)
            matrix = tirx.floordiv(number, blocks)
            self.index = [held(i) for i in unflatten(matrix, self.batch)] if self.batch else []
            self.first = held(tirx.floormod(number, blocks) * self.rows)
            self.own = held(warp * WARP_ROWS)
            self.row = held(self.first + self.own + tirx.floordiv(self.lane, 4))
            stage = self.keys.bytes + self.values.bytes
            memory = T.alloc_buffer((self.query.bytes + 2 * stage + self.more_bytes,), "uint8", scope="shared.dyn")
            self.memory = held(ptx.shared_address(memory))
            with ptx.resident(2):
                self._walk(stage)
        if self.partial is not None:
            self.partial.combine()

    def _can_split(self, builder: KernelBuilder) -> bool:
        few = bool(is_fixed(self.L, self.S) and self.rows >= self.L)
        return few and builder.can_append and not self.op.causal

    @property
    def more_bytes(self) -> int:
        """Of shared memory, behind both stages."""
        return 0

    # --- the loop over the keys
    def _walk(self, stage: int) -> None:
        starts = [self.matrix(which) for which in range(3)]
        self._copy(0, starts[0], self.query, self.memory, self.first, self.L)
        stop = held(T.min(self.S, self.first + self.rows)) if self.op.causal else self.S
        steps, before = ceil_div(stop, KEYS), tirx.const(0, "int32")
        if self.partial is not None:
            before = held(self.part * self.partial.steps)
            steps = held(T.min(steps - before, self.partial.steps))

        def fetch(step: Expr) -> None:
            start = held(ptx.moved(self.memory, self.query.bytes + tirx.floormod(step, 2) * stage))
            self._copy(1, starts[1], self.keys, start, (before + step) * KEYS, self.S)
            self._copy(2, starts[2], self.values, ptx.moved(start, self.keys.bytes), (before + step) * KEYS, self.S)
            ptx.copies_end_group()

        fetch(tirx.const(0, "int32"))
        self.prepare()
        with ptx.rolled(steps) as step:
            fetch(step + 1)
            ptx.copies_wait(1)
            barrier()
            with when(step == 0):
                self.load_queries()
            start = held(ptx.moved(self.memory, self.query.bytes + tirx.floormod(step, 2) * stage))
            first = held((before + step) * KEYS)
            self.products(start)
            self.masks(first)
            for half in range(2):
                self.weigh(half)
                self.rescale(half)
            self.add_values(ptx.moved(start, self.keys.bytes))
            barrier()
        ptx.copies_wait(0)
        self._store()

    def _copy(self, which: int, base: Expr, tile: _Tile, start: Expr, first: Expr, end: Expr) -> None:
        """Rows of input `which` from `first` on; zeros for those from `end` on and for what fills up a row."""
        total, threads = tile.lines * tile.per_line, self.warps * 32
        for turn in range(ceil_div(total, threads)):
            number = held(self.thread + turn * threads)
            line, chunk = held(tirx.floordiv(number, tile.per_line)), held(tirx.floormod(number, tile.per_line))
            row = held(first + line)
            inside = tirx.And(row < end, chunk < tile.elements // tile.chunk)
            with when(None if total % threads == 0 else number < total):
                offset = base + row * self.pitches[which] + chunk * tile.chunk
                ptx.copy_async(tile.at(start, line, chunk), self.sources[which], offset, inside)

    def prepare(self) -> None:
        self.q = private(self.depth * 4, "uint32")
        self.fragment, self.left = private(4, "uint32"), private(4, "uint32")
        self.allocate()
        self.begin()

    def load_queries(self) -> None:
        row, chunk = self.own + tirx.floormod(self.lane, 16), tirx.floordiv(self.lane, 16)
        with ptx.unrolled(self.depth) as k:
            ptx.load_matrices(self.q, k * 4, self.query.at(self.memory, row, k * 2 + chunk))

    def products(self, keys: Expr) -> None:
        with ptx.unrolled(KEYS // 2) as i:
            self.scores.store(i, self.zero)
        eighth, within = tirx.floordiv(self.lane, 8), tirx.floormod(self.lane, 8)
        line, low = tirx.floordiv(eighth, 2) * 8 + within, tirx.floormod(eighth, 2)
        with ptx.unrolled(self.depth) as k, ptx.unrolled(KEYS // 16) as pair:
            ptx.load_matrices(self.fragment, 0, self.keys.at(keys, pair * 16 + line, k * 2 + low))
            for side in range(2):
                at = (pair * 2 + side) * 4
                ptx.mma(self.kind, self.scores, at, self.q, k * 4, self.fragment, side * 2)

    # --- values
    def add_values(self, values: Expr) -> None:
        eighth, within = tirx.floordiv(self.lane, 8), tirx.floormod(self.lane, 8)
        line, high = tirx.floormod(eighth, 2) * 8 + within, tirx.floordiv(eighth, 2)
        with ptx.unrolled(KEYS // 16) as k:
            with ptx.unrolled(4) as i:
                at = k * 8 + i * 2
                self.left.store(i, ptx.pack(self.kind, self.scores[at], self.scores[at + 1]))
            with ptx.unrolled(self.wide) as pair:
                place = self.values.at(values, k * 16 + line, pair * 2 + high)
                ptx.load_matrices(self.fragment, 0, place, transposed=True)
                for side in range(2):
                    at = (pair * 2 + side) * 4
                    ptx.mma(self.kind, self.sums, at, self.left, 0, self.fragment, side * 2)

    # --- results
    def _store(self) -> None:
        for half in range(2):
            if self.partial is None:
                self.store_row(half)
            else:
                self._store_part(half)

    def _store_part(self, half: int) -> None:
        assert self.partial is not None
        row, total = held(self.row + half * 8), self.row_total(half)
        pair = tirx.floormod(self.lane, 4)
        with when(row < self.L):
            line = held(self.partial.line(self.part, self.index, row))
            with when(pair == 0):
                self.partial.largest.store(line, self.largest[half])
                self.partial.totals.store(line, total)
            with ptx.unrolled(self.Ev // 8) as j, ptx.unrolled(2) as e:
                self.partial.sums.store(line * self.Ev + j * 8 + pair * 2 + e, self.sums[j * 4 + half * 2 + e])
