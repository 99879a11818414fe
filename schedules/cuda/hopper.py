"""Products on compute capability 9.0 by blocks whose warpgroups have different work.

As many blocks run as the device has multiprocessors, each takes one tile after the other (persistent). One thread of
the last warpgroup, which gives its registers away, has the copy unit (TMA) bring boxes of both operands to shared
memory, `stages` steps ahead: a ring, in which a barrier per stage tells that its bytes have arrived, another that all
warps have read them. The ring goes on from a tile to the next, so that copies never pause. Every other warpgroup
multiplies 64 rows and all columns of the tile with wgmma, products of one step in flight while those of the next begin,
and stores its sums, warp by warp, through shared memory and the epilogue of the group; its sums are in registers, in
float32.

Lines of 128 bytes are permuted by the copy unit as wgmma reads them. What lies outside of a tensor arrives as zeros:
rests of the summed dim, and the padding of convolutions. TF32 is rounded (to nearest, ties to even) by the copy unit.

Two blocks with neighbouring rows may be a cluster (`Tile.cluster`): each has the copy unit bring its half of the
columns' operand to both. A stage has been read when the warps of both blocks have told both.

Where there are few tiles and a long summed dim, blocks take parts of it (split-K): their sums go to memory, and a
second launch adds them in order.

Limited by tensor cores for large tiles. Sources: PTX ISA, "Asynchronous warpgroup level matrix multiply-accumulate
operations", "cp.async.bulk.tensor", "mbarrier"; the division of work is that of CUTLASS' warp-specialised kernels.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.gpu.launches import TensorMap

from ..gpu.threads import each_thread
from ..gpu.workgroup import barrier, private, workgroups
from ..sizes import ceil_div, is_fixed
from ..tir import flat_offset, unflatten, when
from ..vectors import held
from . import bulk, ptx
from .epilogue import RunEpilogue, Sums
from .product import DEPTHS, SKEW, Destination, Operand, Product, Rows, as_expr, store_rows, vector
from .tiles import Tile
from .wgmma import ATOM, PANEL, descriptor

Expr = Any
GROUP = 128  # threads
ROWS = 64  # of a warpgroup
# Of a thread, where a multiprocessor has 65536 for one block of three warpgroups.
FEW_REGISTERS, MANY_REGISTERS = 40, 232
BARRIER = 8  # bytes
ADDING = 256  # threads of a block that adds parts of sums
ELEMENTS = {"float16": "uint16", "bfloat16": "uint16", "tf32": "tfloat32"}


def takes(product: Product) -> bool:
    """Whether the copy unit and wgmma take the operands: float32 (TF32) only along the summed dim."""
    if product.kind not in ELEMENTS:
        return False
    if product.left.tensor is None or product.right.tensor is None:
        return False
    return not (product.kind == "tf32" and product.right.across)


def emit(product: Product, tile: Tile, epilogue: RunEpilogue, processors: int) -> None:
    """The kernel, at the root of the function, for a device of that many multiprocessors."""
    depth = DEPTHS[product.kind] * tile.chunks
    maps = [
        epilogue.builder.tensor_map(operand.tensor.buffer, _map(product.kind, operand, lines, depth))
        for operand, lines in ((product.left, tile.rows), (product.right, tile.columns // tile.cluster))
        if operand.tensor is not None
    ]
    partial = None  # sums of a part of the summed dim: [split, batch, row, column]
    if tile.splits > 1:
        size = tile.splits * product.batches * product.rows * product.columns
        partial = Sums(epilogue.builder.append_workspace(size), (tile.splits, *_shape(product)))
    tiles, most = product.blocks(tile.joint) * tile.splits, processors // tile.cluster
    clusters = min(tiles, most) if is_fixed(tiles) else T.min(tiles, most)
    with (
        bulk.clusters(tile.cluster),
        workgroups(clusters * tile.cluster, threads(tile)) as (number, thread),
        ptx.resident(1),
    ):
        _Block(product, tile, epilogue, maps, thread, partial).emit(number, tiles, clusters)
    if partial is not None:
        _add(product, epilogue, partial)


def _shape(product: Product) -> tuple[int, int, int]:
    return product.batches, product.rows, product.columns


def _add(product: Product, epilogue: RunEpilogue, partial: Sums) -> None:
    """A launch that adds the parts of every sum, in order, and stores it through the epilogue."""
    size = vector(product, epilogue, product.columns)
    batches, rows, columns = _shape(product)
    turns = (batches, rows, columns // size)
    with each_thread(batches * rows * (columns // size), ADDING) as position:
        batch, row, part = (held(i) for i in unflatten(position, turns))
        column = held(part * size)

        def value(e: Expr) -> Expr:
            places = [flat_offset((split, batch, row, column + e), partial.shape) for split in range(partial.shape[0])]
            total = functools.reduce(operator.add, [partial.buffer[place] for place in places])
            return product.biased(total, batch, row, column + e)

        epilogue.store_run(lambda e: product.place(batch, row, column + e), value, size)


def threads(tile: Tile) -> int:
    """Of a block: those that multiply, and a warpgroup that copies."""
    return tile.rows // ROWS * GROUP + GROUP


def _map(kind: str, operand: Operand, lines: int, depth: int) -> TensorMap:
    tensor = operand.tensor
    assert tensor is not None
    if tensor.corners is not None:
        box: list[int] = [depth, lines]
    else:
        box = [1] * len(tensor.sizes)
        box[0], box[tensor.lines] = (PANEL, depth) if operand.across else (depth, lines)
    steps = tensor.steps or (1,) * len(tensor.sizes)
    return TensorMap(ELEMENTS[kind], tensor.sizes, tensor.strides, tuple(box), steps, *(tensor.corners or ()))


class _Block:
    """One block; where in the ring it is, every thread knows for itself."""

    def __init__(
        self,
        product: Product,
        tile: Tile,
        epilogue: RunEpilogue,
        maps: Sequence[Expr],
        thread: Expr,
        partial: Sums | None,
    ) -> None:
        self.product, self.tile, self.epilogue, self.maps, self.partial = product, tile, epilogue, maps, partial
        self.joint, self.thread = tile.joint, held(thread)
        self.group, self.lane = held(tirx.floordiv(self.thread, GROUP)), held(tirx.floormod(self.thread, 32))
        self.consumers = tile.rows // ROWS
        self.depth = DEPTHS[product.kind] * tile.chunks
        self.steps = ceil_div(product.inner, self.depth)
        ring = tile.stages * tile.stage_bytes
        # A warp passes so many columns of its 16 rows through shared memory at a time.
        self.panel = 32 if tile.columns >= 128 else 64
        self.pitch = (self.panel + SKEW) * 4
        sums = self.consumers * 4 * 16 * self.pitch
        memory = T.alloc_buffer((ring + sums + 2 * tile.stages * BARRIER + ATOM,), "uint8", scope="shared.dyn")
        self.memory = held(ptx.aligned(ptx.shared_address(memory), ATOM))
        warp = tirx.floordiv(self.thread, 32)
        self.own_sums = held(ptx.moved(self.memory, ring + warp * (16 * self.pitch)))
        self.filled = held(ptx.moved(self.memory, ring + sums))
        self.emptied = held(ptx.moved(self.filled, tile.stages * BARRIER))
        self.ring = private(2, "int32")

    def emit(self, block: Expr, tiles: Expr, clusters: Expr) -> None:
        size = self.tile.cluster
        self.rank = held(tirx.floormod(block, size)) if size > 1 else as_expr(0)
        number = held(tirx.floordiv(block, size)) if size > 1 else block
        with when(tirx.EQ(self.thread, 0)):
            for stage in range(self.tile.stages):
                bulk.barrier_init(self._barrier(self.filled, stage), 1)
                bulk.barrier_init(self._barrier(self.emptied, stage), self.consumers * 4 * size)
            bulk.barriers_ready()
        if size > 1:
            bulk.cluster_meets()
        else:
            barrier()
        self.ring.store(0, tirx.const(0, "int32"))
        self.ring.store(1, tirx.const(0, "int32"))
        turns = held(tirx.floordiv(tiles - number + (clusters - 1), clusters))

        @contextmanager
        def own_tiles() -> Iterator[tuple[Expr, Expr, Expr]]:
            with ptx.rolled(turns) as turn:
                self.split, within = self._part(held(number + turn * clusters))
                batch, row, column = self.product.block(within, self.joint)
                yield batch, held((row * size + self.rank) * self.tile.rows), held(column * self.tile.columns)

        copies = tirx.EQ(self.group, self.consumers)
        with T.If(copies):
            with T.Then():
                self._give_registers(FEW_REGISTERS, more=False)
                with when(tirx.EQ(self.thread, self.consumers * GROUP)), own_tiles() as (batch, row, column):
                    self._copy(batch, row, column)
            with T.Else():
                self._give_registers(MANY_REGISTERS, more=True)
                sums = private(self.tile.columns * ROWS // GROUP)
                with own_tiles() as (batch, row, column):
                    self._multiply(sums)
                    self._store(sums, batch, row, column)
        if size > 1:
            bulk.cluster_meets()  # others arrive at this block's barriers as long as they run

    def _part(self, number: Expr) -> tuple[Expr, Expr]:
        """Which part of the summed dim, and the number of the tile."""
        if self.tile.splits == 1:
            return 0, number
        tiles = self.product.blocks(self.joint)
        return held(tirx.floordiv(number, tiles)), held(tirx.floormod(number, tiles))

    def _own_steps(self) -> tuple[Expr, Expr]:
        """The first step of the part, and how many it has: as many as the others, or one more."""
        splits = self.tile.splits
        if splits == 1:
            return 0, self.steps
        first = held(tirx.floordiv(self.split * self.steps, splits))
        return first, held(tirx.floordiv((self.split + 1) * self.steps, splits) - first)

    def _give_registers(self, number: int, *, more: bool) -> None:
        # With fewer warpgroups everybody may have as many as there are.
        if self.consumers == 2:
            bulk.registers(number, more=more)

    # --- the ring
    def _barrier(self, first: Expr, stage: Expr) -> Expr:
        return ptx.moved(first, stage * BARRIER)

    def _advance(self) -> None:
        following = held(self.ring[0] + 1)
        wraps = held(tirx.Cast("int32", tirx.EQ(following, self.tile.stages)))
        self.ring.store(0, following - wraps * self.tile.stages)
        self.ring.store(1, tirx.bitwise_xor(self.ring[1], wraps))

    def _stage(self, stage: Expr) -> Expr:
        return ptx.moved(self.memory, stage * self.tile.stage_bytes)

    @property
    def _right_start(self) -> int:
        return self.tile.rows * self.tile.chunks * ptx.CHUNK

    # --- copies
    def _copy(self, batch: Expr, row: Expr, column: Expr) -> None:
        size = self.tile.cluster
        share = held(self.rank * (self.tile.columns // size)) if size > 1 else as_expr(0)
        left = self._copier(0, self.product.left, batch, row)
        right = self._copier(1, self.product.right, batch, held(column + share), size)
        first, steps = self._own_steps()
        with ptx.rolled(steps) as step:
            stage = held(self.ring[0])
            bulk.barrier_wait(self._barrier(self.emptied, stage), tirx.bitwise_xor(self.ring[1], 1))
            filled = held(self._barrier(self.filled, stage))
            bulk.barrier_expect(filled, self.tile.stage_bytes)
            at, k = held(self._stage(stage)), held((first + step) * self.depth)
            left(at, filled, k)
            right(ptx.moved(at, self._right_start + share * (self.tile.chunks * ptx.CHUNK)), filled, k)
            self._advance()

    def _copier(
        self, number: int, operand: Operand, batch: Expr, line: Expr, blocks: int = 1
    ) -> Callable[[Expr, Expr, Expr], None]:
        """The copies of an operand's lines, to so many blocks: a function of the address, the barrier and the summed
        index. Each of these blocks copies its part of the lines for all."""
        tensor = operand.tensor
        assert tensor is not None
        rank = len(tensor.sizes)
        panels = self.tile.columns // blocks // PANEL if operand.across else 1
        mask = (1 << blocks) - 1 if blocks > 1 else None
        places = [tensor.places(batch, line + panel * PANEL) for panel in range(panels)]

        def copy(at: Expr, filled: Expr, k: Expr) -> None:
            for panel, place in enumerate(places):
                to = ptx.moved(at, panel * self._panel_bytes)
                bulk.tensor_copy(to, self.maps[number], filled, [held(x) for x in place(k)], rank, mask)

        return copy

    @property
    def _panel_bytes(self) -> int:
        return self.depth * PANEL * 2

    # --- products
    def _multiply(self, sums: Any) -> None:
        count = int(sums.size)
        with ptx.unrolled(count) as i:
            sums.store(i, tirx.const(0.0, "float32"))
        read = private(1, "int32")  # the stage whose products may be in flight
        _, steps = self._own_steps()
        with ptx.rolled(steps) as step:
            stage = held(self.ring[0])
            bulk.barrier_wait(self._barrier(self.filled, stage), self.ring[1])
            self._begin(sums, held(self._stage(stage)))
            ptx.wgmma_pending(1)
            with when(step > 0):
                self._release(read[0])
            read.store(0, stage)
            self._advance()
        ptx.wgmma_wait(sums, count)
        with when(None if is_fixed(steps) else steps > 0):
            self._release(read[0])

    def _begin(self, sums: Any, stage: Expr) -> None:
        across = self.product.right.across
        line = self.tile.chunks * ptx.CHUNK
        left = held(descriptor(ptx.moved(stage, self.group * (ROWS * line)), ptx.CHUNK))
        leading = self._panel_bytes if across else ptx.CHUNK
        right = held(descriptor(ptx.moved(stage, self._right_start), leading))
        ptx.wgmma_begin(sums, int(sums.size))
        for k in range(line // 32):
            # Along a line an instruction takes 32 bytes; across, 16 lines of 128.
            moved = (k * 2, k * (2048 // 16 if across else 2))
            descriptors = [part + tirx.const(by, "uint64") for part, by in zip((left, right), moved, strict=True)]
            ptx.wgmma(self.product.kind, sums, self.tile.columns, *descriptors, across=across)
        ptx.wgmma_end_group()

    def _release(self, stage: Expr) -> None:
        """This warp has read a stage."""
        barrier, size = self._barrier(self.emptied, stage), self.tile.cluster
        with when(self.lane < size):
            if size > 1:
                bulk.barrier_arrive_at(barrier, self.lane)
            else:
                bulk.barrier_arrive(barrier)

    # --- results
    def _destination(self) -> tuple[Product, Destination]:
        """Where the sums go."""
        if self.partial is None:
            return self.product, self.epilogue
        split = self.split
        bare = replace(
            self.product, place=lambda batch, row, column: (split, batch, row, column), run=self.product.columns,
            row_bias=None, column_bias=None,
        )  # fmt: skip
        return bare, self.partial

    def _store(self, sums: Any, batch: Expr, row: Expr, column: Expr) -> None:
        own_row = held(row + tirx.floordiv(self.thread, 32) * 16)
        group, pair = tirx.floordiv(self.lane, 4), tirx.floormod(self.lane, 4)
        rows = Rows(self.own_sums, self.panel, self.pitch)
        product, epilogue = self._destination()
        with ptx.unrolled(self.tile.columns // self.panel) as panel:
            ptx.sync_warp()
            with ptx.unrolled(self.panel // 8) as j, ptx.unrolled(2) as lower:
                at = (panel * (self.panel // 8) + j) * 4 + lower * 2
                offset = (group + lower * 8) * self.pitch + (j * 8 + pair * 2) * 4
                ptx.store_shared_pair(ptx.moved(self.own_sums, offset), [sums[at], sums[at + 1]])
            ptx.sync_warp()
            first = held(column + panel * self.panel)
            store_rows(product, self.joint, epilogue, rows, batch, own_row, first, self.lane, 32)
