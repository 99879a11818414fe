"""Depthwise convolution on NCHW16c: one vector of 16 channels per pixel, KH x KW multiply-adds; and grouped ones whose
groups of 2, 4 or 8 channels lie in a block, with G as many: the pixel's vector is shuffled so that every lane has its
group's first channel, second, and so on. (Zero weights for the others' channels would spread their NaN.)

A register tile is a run of output pixels of one row; each kernel position loads its weight vector once for the run.
Padding costs nothing: kernel rows outside of the map are left out by a condition per row, columns outside when the
kernel is built: the runs that reach beyond an edge are the first and last of a row. (A padded copy of the map, even
one channel block at a time, took as long as the convolution.) Limited by L1 loads: one input vector per multiply-add.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ir import fixed_size
from transpiler.ops.blocked_conv import ConvDepthwise
from transpiler.target import Target

from ..fuse import lowered
from ..sizes import extent, is_large, is_several
from ..tir import LANES, Buffer, KernelBuilder, local, loop, splat, when
from ..vectors import held
from .convolution import Convolution, convolution
from .epilogue import Epilogue
from .gemm import MAX_ROWS, register_budget

EPILOGUE = True

Expr = Any


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    conv = convolution(group, ConvDepthwise)
    if conv is None:
        return None
    op, n, cb, oh, ow = conv.op, conv.images, conv.inner, conv.out_height, conv.out_width
    kh, kw = op.kernel
    run = run_length(target, ow)
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    with builder:
        lines = partial(_line, conv.height, conv.width)
        emitter = Emitter(op, conv.height, conv.width, *conv.operands(builder), Epilogue(group, builder), lines)
        tasks = extent(n) * cb
        with loop(tasks, parallel=is_large(n * cb * oh * ow * kh * kw * op.group * LANES)) as task:
            block = task % cb if is_several(n) else task
            image = task // cb if is_several(n) else 0
            with T.serial(0, oh) as row:
                emitter.row(task, image, block, row, ow, run)
    return lowered(group, builder, flops=n * image_flops(conv))


def image_flops(conv: Convolution[ConvDepthwise]) -> int:
    """Operations of an image."""
    return 2 * conv.op.channels * conv.op.group * taps_inside(conv.op, conv.height, conv.width)


def taps_inside(op: ConvDepthwise, height: int, width: int) -> int:
    """Multiply-adds of a channel: positions of the kernel that lie in the map, over all outputs."""
    counts = []
    for axis, size, out in zip((0, 1), (height, width), op.output_map(height, width), strict=True):
        kernel, stride, dilation, before = op.kernel[axis], op.stride[axis], op.dilation[axis], op.padding[axis]
        places = (o * stride + k * dilation - before for o in range(fixed_size(out)) for k in range(kernel))
        counts.append(sum(0 <= place < size for place in places))
    return counts[0] * counts[1]


def run_length(target: Target, width: int) -> int:
    """Pixels of a register tile."""
    return min(width, MAX_ROWS, max(2, register_budget(target.isa) - 3))


def _line(height: int, width: int, plane: Expr, line: Expr) -> Expr:
    return (plane * height + line) * width


@dataclass(frozen=True)
class Emitter:
    """Writes rows of outputs; `lines(plane, line)` is the vector of `source` that a line of a plane begins at."""

    op: ConvDepthwise
    height: int
    width: int
    source: Buffer
    weight: Buffer
    bias: Buffer | None
    epilogue: Epilogue
    lines: Callable[[Expr, Expr], Expr]

    def reads_inside(self, column: int) -> bool:
        """Whether all columns that an output column reads are in the map."""
        first = column * self.op.stride[1] - self.op.padding[1]
        return first >= 0 and first + (self.op.kernel[1] - 1) * self.op.dilation[1] < self.width

    def of_group(self, vector: Expr, channel: int) -> Expr:
        """In every lane, channel number `channel` of its group."""
        group = self.op.group
        if group == 1:
            return vector
        return tirx.Shuffle([vector], [tirx.const(lane // group * group + channel, "int32") for lane in range(LANES)])

    def row(self, plane: Expr, image: Expr, block: Expr, row: Expr, width: int, run: int) -> None:
        """A row of outputs: the runs within the map as a loop, those beside it one by one."""
        starts = list(range(0, width, run))
        inner = [
            start // run
            for start in starts
            if start + run <= width and all(map(self.reads_inside, range(start, start + run)))
        ]
        for start in starts:
            if start // run not in inner:
                self.pixels(plane, image, block, row, start, min(run, width - start))
            elif start // run == inner[0]:
                with T.serial(0, len(inner)) as step:
                    self.pixels(plane, image, block, row, (inner[0] + step) * run, run)

    def pixels(self, plane: Expr, image: Expr, block: Expr, row: Expr, column: Expr, count: int) -> None:
        """A run of `count` outputs; `column` is an int where the run may read beside the map."""
        (kh, kw), (sh, sw), (dh, dw), (top, left, _, _) = (
            self.op.kernel, self.op.stride, self.op.dilation, self.op.padding,
        )  # fmt: skip
        accumulators = local(count * LANES)
        for number in range(count):
            start = self.bias.vector(block * LANES) if self.bias is not None else splat(0.0)
            accumulators.store_vector(number * LANES, start)
        with T.serial(0, kh) as y:
            line = row * sh + y * dh - top
            with when(tirx.all(line >= 0, line < self.height) if any(self.op.padding[::2]) else None):
                start = held((self.lines(plane, line) + column * sw) * LANES)
                for x, channel in product(range(kw), range(self.op.group)):
                    tap = ((block * kh + y) * kw + x) * self.op.group + channel
                    factor = T.bind(self.weight.vector(tap * LANES))
                    for number in range(count):
                        place = number * sw + x * dw - left
                        if isinstance(column, int) and not 0 <= column * sw + place < self.width:
                            continue
                        value = self.of_group(self.source.vector(start + place * LANES), channel)
                        total = accumulators.vector(number * LANES) + value * factor
                        accumulators.store_vector(number * LANES, total)

        def index(number: Expr, lane: Expr) -> list[Expr]:
            return [image, block, row, column + number, lane]

        def element(number: int, lane: Expr) -> Expr:
            return accumulators[number * LANES + lane]

        for number in range(count):
            self.epilogue.write(partial(index, number), partial(element, number), LANES)
        if self.epilogue.in_place:
            with T.serial(0, count) as later:
                self.epilogue.finish(partial(index, later), LANES)
