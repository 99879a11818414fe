"""Depthwise convolution of maps with their channels last: a thread computes a patch of outputs of up to four channels.

Neighbouring threads have neighbouring channels, so that what a warp loads and stores lies side by side. The taps lie in
registers, and an element of the window is loaded once for all the taps and outputs that it serves: of a 3x3 kernel with
a patch of 2x4, 24 loads of 16 bytes for 72 multiply-adds of four channels. Limited by loads.
"""

from __future__ import annotations

import itertools
from typing import Any

from tvm import tirx

from transpiler.group import Group, Lowered
from transpiler.ops.channels_last import ConvLast
from transpiler.ops.dtypes import numpy_dtype
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..fuse import lowered
from ..gpu.threads import each_thread
from ..gpu.workgroup import private
from ..scalar import Tir
from ..sizes import ceil_div, count, extents, is_empty
from ..tir import KernelBuilder, unflatten, when
from ..vectors import held
from . import ptx
from .epilogue import RunEpilogue
from .operands import bias_of, only_widens, widened

Expr = Any
THREADS = 128
PATCH = (2, 4)
VECTOR = 4  # channels of a thread, where there are multiples of that
MOST_TAPS = 9  # that registers hold; larger kernels load them as they need them
MOST_LOADS = 200  # of a window, which are written one by one


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, ConvLast) or not only_widens(group) or not elementwise_epilogue(group):
        return None
    weight = node.inputs[1].type.static_shape()
    if weight[-1] != 1 or node.op.groups == 1 or len(weight) != 4 or node.output.dtype != "float32":
        return None
    spans = window(node.op, weight[1:3])
    if count(spans) > MOST_LOADS:
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    with builder:
        if not is_empty(node.output.type.shape):
            _Depthwise(group, builder, node.op, weight).emit()
    return lowered(group, builder, flops=2 * count(node.output.type.shape) * count(weight[1:3]))


def window(op: ConvLast, kernel: tuple[int, ...]) -> list[int]:
    """Rows and columns of the map that a patch of outputs reads."""
    return [
        (length - 1) * step + (taps - 1) * gap + 1
        for length, step, taps, gap in zip(PATCH, op.stride, kernel, op.dilation, strict=True)
    ]


class _Depthwise:
    def __init__(self, group: Group, builder: KernelBuilder, op: ConvLast, weight: tuple[int, ...]) -> None:
        node = group.anchor_node
        assert node is not None
        self.op, self.kernel = op, weight[1:3]
        self.source, self.weights = (
            builder.inputs[group.input_index(widened(group, value))] for value in node.inputs[:2]
        )
        self.bias = bias_of(group, builder, node)
        self.epilogue = RunEpilogue(group, builder)
        self.images, self.height, self.width, self.channels = extents(node.inputs[0].type.shape)
        *_, self.out_height, self.out_width, self.out_channels = extents(node.output.type.shape)
        # Several output channels of one input channel are computed one by one.
        self.size = VECTOR if self.channels == self.out_channels and self.channels % VECTOR == 0 else 1
        self.s = Tir(statements=False)

    def emit(self) -> None:
        rows, columns = PATCH
        down, across = ceil_div(self.out_height, rows), ceil_div(self.out_width, columns)
        turns = (self.images, down, across, self.out_channels // self.size)
        with each_thread(self.images * down * across * (self.out_channels // self.size), THREADS) as thread:
            image, y, x, part = (held(i) for i in unflatten(thread, turns))
            self.image, self.first, self.channel = image, (held(y * rows), held(x * columns)), held(part * self.size)
            self.sums = private(rows * columns * self.size)
            with ptx.unrolled(self.size) as e:
                begin = held(tirx.const(0.0, "float32") if self.bias is None else self.bias(self.channel + e))
                with ptx.unrolled(rows * columns) as i:
                    self.sums.store(i * self.size + e, begin)
            self._multiply()
            self._store()

    def _multiply(self) -> None:
        """Row by row of the window, and column by column."""
        op, (rows, columns) = self.op, PATCH
        spans = window(op, self.kernel)
        corner = [held(f * step - pad) for f, step, pad in zip(self.first, op.stride, op.padding, strict=True)]
        taps = self._taps() if count(self.kernel) <= MOST_TAPS else None
        values = private(self.size, self.source.dtype)
        start = held(self.image * self.height)
        for y, x in itertools.product(range(spans[0]), range(spans[1])):
            uses = self._uses(y, x, rows, columns)
            if not uses:
                continue
            row, column = held(corner[0] + y), held(corner[1] + x)
            fits = _all(row >= 0, row < self.height, column >= 0, column < self.width)
            with ptx.unrolled(self.size) as e:
                values.store(e, self.s.const(0, self.source.dtype))
            with when(fits):
                inner = self.channel if self.size > 1 else tirx.floordiv(
                    self.channel, self.out_channels // self.channels
                )  # fmt: skip
                place = held(((start + row) * self.width + column) * self.channels + inner)
                self._load(values, place)
            with ptx.unrolled(self.size) as e:
                value = held(self.s.cast(values[e], "float32"))
                for number, tap in uses:
                    at = number * self.size + e
                    weight = taps[tap * self.size + e] if taps is not None else self._tap(tap, e)
                    self.sums.store(at, self.sums[at] + value * weight)

    def _load(self, values: Any, place: Expr) -> None:
        if self.size == 1:
            values.store(0, self.source[place])
        else:
            ptx.move(values, 0, self.source, place, self.size * int(numpy_dtype(self.source.dtype).itemsize))

    def _taps(self) -> Any:
        number = int(count(self.kernel))
        taps = private(number * self.size)
        with ptx.unrolled(number) as tap, ptx.unrolled(self.size) as e:
            taps.store(tap * self.size + e, self._tap(tap, e))
        return taps

    def _tap(self, tap: Expr, e: Expr) -> Expr:
        return self.s.cast(self.weights[(self.channel + e) * int(count(self.kernel)) + tap], "float32")

    def _uses(self, y: int, x: int, rows: int, columns: int) -> list[tuple[int, int]]:
        """(output of the patch, tap) pairs that read the window's element at (y, x)."""
        found = []
        for i, j in itertools.product(range(rows), range(columns)):
            offsets = [at - place * step for at, place, step in zip((y, x), (i, j), self.op.stride, strict=True)]
            pairs = list(zip(offsets, self.op.dilation, self.kernel, strict=True))
            if all(offset >= 0 and offset % gap == 0 and offset // gap < taps for offset, gap, taps in pairs):
                tap = offsets[0] // self.op.dilation[0] * self.kernel[1] + offsets[1] // self.op.dilation[1]
                found.append((i * columns + j, tap))
        return found

    def _store(self) -> None:
        rows, columns = PATCH
        with ptx.unrolled(rows) as i, ptx.unrolled(columns) as j:
            row, column = held(self.first[0] + i), held(self.first[1] + j)
            with when(tirx.And(row < self.out_height, column < self.out_width)):
                self.epilogue.store_run(
                    lambda e: [self.image, row, column, self.channel + e],
                    lambda e: self.sums[(i * columns + j) * self.size + e],
                    self.size,
                )


def _all(*conditions: Expr) -> Expr:
    found = conditions[0]
    for condition in conditions[1:]:
        found = tirx.And(found, condition)
    return found
