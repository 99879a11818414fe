"""A convolution and the depthwise one behind it as one kernel: the map between them never leaves the cache.

Worth it where that map outgrows L2 (MobileNetV2's 96 channels on 112x112 are 4.8 MB). The rows of outputs of all
panel groups (a few blocks of 16 channels) are one long list that the threads cut into pieces. For each row, the rows
of the map that it reads and the one before did not are convolved into a ring of as many rows as the filter is high,
rounded up to a power of two, a few 10 KB per thread; then the depthwise row is taken from there. A piece begins with
all rows that its first output reads. Where the first convolution pads its input, the padded rows of that go through a
ring of their own just before they are read: a thread reads nothing that another wrote.

The same sums as of the two kernels alone. Limited by the first convolution's multiply-adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered, make_group
from transpiler.ops.blocked_conv import BlockedConv, ConvBlocked, ConvDepthwise, ConvStem
from transpiler.target import Target

from ..fuse import lowered
from ..sizes import extent, is_large, is_several
from ..tir import LANES, Buffer, KernelBuilder, Operands, local, own_turns
from ..vectors import held
from . import conv_blocked, conv_depthwise
from .convolution import Convolution, convolution
from .epilogue import Epilogue
from .gemm import choose_tile
from .padding import pad_row

Expr = Any

# Rings in the workspace: the threads of a pool beyond it would have nothing to do.
STRIPS = 16


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    first = next((node for node in group.prologue if isinstance(node.op, ConvBlocked | ConvStem)), None)
    if first is None or group.anchor_node is None:
        return None
    middle = group.anchor_node.inputs[0]
    # How the second one's weights are stored is said before it.
    own = {value.name for value in group.anchor_node.inputs[1:]}
    stored = tuple(node for node in group.prologue if node.outputs[0].name in own)
    rest = tuple(node for node in group.prologue if node not in stored)
    before = convolution(make_group(rest, (middle,)), ConvBlocked, ConvStem)
    after = convolution(make_group((*stored, group.anchor_node, *group.epilogue), group.outputs), ConvDepthwise)
    if before is None or after is None:
        return None
    pair = _Pair(target, before, after)
    builder = KernelBuilder(
        name, [value.type for value in group.inputs], [group.outputs[0].type], workspace=pair.workspace
    )
    with builder:
        pair.emit(group, builder)
    flops = before.images * (pair.geometry.image_flops + conv_depthwise.image_flops(after))
    return lowered(group, builder, flops=flops, workspace=pair.workspace * 4)


@dataclass
class _Operands:
    """The buffers of a part of a group."""

    inputs: list[Buffer]
    outputs: list[Buffer]
    status: Buffer | None = None


@dataclass(frozen=True)
class _Ring:
    """Rows of the map between: [panels][rows][width] vectors, row r of a map at r % rows, from vector `base` on."""

    base: Expr
    rows: int
    width: int

    def line(self, panel: Expr, row: Expr) -> Expr:
        return self.base + (panel * self.rows + tirx.floormod(row, self.rows)) * self.width


@dataclass(frozen=True)
class _PaddedRows:
    """Rows of a convolution's padded input: [planes of an image][rows][width] pixels of `lanes` elements, row r at
    r % rows, from pixel `base` of `ring` on."""

    conv: Convolution[BlockedConv]
    geometry: conv_blocked.Geometry
    source: Buffer
    ring: Buffer
    base: Expr
    rows: int
    known: Buffer  # one number: the rows before it were copied, as far as they are read

    def line(self, plane: Expr, row: Expr) -> Expr:
        return self.base + (plane * self.rows + tirx.floormod(row, self.rows)) * self.geometry.width

    def forget(self, when: Expr) -> None:
        self.known.store(0, tirx.if_then_else(when, 0, self.known[0]))

    def read(self, image: Expr, out_row: Expr) -> None:
        """Copy what row `out_row` of the result is the first to read."""
        g = self.geometry
        low = held(out_row * g.stride[0])
        begin, end = held(tirx.max(low, self.known[0])), low + _reach(self.conv.op)
        size = self.conv.height, self.conv.width
        with T.serial(0, end - begin) as number, T.serial(0, self.conv.inner) as plane:
            row = held(begin + number)
            start = held(self.line(plane, row) * g.lanes)
            of_source = image * self.conv.inner + plane
            # The next row of the result begins to read so many rows later; until then there is time.
            ahead = g.stride[0]
            pad_row(self.source, self.ring, start, of_source, row, size, self.conv.op.padding, g.lanes, ahead)
        self.known.store(0, end)


def _reach(op: BlockedConv) -> int:
    """Rows from the first to the last that a result reads."""
    return (op.kernel[0] - 1) * op.dilation[0] + 1


def _ring_rows(reach: int) -> int:
    return 1 << (reach - 1).bit_length()


class _RingEpilogue(Epilogue):
    """Writes row `row` to a ring, panels counted from `panel`."""

    def __init__(self, group: Group, operands: Operands, ring: _Ring, panel: Expr, row: Expr) -> None:
        super().__init__(group, operands)
        self._panel, self._start, self._plane = panel, held(ring.line(0, row) * LANES), ring.rows * ring.width

    def place(self, index: Sequence[Expr]) -> Expr:
        _, block, _, column, lane = index
        return self._start + ((block - self._panel) * self._plane + column) * LANES + lane


class _Pair:
    def __init__(
        self,
        target: Target,
        before: Convolution[BlockedConv],
        after: Convolution[ConvDepthwise],
    ) -> None:
        self.target, self.before, self.after = target, before, after
        self.geometry = conv_blocked.geometry_of(before)
        self.width, self.height = before.out_width, before.out_height
        # Padded rows are copied for every panel group, a plain map's are addressed for each: few groups.
        depth = None if any(before.op.padding) or self.geometry.lanes == 1 else self.geometry.depth
        self.tile = choose_tile(target.isa, self.width, after.inner, depth)
        self.reach, self.ring_rows = _reach(after.op), _ring_rows(_reach(after.op))
        self.ring_size = self.tile.panels * self.ring_rows * self.width * LANES
        self.padded_rows, self.padded_size = 0, 0
        if any(before.op.padding):
            self.padded_rows = _ring_rows(_reach(before.op))
            size = before.inner * self.padded_rows * self.geometry.width * self.geometry.lanes
            self.padded_size = -(-size // LANES) * LANES
        self.workspace = STRIPS * (self.ring_size + self.padded_size)

    def emit(self, group: Group, builder: KernelBuilder) -> None:
        rings = builder.scratch(STRIPS * self.ring_size)
        parts = self.before.group, self.after.group
        middle = self.after.node.inputs[0].name
        own = [
            [rings if value.name == middle else builder.inputs[group.input_index(value)] for value in part.inputs]
            for part in parts
        ]
        into, out = _Operands(own[0], [rings]), _Operands(own[1], builder.outputs)
        source, weight, bias = self.before.operands(into)
        padding = builder.scratch(STRIPS * self.padded_size) if self.padded_size else None
        full, rest = divmod(self.after.inner, self.tile.panels)
        rows = self.after.out_height
        groups = full + (rest > 0)
        count = extent(self.before.images) * groups * rows
        work = self.geometry.image_flops + conv_depthwise.image_flops(self.after)
        with own_turns(STRIPS, parallel=is_large(work)) as (strip, number):
            begin = held(tirx.floordiv(strip * count, STRIPS))
            end = held(tirx.floordiv((strip + number) * count, STRIPS))
            ring = _Ring(strip * (self.ring_size // LANES), self.ring_rows, self.width)
            padded = None
            if padding is not None:
                base = held(strip * (self.padded_size // self.geometry.lanes))
                known = local(1, "int32")
                padded = _PaddedRows(self.before, self.geometry, source, padding, base, self.padded_rows, known)
            with T.serial(0, end - begin) as step:
                turn = begin + step
                row, task = held(tirx.floormod(turn, rows)), tirx.floordiv(turn, rows)
                image = held(tirx.floordiv(task, groups)) if is_several(self.before.images) else 0
                panel = held(tirx.floormod(task, groups) * self.tile.panels)
                # What the row before left in the ring: all but what comes new with every row.
                fresh = tirx.any(tirx.EQ(step, 0), tirx.EQ(row, 0))
                if padded is not None:
                    padded.forget(fresh)

                def rows_of(panels: int) -> None:
                    with self._new_rows(row, fresh) as line:
                        epilogue = _RingEpilogue(self.before.group, into, ring, panel, line)
                        emitter = conv_blocked.Emitter(self.geometry, source, weight, bias, epilogue, pointwise=False)
                        if padded is not None:
                            padded.read(image, line)
                            emitter = replace(emitter, source=padded.ring, lines=padded.line)
                        self._convolve(emitter, panels, image if padded is None else 0, panel, line)
                    with T.serial(0, panels) as p:
                        self._depthwise(out, ring, p, image, panel + p, row)

                if not rest or not full:
                    rows_of(self.tile.panels if full else rest)
                else:
                    with T.If(panel < full * self.tile.panels):
                        with T.Then():
                            rows_of(self.tile.panels)
                        with T.Else():
                            rows_of(rest)

    @contextmanager
    def _new_rows(self, row: Expr, fresh: Expr) -> Iterator[Expr]:
        """The rows of the map that row `row` of the outputs is the first to read."""
        op = self.after.op
        low = held(row * op.stride[0] - op.padding[0])
        known = max(self.reach - op.stride[0], 0)
        begin = held(tirx.max(tirx.if_then_else(fresh, low, low + known), 0))
        end = tirx.min(low + self.reach, self.height)
        with T.serial(0, tirx.max(end - begin, 0)) as number:
            yield held(begin + number)

    def _convolve(self, emitter: conv_blocked.Emitter, panels: int, image: Expr, panel: Expr, line: Expr) -> None:
        """A row of the map."""
        full, rest = divmod(self.width, self.tile.rows)
        if full:
            with T.serial(0, full) as part:
                emitter.tile(panels, image, panel, line, 1, part * self.tile.rows, self.tile.rows, LANES)
        if rest:
            emitter.tile(panels, image, panel, line, 1, full * self.tile.rows, rest, LANES)

    def _depthwise(self, operands: Operands, ring: _Ring, p: Expr, image: Expr, block: Expr, row: Expr) -> None:
        conv = self.after
        emitter = conv_depthwise.Emitter(
            conv.op, conv.height, conv.width, *conv.operands(operands), Epilogue(conv.group, operands), ring.line
        )
        run = conv_depthwise.run_length(self.target, conv.out_width)
        emitter.row(p, image, block, row, conv.out_width, run)
