"""3x3 convolution of stride 1 or 2 on NCHW16c by Winograd's F(M x M, 3 x 3).

Three steps: the map's tiles at their points, (M+2)^2 at unit stride (V), a product per point with the packed filters
(the register tile of `gemm.py`, rows are tiles), and the outputs from the products (P) with the epilogue. Two loop
nests:

* many tiles: the threads share blocks of as many tiles as a register tile has rows. V of a block and P of one panel
  group stay in L2, the filters are read once per block.
* few tiles (small maps, where the filters are the larger part): V of the whole map first, the threads share its rows;
  then they share panel groups, so that each filter is read once.

Limited by the products' multiply-adds; the transforms add about a tenth at 64 channels, less beyond. V lies point by
point and P tile by tile: so there are gaps between what is stored, which can wait, and none between what is loaded.
Strides are odd numbers of vectors, so that what is stored falls into different sets of the cache.

A tile whose result is not finite is computed again as a direct sum, with the filter recovered from its values at the
points: infinities would spread over the whole tile otherwise, and large values might overflow on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.packed import blocks
from transpiler.ops.winograd import ConvWinograd, filter_from_rows
from transpiler.target import Target

from ..fuse import lowered
from ..scalar import Tir
from ..sizes import extent, is_large, is_several
from ..tir import LANES, Buffer, KernelBuilder, local, loop, splat, when
from .convolution import convolution
from .epilogue import Epilogue
from .gemm import Accumulators, Tile, steps
from .winograd import (
    Factors,
    Lines,
    input_line,
    operations,
    output_line,
    stored,
    strided_input_line,
    strided_output_line,
    transform_factors,
)
from .winograd_plan import Geometry, Plan, make_plan, tall_tile

EPILOGUE = True

Expr = Any

# Vectors of a panel's filters that are fetched into L2 ahead of their use. Into L1 (32 ahead) was slower than nothing.
AHEAD = 128
# Scales a result so that sums of such stay finite if all of them are.
CHECK = 2.0**-10


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    conv = convolution(group, ConvWinograd)
    if conv is None:
        return None
    op, n, oh, ow = conv.op, conv.images, conv.out_height, conv.out_width
    top, left, _, _ = op.padding
    g = Geometry(
        extent(n), conv.inner, op.in_channels, conv.height, conv.width,
        blocks(op.channels), oh, ow, (top, left), op.stride[0], op.tile,
    )  # fmt: skip
    tile = tall_tile(target.isa, g)
    plan = make_plan(g, tile)
    factors = sorted({CHECK, *transform_factors(g.tile), *filter_factors(g)})
    size = -(-len(factors) // LANES) * LANES + plan.workspace
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type], workspace=size)
    with builder:
        emitter = _Emitter(
            g, tile, plan, *conv.operands(builder), Epilogue(group, builder),
            Factors(builder.scratch(len(factors)), factors), builder.scratch(plan.workspace),
        )  # fmt: skip
        parallel = is_large(g.tiles * g.points * g.in_blocks * g.out_blocks * LANES)
        with T.serial(0, g.batch) if is_several(g.batch) else T.serial(0, 1) as image:
            if plan.many:
                emitter.share_tiles(image, parallel)
            else:
                emitter.share_panels(image, parallel)
    return lowered(group, builder, flops=n * _image_flops(g, op.channels), workspace=size * 4)


def _image_flops(g: Geometry, channels: int) -> int:
    """Operations of an image: the products of all tiles, as many as are computed, and the transforms."""
    into, out = _transforms(g.stride)
    before = operations(into, g.tile, 2 * g.span, g.span) * g.in_channels
    after = operations(out, g.tile, g.span + g.tile, g.span) * channels
    return g.tiles * (2 * g.points * g.in_channels * channels + before + after)


def _transforms(stride: int) -> tuple[Callable[..., list[Expr]], Callable[..., list[Expr]]]:
    """Of a line of inputs and of a line of products."""
    return (input_line, output_line) if stride == 1 else (strided_input_line, strided_output_line)


@dataclass(frozen=True)
class _Emitter:
    g: Geometry
    tile: Tile
    plan: Plan
    source: Buffer
    weight: Buffer
    bias: Buffer | None
    epilogue: Epilogue
    factors: Factors
    scratch: Buffer

    def share_tiles(self, image: Expr, parallel: bool) -> None:
        """Tasks are runs of blocks of tiles."""
        plan = self.plan
        with loop(plan.strips, parallel=parallel) as strip:
            first = tirx.floordiv(strip * plan.blocks, plan.strips)
            last = tirx.floordiv((strip + 1) * plan.blocks, plan.strips)
            maps = strip * (plan.map_size + plan.product_size)
            with T.serial(0, last - first) as step:
                block = first + step

                def body(count: int) -> None:
                    with T.serial(0, self.g.in_blocks) as channel, T.serial(0, count) as row:
                        place = maps + channel * plan.rows + row
                        self.transform(image, channel, block * plan.rows + row, place)
                    groups, rest = divmod(self.g.out_blocks, plan.panels)
                    for panels, start, number in ((plan.panels, 0, groups), (rest, groups * plan.panels, 1)):
                        if panels and number:
                            with T.serial(0, number) as group:
                                panel = start + group * plan.panels
                                products = maps + plan.map_size
                                self.products(panel, panels, maps, plan.rows, count, products)
                                self.outputs(image, panel, panels, block * plan.rows, count, products)

                self.blocks(block, body)

    def share_panels(self, image: Expr, parallel: bool) -> None:
        """Tasks are first (channel block, row of tiles), then (panel group, block of tiles)."""
        g, plan = self.g, self.plan
        with loop(g.in_blocks * g.down, parallel=parallel) as task:
            channel, row = tirx.floordiv(task, g.down), tirx.floormod(task, g.down)
            with T.serial(0, g.across) as column:
                number = row * g.across + column
                self.transform(image, channel, number, channel * g.tiles + number)
        groups, rest = divmod(g.out_blocks, plan.panels)
        for panels, start, number in ((plan.panels, 0, groups), (rest, groups * plan.panels, 1)):
            if panels and number:
                self._panel_tasks(image, panels, start, number * plan.blocks, parallel)

    def _panel_tasks(self, image: Expr, panels: int, start: int, tasks: int, parallel: bool) -> None:
        plan = self.plan
        strips = min(plan.strips, tasks)
        with loop(strips, parallel=parallel and strips > 1) as strip:
            first = tirx.floordiv(strip * tasks, strips)
            last = tirx.floordiv((strip + 1) * tasks, strips)
            products = plan.map_size + strip * plan.product_size
            with T.serial(0, last - first) as step:
                group = tirx.floordiv(first + step, plan.blocks) if plan.blocks > 1 else first + step
                block = tirx.floormod(first + step, plan.blocks) if plan.blocks > 1 else 0
                panel = start + group * plan.panels

                def body(count: int) -> None:
                    self.products(panel, panels, block * plan.rows, self.g.tiles, count, products)
                    self.outputs(image, panel, panels, block * plan.rows, count, products)

                self.blocks(block, body)

    def blocks(self, block: Expr, body: Any) -> None:
        """body(tiles of this block)."""
        plan = self.plan
        last = self.g.tiles - (plan.blocks - 1) * plan.rows
        if last == plan.rows or plan.blocks == 1:
            body(last)
            return
        with T.If(block < plan.blocks - 1):
            with T.Then():
                body(plan.rows)
            with T.Else():
                body(last)

    def place(self, number: Expr) -> tuple[Expr, Expr]:
        """Row and column of a tile's first output."""
        g = self.g
        return tirx.floordiv(number, g.across) * g.tile, tirx.floormod(number, g.across) * g.tile

    def input_line(self, line: list[Expr]) -> list[Expr]:
        return _transforms(self.g.stride)[0](self.g.tile, line, self.factors)

    def output_line(self, line: list[Expr]) -> list[Expr]:
        return _transforms(self.g.stride)[1](self.g.tile, line, self.factors)

    def transform(self, image: Expr, channel: Expr, number: Expr, target: Expr) -> None:
        """V of one tile and 16 channels, from vector `target` on."""
        g, width = self.g, self.g.span
        row, column = self.place(number)
        top, left = row * g.stride - g.padding[0], column * g.stride - g.padding[1]
        plane = (image * g.in_blocks + channel) * g.height

        def load(y: int, x: int) -> Expr:
            return self.source.vector(((plane + top + y) * g.width + left + x) * LANES)

        def guarded(y: int, x: int) -> Expr:
            conditions = [top + y >= 0, top + y < g.height, left + x >= 0, left + x < g.width]
            return T.if_then_else(tirx.all(*conditions), load(y, x), splat(0.0))

        def body(element: Any) -> None:
            lines = Lines(width, width)
            for x in range(width):
                values = stored_vectors([element(y, x) for y in range(width)])
                lines.store_column(x, self.input_line(values))
            for y in range(width):
                for x, value in enumerate(self.input_line(lines.line(y, width))):
                    offset = target + (y * width + x) * self.plan.map_stride
                    self.scratch.store_vector(offset * LANES, value)

        inside = [top >= 0, top + width <= g.height, left >= 0, left + width <= g.width]
        with T.If(tirx.all(*inside)):
            with T.Then():
                body(load)
            with T.Else():
                body(guarded)

    def products(self, panel: Expr, panels: int, first: Expr, rows: int, count: int, target: Expr) -> None:
        """P of `count` tiles and `panels` panels; V starts at vector `first` and has `rows` tiles per channel block."""
        with T.serial(0, self.g.points) as point:
            done = 0
            for size in steps(count, self.tile.rows):
                maps = first + point * self.plan.map_stride + done
                place = target + point + done * self.plan.product_stride
                self._register_tile(panel, point, Tile(size, panels), maps, rows, place, prefetch=done == 0)
                done += size

    def _register_tile(
        self, panel: Expr, point: Expr, tile: Tile, first: Expr, rows: int, target: Expr, *, prefetch: bool
    ) -> None:
        g = self.g
        accumulators = Accumulators(tile)
        accumulators.zero()
        value = self.filter_value(point)

        def step(block: Expr, lane: Expr) -> None:
            base = first + block * rows
            scalars = [partial(self.scratch.__getitem__, (base + r) * LANES + lane) for r in range(tile.rows)]
            vectors = []
            for p in range(tile.panels):
                place = (((panel + p) * g.filters + value) * g.in_blocks + block) * LANES + lane
                vectors.append(self.weight.vector(place * LANES))
                if prefetch:
                    self.weight.fetch((place + AHEAD) * LANES)
            accumulators.multiply_add(scalars, vectors)

        whole, rest = divmod(g.in_channels, LANES)
        if whole:
            with T.serial(0, whole) as block, T.serial(0, LANES) as lane:
                step(block, lane)
        if rest:
            with T.serial(0, rest) as lane:
                step(whole, lane)
        for p in range(tile.panels):
            for r in range(tile.rows):
                place = target + (p * self.plan.rows + r) * self.plan.product_stride
                self.scratch.store_vector(place * LANES, accumulators.vector(r, p))

    def filter_value(self, point: Expr) -> Expr:
        """Which of a filter's values product number `point` takes."""
        g = self.g
        if g.stride == 1:
            return point
        row, column = tirx.floordiv(point, g.span), tirx.floormod(point, g.span)
        return tirx.min(row, g.tile + 1) * (g.tile + 2) + tirx.min(column, g.tile + 1)

    def outputs(self, image: Expr, panel: Expr, panels: int, first: Expr, count: int, products: Expr) -> None:
        """The outputs of `count` tiles from tile `first` on, with the epilogue."""
        with T.serial(0, panels) as p:
            check = local(LANES)
            check.store_vector(0, splat(0.0))
            with T.serial(0, count) as t:
                place = products + (p * self.plan.rows + t) * self.plan.product_stride
                self._output_tile(image, panel + p, first + t, place, check)
            total = local(1)
            total.store(0, tirx.const(0.0, "float32"))
            with T.serial(0, LANES) as lane:
                total.store(0, total[0] + check[lane])
            s = Tir()
            bits = s.reinterpret(s.magnitude(total[0]), "uint32")
            with T.If(bits >= tirx.const(0x7F800000, "uint32")), T.Then():
                self._direct(image, panel + p, first, count)

    def _output_tile(self, image: Expr, panel: Expr, number: Expr, products: Expr, check: Buffer) -> None:
        g, width = self.g, self.g.span
        row, column = self.place(number)
        bias = splat(0.0) if self.bias is None else self.bias.vector(panel * LANES)
        lines = Lines(g.tile, width)
        for x in range(width):
            points = [products + y * width + x for y in range(width)]
            values = stored_vectors([self.scratch.vector(place * LANES) for place in points])
            lines.store_column(x, self.output_line(values))

        def body(whole: bool) -> None:
            for y in range(g.tile):
                line = stored(self.output_line(lines.line(y, width)))
                for x in range(g.tile):
                    value = line.vector(x * LANES)
                    check.store_vector(0, check.vector(0) + value * self.factors(CHECK))
                    if self.bias is not None:
                        line.store_vector(x * LANES, value + bias)
                for x in range(g.tile):
                    inside = None if whole else tirx.all(row + y < g.out_height, column + x < g.out_width)
                    with when(inside):
                        self.epilogue.write(
                            partial(_place, image, panel, row + y, column + x),
                            partial(_lane, line, x),
                            LANES,
                        )

        if g.out_height % g.tile == 0 and g.out_width % g.tile == 0:
            body(True)
        else:
            with T.If(tirx.all(row + g.tile <= g.out_height, column + g.tile <= g.out_width)):
                with T.Then():
                    body(True)
                with T.Else():
                    body(False)
        if self.epilogue.in_place:
            with T.serial(0, g.tile) as y, T.serial(0, g.tile) as x:
                self._finish(image, panel, row + y, column + x)

    def _finish(self, image: Expr, panel: Expr, row: Expr, column: Expr) -> None:
        with when(tirx.all(row < self.g.out_height, column < self.g.out_width)):
            self.epilogue.finish(partial(_place, image, panel, row, column), LANES)

    def _direct(self, image: Expr, panel: Expr, first: Expr, count: int) -> None:
        """The same outputs as direct sums."""
        g = self.g
        with T.serial(0, count) as t, T.serial(0, g.tile) as y, T.serial(0, g.tile) as x:
            row, column = self.place(first + t)
            row, column = row + y, column + x
            with when(tirx.all(row < g.out_height, column < g.out_width)):
                total = local(LANES)
                total.store_vector(0, splat(0.0) if self.bias is None else self.bias.vector(panel * LANES))
                with T.serial(0, g.in_channels) as channel:
                    block, lane = tirx.floordiv(channel, LANES), tirx.floormod(channel, LANES)
                    for ky in range(3):
                        for kx in range(3):
                            sy, sx = row * g.stride + ky - g.padding[0], column * g.stride + kx - g.padding[1]
                            with when(tirx.all(sy >= 0, sy < g.height, sx >= 0, sx < g.width)):
                                pixel = ((image * g.in_blocks + block) * g.height + sy) * g.width + sx
                                value = self.source[pixel * LANES + lane]
                                factor = self._filter(panel, channel, ky, kx)
                                total.store_vector(0, total.vector(0) + splat(value) * factor)

                index = partial(_place, image, panel, row, column)
                self.epilogue.write(index, partial(_lane, total, 0), LANES)
                if self.epilogue.in_place:
                    self.epilogue.finish(index, LANES)

    def _filter(self, panel: Expr, channel: Expr, ky: int, kx: int) -> Expr:
        """The filter's tap of 16 outputs, from its values at the points."""
        g = self.g
        terms = filter_from_rows(g.tile, g.stride)
        total: Expr = None
        for v, a in terms[ky]:
            for u, b in terms[kx]:
                point = v * (g.tile + 2) + u
                place = ((panel * g.filters + point) * g.in_blocks * LANES + channel) * LANES
                part = self.weight.vector(place) * self.factors(a * b)
                total = part if total is None else total + part
        return total


def filter_factors(g: Geometry) -> set[float]:
    """What `_filter` multiplies by."""
    terms = [factor for row in filter_from_rows(g.tile, g.stride) for _, factor in row]
    return {a * b for a in terms for b in terms}


def _place(*index: Expr) -> list[Expr]:
    return list(index)


def _lane(buffer: Buffer, vector: int, lane: Expr) -> Expr:
    return buffer[vector * LANES + lane]


def stored_vectors(values: list[Expr]) -> list[Expr]:
    """The values through a buffer, so that each is computed once."""
    buffer = stored(values)
    return [buffer.vector(position * LANES) for position in range(len(values))]
