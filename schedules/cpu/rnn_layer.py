"""A recurrent layer of one row (LSTM, GRU, tanh/ReLU RNN): the products of its inputs and the scan behind them as one
kernel.

A scan of one row waits for its weights: at most one vector comes from L2 in two cycles, where a processor could
do a multiply-add in each. The products of the inputs need many multiply-adds for few bytes. So while the scan goes
through a block of steps, the multiply-adds of the products of the next block stand between its own: the same
inner loop has both, and the processor finds them in its window.

A panel of 16 units does G * m products of one column panel, G gates, that is a block has G * m steps (16 for LSTM, 12
for GRU), a tile of that many rows is one register each, and in every step one m-th of K is added to the tile of one
gate. A tile waits in the workspace between the steps, and is read there by the same panel of the same thread. Two
blocks take turns. The first block's products stand alone; the last block ends with the last step, so that it
computes some rows again where the steps are no multiple of a block.

Where the registers do not suffice (everything but AVX-512), the products come first, then the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered, make_group
from transpiler.ir import Node, Value
from transpiler.ops.packed import LinearPacked
from transpiler.target import Target

from ..fuse import lowered
from ..halves import computed, operand
from ..sizes import smaller
from ..tir import LANES, Buffer, KernelBuilder, own_turns
from ..vectors import Registers, held
from .epilogue import Epilogue
from .gemm import register_budget
from .linear import product_of
from .product import emit_product
from .rnn import GATES, Scan

Expr = Any

EPILOGUE = False
PROLOGUE = False
# Sums of the scan that hide the latency of a multiply-add, since weights come for one in two cycles and other
# multiply-adds stand between.
LATENCY = 4
# Rows of a tile at most.
TILE = 16
# Vectors of the scan's weights in the inner loop at most: beyond it, the code outgrows its cache.
UNROLLED = 64


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node, nodes = group.anchor_node, computed(group)
    if node is None or len(nodes) != 2 or node.op.name not in GATES or not isinstance(nodes[0].op, LinearPacked):
        return None
    layer = _Layer(nodes[0], node, target)
    builder = KernelBuilder(
        name,
        [value.type for value in group.inputs],
        [value.type for value in group.outputs],
        workspace=layer.workspace,
    )

    def buffer(value: Value) -> Buffer:
        return operand(group, builder, value)

    with builder:
        layer.emit_layer(builder, buffer)
    return lowered(
        group, builder, flops=layer.flops + layer.product_flops, reread=layer.reread, workspace=layer.workspace * 4
    )


@dataclass
class _Alone:
    """The buffers of the linear layer in the kernel."""

    outputs: list[Buffer]
    inputs: list[Buffer] = field(default_factory=list)
    status: Buffer | None = None


class _Layer(Scan):
    """T steps, one row, H units, K inputs."""

    def __init__(self, linear: Node, scan: Node, target: Target) -> None:
        super().__init__(scan.op, scan.outputs[0].shape, "float32", target)
        self.target, self.linear, self.scan = target, linear, scan
        self.depth = linear.inputs[0].type.static_shape()[-1]
        self.product_flops = 2 * self.steps * self.gates * self.units * self.depth
        # A panel's share of a gate's K in a step, and the number of them.
        self.parts = 1 << ((TILE // self.gates).bit_length() - 1)
        self.part = -(-self.depth // self.parts)
        self.block = self.gates * self.parts
        self.blocks = -(-self.steps // self.block)
        split = max(1, LATENCY // self.gates)
        self.overlaps = (
            self.block + self.gates * split + 2 <= register_budget(target.isa)
            and self.steps >= self.block
            and self.part * split <= self.units
            and not self.units % LANES
        )
        if self.overlaps:
            self.split = split
        self.tile_size = self.block * LANES
        self.block_size = self.panels * self.gates * self.tile_size
        self.workspace += 2 * self.block_size if self.overlaps else self.steps * self.gates * self.units

    def emit_layer(self, builder: KernelBuilder, buffer: Callable[[Value], Buffer]) -> None:
        self.a, self.b, *offset = map(buffer, self.linear.inputs)
        self.offset = offset[0] if offset else None
        others = [buffer(value) for value in self.scan.inputs[1:]]
        self.products = builder.scratch(2 * self.block_size if self.overlaps else self.steps * self.gates * self.units)
        if not self.overlaps:
            self._emit_product()
            self.emit(builder, [self.products, *others])
            return
        self.begin(builder, [self.products, *others])
        self._first_block()
        overlapped = (self.blocks - 1) * self.block
        for first, number, ahead in ((0, overlapped, True), (overlapped, self.steps - overlapped, False)):
            if number:
                with T.serial(0, number) as count:
                    self._ahead = ahead
                    self._count = first + count
                    self.step(first + count)
        self.end(builder)

    def _emit_product(self) -> None:
        """All products of the inputs."""
        alone = make_group((self.linear,), self.linear.outputs)
        epilogue = Epilogue(alone, _Alone([self.products]))
        emit_product(self.target.isa, product_of(self.linear, self.a, self.b, self.offset, epilogue))

    def _place(self, block: Expr, panel: Expr, gate: Expr) -> Expr:
        """Where the products of a block, a panel and a gate lie, row after row."""
        size = self.panels * self.gates
        return (tirx.floormod(block, 2) * size + panel * self.gates + gate) * self.tile_size

    def _first_row(self, block: Expr) -> Expr:
        """The step that a block begins with."""
        return smaller(block * self.block, self.steps - self.block)

    def _adding(self, sums: Registers, block: Expr, panel: Expr, gate: Expr) -> Callable[[Expr, int, int], None]:
        """A function that adds the products of `k` to rows `start` to `stop` of a tile."""
        first = self._first_row(block)
        way = -1 if self.op.reverse else 1
        row_0 = held((self.steps - 1 - first if self.op.reverse else first) * self.depth)
        column = held((gate * self.panels + panel) * self.depth)

        def add(k: Expr, start: int, stop: int) -> None:
            weight = held(self.v.load(self.b, (column + k) * LANES))
            for row in range(start, stop):
                sums[row] = sums[row] + self.v.splat(self.a[row_0 + k + way * row * self.depth]) * weight

        return add

    def _first_block(self) -> None:
        with (
            own_turns(self.panels, parallel=self.is_split()) as (first, number),
            T.serial(0, number) as turn,
            T.serial(0, self.gates) as gate,
        ):
            panel = held(first + turn)
            sums = Registers(self.v, self.block)
            sums.fill(0.0)
            add = self._adding(sums, 0, panel, gate)
            with T.serial(0, self.depth) as k:
                add(k, 0, self.block)
            place = held(self._place(0, panel, gate))
            for row in range(self.block):
                self.v.store(self.products, place + row * LANES, sums[row])

    def sum_up(self, panel: Expr, groups: int, add: Callable[[Expr], None]) -> None:
        """With the products of the block after this one."""
        if not (self.overlaps and self._ahead):
            super().sum_up(panel, groups, add)
            return
        turn = held(tirx.floormod(self._count, self.block))
        gate, part = held(tirx.floordiv(turn, self.parts)), held(tirx.floormod(turn, self.parts))
        block = held(tirx.floordiv(self._count, self.block) + 1)
        sums = Registers(self.v, self.block)
        place = held(self._place(block, panel, gate))
        with T.If(tirx.EQ(part, 0)):
            with T.Then():
                sums.fill(0.0)
            with T.Else():
                for row in range(self.block):
                    sums[row] = self.v.load(self.products, place + row * LANES)
        add_products = self._adding(sums, block, panel, gate)
        even = not self.depth % self.parts
        turns = self.part if even else held(tirx.max(tirx.min(self.part, self.depth - part * self.part), 0))
        ratio = max(1, min(groups // self.part, UNROLLED // (self.gates * self.split)))
        with T.serial(0, turns) as count:
            for number in range(ratio):
                add(count * ratio + number)
                rows = (self.block * number // ratio, self.block * (number + 1) // ratio)
                add_products(part * self.part + count, *rows)
        if not even or self.part * ratio < groups:
            with T.serial(0, groups - turns * ratio) as rest:
                add(turns * ratio + rest)
        for row in range(self.block):
            self.v.store(self.products, place + row * LANES, sums[row])

    def inputs_of(self, step: Expr, row: Expr, panel: Expr, valid: int | None) -> list[Expr]:
        if not self.overlaps:
            return super().inputs_of(step, row, panel, valid)
        block = tirx.floordiv(self._count, self.block)
        place = held((self._count - self._first_row(block)) * LANES + self._place(block, panel, 0))
        vectors = []
        for gate in range(self.gates):
            vector = self.v.load(self.products, place + gate * self.tile_size)
            if self.offset is not None:
                vector = vector + self.v.load(self.offset, gate * self.units + panel * LANES)
            vectors.append(vector)
        return vectors
