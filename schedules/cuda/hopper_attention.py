"""Fused attention in half floats on compute capability 9.0, by blocks whose warpgroups have different work.

The design is FlashAttention-3's (Shah et al., arXiv:2407.08608). A block has one or two warpgroups that take 64 queries
each, and one that only copies, whose registers the others get. As many blocks run as the device has multiprocessors,
each takes one tile of queries after the other; tiles of a head follow each other, so that its keys stay in L2.

1. One thread has the copy unit (TMA) bring the tile's queries, then keys and values, STEP at a time, to a ring of
   stages, in the order in which they are used: keys 0, keys 1, values 0, keys 2, values 1, ... It runs ahead of the
   products, also into the next tile.
2. Scores of the next keys, and the products of the last weights with their values, are begun together (wgmma). While
   the latter run, the former become weights (`online_softmax`), in the registers where the products left them.
3. Weights are rounded to half floats and stay in registers: they are the left operand of the next products. A stage is
   given back as soon as its products are done.

Keys right of the diagonal are never copied; of a head, tiles with many keys come first. What lies outside of a tensor
arrives as zeros, and is masked. Limited by tensor cores and exponentials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.gpu.launches import TensorMap
from transpiler.group import Group, Lowered
from transpiler.ops.dtypes import HALF
from transpiler.strides import View
from transpiler.target import Target

from ..fuse import lowered
from ..gpu.attention import own_index
from ..gpu.workgroup import barrier, private, workgroups
from ..sizes import ceil_div, count, extent, is_empty, is_fixed
from ..tir import KernelBuilder, unflatten, when
from ..vectors import held
from . import bulk, ptx, warpgroup
from .attention import operands_of
from .hopper import BARRIER, FEW_REGISTERS, GROUP, MANY_REGISTERS, ROWS
from .online_softmax import OnlineSoftmax
from .tiles import CARDS
from .wgmma import ATOM, PANEL, descriptor

Expr = Any
STEP = 128  # keys at a time
ELEMENTS = range(40, 129, 8)  # of a head: more than half of a panel, and what registers have room for
FEW_QUERIES = 64  # up to which `attention` has blocks small enough, and splits the keys
SHARED = 231424  # bytes that a block may have
MOST_STAGES = 8
MOST_AXES = 5  # of a tensor, for the copy unit
LINE = PANEL * 2  # bytes


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    found = operands_of(group)
    if node is None or found is None or "warpgroups" not in target.gpu.features:
        return None
    kind, views = found
    queries, keys = node.inputs[0].shape[-2], node.inputs[1].shape[-2]
    if kind not in HALF or (isinstance(queries, int) and queries <= FEW_QUERIES):
        return None
    # Keys are there where queries are: no tensor is empty.
    if not (isinstance(keys, int) or keys == queries) or is_empty(node.output.shape) or keys == 0:
        return None
    if any(value.shape[-1] not in ELEMENTS for value in node.inputs[:3]):
        return None
    tensors = [_Tensor.of(value.shape, view) for value, view in zip(node.inputs[:3], views[:3], strict=True)]
    known = [tensor for tensor in tensors if tensor is not None]
    if len(known) < len(tensors):
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    attention = _Attention(group, views, kind, known)
    with builder:
        attention.emit(builder, CARDS[target.gpu.arch].processors)
    return lowered(group, builder, flops=attention.flops)


@dataclass(frozen=True)
class _Tensor:
    """A view as the copy unit is told of it: elements, rows, then those axes of the batch along which it has steps."""

    sizes: tuple[Dim, ...]
    strides: tuple[Dim, ...]  # in bytes, of all but the elements
    axes: tuple[int, ...]

    @classmethod
    def of(cls, shape: Sequence[Dim], view: View) -> _Tensor | None:
        """None if the unit does not take it: rows that are all the same, or too many axes."""
        rows, elements = shape[-2:]
        pitch = elements if rows == 1 else view.steps[-2]
        axes = tuple(axis for axis in reversed(range(len(shape) - 2)) if shape[axis] != 1 and view.steps[axis] != 0)
        if pitch == 0 or len(axes) > MOST_AXES - 2:
            return None
        sizes, steps = (elements, rows, *(shape[axis] for axis in axes)), (pitch, *(view.steps[axis] for axis in axes))
        return cls(sizes, tuple(step * 2 for step in steps), axes)

    def map(self, rows: int) -> TensorMap:
        """For copies of so many rows, a panel of each."""
        rank = len(self.sizes)
        return TensorMap("uint16", self.sizes, self.strides, (PANEL, rows, *(1,) * (rank - 2)), (1,) * rank)

    @property
    def panels(self) -> int:
        """What lies behind the last element arrives as zeros."""
        elements = self.sizes[0]
        assert isinstance(elements, int)
        return -(-elements // PANEL)


class _Attention(OnlineSoftmax):
    """One kernel. Where in the ring it is, every thread knows for itself."""

    def __init__(self, group: Group, views: Sequence[View], kind: str, tensors: Sequence[_Tensor]) -> None:
        super().__init__(group, views, STEP)
        self.kind, self.tensors = kind, tensors
        self.panel_bytes = STEP * LINE
        self.stage_bytes = max(tensor.panels for tensor in tensors) * self.panel_bytes

    def emit(self, builder: KernelBuilder, processors: int) -> None:
        self.bind(builder)
        small = count(self.batch) * ceil_div(self.L, ROWS)
        # Where all tiles of one warpgroup run at once, tiles of two would leave processors idle.
        self.consumers = 1 if is_fixed(small) and small <= processors else 2
        self.rows = self.consumers * ROWS
        self.query_bytes = self.tensors[0].panels * self.rows * LINE
        self.stages = min(MOST_STAGES, (SHARED - ATOM - self.query_bytes - 256) // self.stage_bytes)
        lines = (self.rows, STEP, STEP)
        self.maps = [
            builder.tensor_map(source.part(extent(view.offset)), tensor.map(rows))
            for source, view, tensor, rows in zip(self.sources, self.views, self.tensors, lines, strict=False)
        ]
        self.blocks = ceil_div(self.L, self.rows)
        tiles = extent(count(self.batch)) * self.blocks
        blocks = min(tiles, processors) if is_fixed(tiles) else T.min(tiles, processors)
        with workgroups(blocks, (self.consumers + 1) * GROUP) as (number, thread), ptx.resident(1):
            self._block(number, held(thread), tiles, blocks)

    def _block(self, number: Expr, thread: Expr, tiles: Expr, blocks: Expr) -> None:
        self.thread, self.group_number = thread, held(tirx.floordiv(thread, GROUP))
        self.lane = held(tirx.floormod(thread, 32))
        ring = self.stages * self.stage_bytes
        barriers = 2 * (self.stages + 1) * BARRIER
        memory = T.alloc_buffer((self.query_bytes + ring + barriers + ATOM,), "uint8", scope="shared.dyn")
        self.memory = held(ptx.aligned(ptx.shared_address(memory), ATOM))
        self.filled = held(ptx.moved(self.memory, self.query_bytes + ring))
        self.emptied = held(ptx.moved(self.filled, (self.stages + 1) * BARRIER))
        with when(tirx.EQ(thread, 0)):
            for stage in range(self.stages + 1):
                bulk.barrier_init(self._barrier(self.filled, stage), 1)
                bulk.barrier_init(self._barrier(self.emptied, stage), self.consumers * 4)
            bulk.barriers_ready()
        barrier()
        self.ring = private(2, "int32")
        for i in range(2):
            self.ring.store(i, tirx.const(0, "int32"))
        turns = held(tirx.floordiv(tiles - number + (blocks - 1), blocks))
        with T.If(tirx.EQ(self.group_number, self.consumers)):
            with T.Then():
                self._give_registers(FEW_REGISTERS, more=False)
                with when(tirx.EQ(thread, self.consumers * GROUP)), ptx.rolled(turns) as turn:
                    self._tile(held(number + turn * blocks))
                    self._copy(tirx.floormod(turn, 2))
            with T.Else():
                self._give_registers(MANY_REGISTERS, more=True)
                self.allocate()
                self.words = private(STEP // 4, "uint32")
                self.own = held(tirx.floordiv(thread, 32) * 16)
                with ptx.rolled(turns) as turn:
                    self._tile(held(number + turn * blocks))
                    self.row = held(self.first + self.own + tirx.floordiv(self.lane, 4))
                    self._attend(tirx.floormod(turn, 2))
                    for half in range(2):
                        self.store_row(half)

    def _tile(self, number: Expr) -> None:
        """Which matrix, which queries, how many times STEP keys."""
        self.index = [held(i) for i in unflatten(tirx.floordiv(number, self.blocks), self.batch)] if self.batch else []
        block = tirx.floormod(number, self.blocks)
        self.first = held((self.blocks - 1 - block if self.op.causal else block) * self.rows)
        stop = T.min(self.S, self.first + self.rows) if self.op.causal else self.S
        self.steps = held(ceil_div(stop, STEP))

    def _give_registers(self, number: int, *, more: bool) -> None:
        # With fewer warpgroups everybody may have as many as there are.
        if self.consumers == 2:
            bulk.registers(number, more=more)

    # --- the ring; the queries have the barriers behind those of the stages
    def _barrier(self, first: Expr, stage: Expr) -> Expr:
        return ptx.moved(first, stage * BARRIER)

    def _stage(self, stage: Expr) -> Expr:
        return ptx.moved(self.memory, self.query_bytes + stage * self.stage_bytes)

    def _advance(self) -> None:
        following = held(self.ring[0] + 1)
        wraps = held(tirx.Cast("int32", tirx.EQ(following, self.stages)))
        self.ring.store(0, following - wraps * self.stages)
        self.ring.store(1, tirx.bitwise_xor(self.ring[1], wraps))

    def _take(self) -> Expr:
        """The next stage, when it has arrived."""
        self._await()
        return self._next()

    def _next(self) -> Expr:
        """The next stage, which has arrived."""
        stage = held(self.ring[0])
        self._advance()
        return stage

    def _await(self) -> None:
        bulk.barrier_wait(self._barrier(self.filled, self.ring[0]), self.ring[1])

    def _release(self, stage: Expr) -> None:
        """This warp has read a stage."""
        with when(tirx.EQ(self.lane, 0)):
            bulk.barrier_arrive(self._barrier(self.emptied, stage))

    # --- copies
    def _copy(self, parity: Expr) -> None:
        places = [self._places(which) for which in range(3)]
        self._bring(0, places[0], self.stages, parity, self.memory, self.first)

        def bring(which: int, step: Expr) -> None:
            stage = held(self.ring[0])
            self._bring(which, places[which], stage, self.ring[1], held(self._stage(stage)), held(step * STEP))
            self._advance()

        bring(1, tirx.const(0, "int32"))
        with ptx.rolled(self.steps - 1) as step:
            bring(1, step + 1)
            bring(2, step)
        bring(2, self.steps - 1)

    def _places(self, which: int) -> list[Expr]:
        """Coordinates behind element and row."""
        own = own_index(self.index, self.batch, self.shapes[which], gqa=which > 0 and self.op.enable_gqa)
        return [held(own[axis]) for axis in self.tensors[which].axes]

    def _bring(self, which: int, places: Sequence[Expr], stage: Expr, parity: Expr, to: Expr, row: Expr) -> None:
        """Rows of q, k or v from one on, to an address, when the stage is empty."""
        tensor, rows = self.tensors[which], self.rows if which == 0 else STEP
        bulk.barrier_wait(self._barrier(self.emptied, stage), tirx.bitwise_xor(parity, 1))
        filled = held(self._barrier(self.filled, stage))
        bulk.barrier_expect(filled, tensor.panels * rows * LINE)
        for panel in range(tensor.panels):
            coordinates = [tirx.const(panel * PANEL, "int32"), row, *places]
            bulk.tensor_copy(
                ptx.moved(to, panel * rows * LINE), self.maps[which], filled, coordinates, len(tensor.sizes)
            )

    # --- products
    def _attend(self, parity: Expr) -> None:
        self.begin()
        bulk.barrier_wait(self._barrier(self.filled, self.stages), parity)
        keys = self._take()
        warpgroup.fence(self.scores)
        self._begin_scores(keys)
        warpgroup.wait(0, self.scores)
        self._release(keys)
        self._weigh(tirx.const(0, "int32"))
        self._round()
        self._await()
        with ptx.rolled(self.steps - 1) as step:
            keys, values = self._next(), self._take()
            # From here on no wait for a barrier: the compiler would take all products one after the other.
            warpgroup.fence(self.scores, self.sums, self.words)
            self._begin_scores(keys)
            self._begin_values(values)
            warpgroup.wait(1, self.scores)
            self._release(keys)
            self._weigh(held((step + 1) * STEP))
            # A branch, which keeps the compiler from waiting for the values before the weights are there.
            self._await()
            warpgroup.wait(0, self.sums, self.words, self.scores)
            self._release(values)
            for half in range(2):
                self.rescale(half)
            self._round()
        self._release(self.stages)
        values = self._next()
        warpgroup.fence(self.sums, self.words)
        self._begin_values(values)
        warpgroup.wait(0, self.sums, self.words)
        self._release(values)

    def _begin_scores(self, stage: Expr) -> None:
        """Queries times keys of a stage: 16 elements, 32 bytes of a line, in an instruction."""
        left = held(descriptor(ptx.moved(self.memory, self.group_number * (ROWS * LINE)), ptx.CHUNK))
        right = held(descriptor(self._stage(stage), ptx.CHUNK))
        for k in range(ceil_div(self.E, 16)):
            panel, within = divmod(k, PANEL // 16)
            moved = (panel * self.rows * LINE + within * 32, panel * self.panel_bytes + within * 32)
            parts = [part + warpgroup.as_word(by // 16) for part, by in zip((left, right), moved, strict=True)]
            if k == 0:
                warpgroup.first_product(self.kind, self.scores, STEP, *parts)
            else:
                ptx.wgmma(self.kind, self.scores, STEP, *parts, across=False)
        ptx.wgmma_end_group()

    def _begin_values(self, stage: Expr) -> None:
        """Weights times values of a stage: 16 keys, as many lines, in an instruction."""
        right = held(descriptor(self._stage(stage), self.panel_bytes))
        for k in range(STEP // 16):
            part = right + warpgroup.as_word(k * 16 * LINE // 16)
            warpgroup.product_of_registers(self.kind, self.sums, self.Ev, self.words, k * 4, part)
        ptx.wgmma_end_group()

    def _weigh(self, first: Expr) -> None:
        self.masks(first)
        for half in range(2):
            self.weigh(half)

    def _round(self) -> None:
        """Weights as half floats: words 4 k .. 4 k + 3 are the left operand of 16 keys."""
        with ptx.unrolled(STEP // 4) as i:
            self.words.store(i, ptx.pack(self.kind, self.scores[i * 2], self.scores[i * 2 + 1]))
