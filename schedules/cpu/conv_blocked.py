"""Direct convolution to NCHW16c, from NCHW16c (`conv_blocked`) or from a plain map of few channels (`conv_stem`).

A register tile is `rows` output pixels of one output row x `panels` blocks of 16 output channels; every step (input
channel, kernel position) broadcasts one input element per pixel and loads one weight vector per panel. Weights of a
panel group (panels x I x KH x KW x 16) stream from L2 and are used for a whole row of pixels; the input rows under
the tile stay in L1. Where a map has few tiles, so that weights are read from memory most of the time, each tile asks
for a share of the next group's weights. Operands of the epilogue are asked for when their tile begins. Padding is a
copy into the workspace (one pass over the input), so that the inner loops have no conditions. A 1x1 convolution with
unit stride sees the map as one long row. Narrow maps take several rows per tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.blocked_conv import BlockedConv, ConvBlocked, ConvStem
from transpiler.ops.packed import blocks
from transpiler.target import Target

from ..fuse import lowered
from ..sizes import Extent, extent, is_large, is_several
from ..tir import LANES, Buffer, KernelBuilder, loop, when
from ..vectors import held
from .convolution import Convolution, convolution
from .epilogue import Epilogue
from .gemm import Accumulators, Tile, choose_tile, max_rows
from .padding import pad_map

EPILOGUE = True
# Tiles per panel group up to which the next group's weights are asked for, and the bytes of weights that are worth it.
FEW_TILES = 32
FETCHED_WEIGHTS = 1 << 18

Expr = Any
Fetch = Callable[[Expr], None]
Lines = Callable[[Expr, Expr], Expr]


@dataclass(frozen=True)
class Geometry:
    """Sizes of a convolution: input blocks (or channels), map sizes after padding, output map, kernel, steps. With
    groups, blocks and channels are those of one."""

    batch: Extent
    groups: int
    inner: int  # input blocks of 16 (blocked) or input channels (stem)
    lanes: int  # 16 or 1: input channels per pixel of the source
    in_channels: int  # logical ones
    height: int  # of the source map, padded
    width: int
    channels: int  # logical output channels
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def out_blocks(self) -> int:
        return blocks(self.channels)

    @property
    def last_lanes(self) -> int:
        """Lanes of the last block that are computed: half of them where that is enough."""
        return LANES // 2 if 0 < self.channels % LANES <= LANES // 2 else LANES

    @property
    def image_size(self) -> int:
        """Elements of an image, padded."""
        return self.groups * self.inner * self.height * self.width * self.lanes

    @property
    def image_flops(self) -> int:
        return 2 * self.groups * self.channels * self.out_height * self.out_width * self.depth

    @property
    def depth(self) -> int:
        """Steps of the reduction."""
        return self.in_channels * self.kernel[0] * self.kernel[1]


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    conv = convolution(group, ConvBlocked, ConvStem)
    if conv is None:
        return None
    op, n = conv.op, conv.images
    pads = any(op.padding)
    pointwise = op.kernel == (1, 1) and op.stride == (1, 1) and not pads
    geometry = geometry_of(conv)
    size = n * geometry.image_size if pads else 0
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type], workspace=size)
    with builder:
        source, weight, bias = conv.operands(builder)
        if size != 0:
            target_map = builder.scratch(size)
            planes, lanes = extent(n) * conv.inner, geometry.lanes
            pad_map(source, target_map, planes, (conv.height, conv.width), op.padding, lanes)
            source = target_map
        _convolve(target, geometry, source, weight, bias, Epilogue(group, builder), pointwise)
    return lowered(group, builder, flops=n * geometry.image_flops, workspace=size * 4)


def geometry_of(conv: Convolution[BlockedConv]) -> Geometry:
    op = conv.op
    height, width = conv.height + op.padded[0], conv.width + op.padded[1]
    blocked, groups = isinstance(op, ConvBlocked), op.groups if isinstance(op, ConvBlocked) else 1
    return Geometry(
        extent(conv.images), groups, conv.inner // groups, LANES if blocked else 1, op.in_channels // groups,
        height, width, op.channels // groups, conv.out_height, conv.out_width,
        (op.kernel[0], op.kernel[1]), (op.stride[0], op.stride[1]), (op.dilation[0], op.dilation[1]),
    )  # fmt: skip


def _convolve(
    target: Target,
    g: Geometry,
    source: Buffer,
    weight: Buffer,
    bias: Buffer | None,
    epilogue: Epilogue,
    pointwise: bool,
) -> None:
    rows_of_pixels, row_length = (1, g.out_height * g.out_width) if pointwise else (g.out_height, g.out_width)
    # A plain map's pixels cost more to address than to multiply: as many products of each as possible.
    tile = choose_tile(target.isa, row_length, g.out_blocks, g.depth if g.lanes > 1 else None)
    # A narrow map: several output rows per tile.
    tall = (
        max(1, min(max_rows(target.isa, tile.panels) // row_length, rows_of_pixels)) if row_length <= tile.rows else 1
    )
    work = g.batch * g.groups * g.out_blocks * g.out_height * g.out_width * g.depth * LANES
    parallel = is_large(work)
    # The last panel's group is apart if that panel is narrow.
    narrow = int(g.last_lanes < LANES)
    groups, rest = divmod(g.out_blocks - narrow, tile.panels)
    rest += narrow
    emit = Emitter(g, source, weight, bias, epilogue, pointwise, apart=target.isa.vector_bits >= LANES * 32)
    if groups:
        emit.panel_groups(tile, tall, rows_of_pixels, row_length, 0, groups, parallel)
    if rest:
        last = groups * tile.panels
        emit.panel_groups(Tile(tile.rows, rest), tall, rows_of_pixels, row_length, last, 1, parallel, g.last_lanes)


@dataclass(frozen=True)
class Emitter:
    """Writes the loops of a convolution from `source`, which has its padding, through `epilogue`."""

    g: Geometry
    source: Buffer
    weight: Buffer
    bias: Buffer | None
    epilogue: Epilogue
    pointwise: bool
    # Where in `source` row `row` of plane `plane` begins, in pixels, if not one after the other.
    lines: Lines | None = None
    apart: bool = False  # a narrow last panel is added up apart from the others

    def line(self, plane: Expr, row: Expr) -> Expr:
        return (plane * self.g.height + row) * self.g.width if self.lines is None else self.lines(plane, row)

    def panel_groups(
        self,
        tile: Tile,
        tall: int,
        height: int,
        width: int,
        first_panel: int,
        groups: int,
        parallel: bool,
        lanes: int = LANES,
    ) -> None:
        """All pixels for `groups` panel groups, whose last panels have `lanes` lanes: parallel over (image, panel
        group, band of `tall` rows or run of pixel tiles)."""
        bands = -(-height // tall)
        full, rest = divmod(width, tile.rows)
        # One long row (a pointwise convolution): its tiles are what the threads share.
        runs = min(full, 8) if height == 1 and parallel and full else 1
        per_run = -(-full // runs) if full else 0
        runs = -(-full // per_run) if full else 1
        tasks = self.g.batch * self.g.groups * groups * bands * runs
        with loop(tasks, parallel=parallel and is_several(tasks)) as task:
            run = tirx.floormod(task, runs) if runs > 1 else 0
            task = tirx.floordiv(task, runs) if runs > 1 else task
            band = tirx.floormod(task, bands) if bands > 1 else 0
            task = tirx.floordiv(task, bands) if bands > 1 else task
            group = tirx.floormod(task, groups) if groups > 1 else 0
            image = tirx.floordiv(task, groups) if groups > 1 else task
            panel = first_panel + group * tile.panels

            def band_of(count: int) -> None:
                def one(columns: int, column: Expr, fetch: Fetch | None = None) -> None:
                    self.tile(tile.panels, image, panel, band * tall, count, column, columns, lanes, fetch)

                if full:
                    exact = runs * per_run == full
                    with T.serial(0, per_run) as step:
                        position = run * per_run + step
                        fetch = self.next_group(panel, tile.panels, band * full + position, bands * full)
                        with when(None if exact else position < full):
                            one(tile.rows, position * tile.rows, fetch)
                if rest:
                    with when(None if runs == 1 else run == runs - 1):
                        one(rest, full * tile.rows)

            last = height - (bands - 1) * tall
            if last == tall or bands == 1:
                band_of(last if bands == 1 else tall)
            else:
                with T.If(band < bands - 1):
                    with T.Then():
                        band_of(tall)
                    with T.Else():
                        band_of(last)

    def next_group(self, panel: Expr, panels: int, number: Expr, tiles: int) -> Fetch | None:
        """What tile `number` of the `tiles` of a panel group asks for at each step of 16 channels: all together, the
        weights of the next group."""
        g = self.g
        steps = g.inner * g.kernel[0] * g.kernel[1]
        if (
            g.lanes == 1
            or g.groups > 1
            or tiles > FEW_TILES
            or 4 * g.out_blocks * steps * LANES * LANES < FETCHED_WEIGHTS
        ):
            return None
        share = -(-panels * LANES // tiles)

        def fetch(step: Expr) -> None:
            first = (panel + panels) * steps * LANES + (number * steps + step) * share
            for line in range(share):
                self.weight.fetch((first + line) * LANES)

        return fetch

    def biased(self, element: Callable[[Expr], Expr], panel: Expr) -> Callable[[Expr], Expr]:
        bias = self.bias
        return element if bias is None else lambda lane: element(lane) + bias[panel * LANES + lane]

    def tile(
        self,
        panels: int,
        image: Expr,
        panel: Expr,
        row: Expr,
        rows: int,
        column: Expr,
        columns: int,
        last: int,
        fetch: Fetch | None = None,
    ) -> None:
        """One register tile: `rows` x `columns` pixels, `panels` channel blocks, the last of `last` lanes, the whole
        reduction; `fetch` is called at every step of 16 channels. With groups, `image` counts the groups of all images,
        and `panel` is one of the group's."""
        g = self.g
        # Which image of the output, and which panel of the weight and the output.
        item, block_of = image, panel
        if g.groups > 1:
            item = held(tirx.floordiv(image, g.groups))
            block_of = held(tirx.floormod(image, g.groups) * g.out_blocks + panel)
        accumulators = Accumulators(Tile(rows * columns, panels), last)
        accumulators.zero()
        pixels = [(r, c) for r in range(rows) for c in range(columns)]
        kh, kw = g.kernel

        def step(inner: Expr, y: Expr, x: Expr, lane: Expr, chosen: Sequence[int]) -> None:
            scalars: list[Callable[[], Expr]] = []
            for r, c in pixels:
                if self.pointwise:
                    place = (image * g.inner + inner) * (g.height * g.width) + column + c
                else:
                    source_row = (row + r) * g.stride[0] + y * g.dilation[0]
                    source_column = (column + c) * g.stride[1] + x * g.dilation[1]
                    place = self.line(image * g.inner + inner, source_row) + source_column
                offset = place * g.lanes + lane
                scalars.append(partial(self.source.__getitem__, offset))
            vectors = []
            for p in chosen:
                position = ((((block_of + p) * g.inner + inner) * kh + y) * kw + x) * g.lanes + lane
                vectors.append(self.weight.vector(position * LANES, accumulators.lanes[p]))
            accumulators.multiply_add(scalars, vectors, chosen)

        # A narrow last panel has a loop of its own. LLVM would make its pixels a part of the others', and while a load
        # fills a vector of 256 bits by the way, one of 512 takes a unit from the multiply-adds (Zen 4).
        together = [list(range(panels))]
        if self.apart and panels > 1 and last < LANES:
            together = [list(range(panels - 1)), [panels - 1]]

        def blocks_of(first: int, count: int, lanes: int) -> None:
            if lanes == 1:
                # One loop: LLVM would unroll a short inner one, and keep pixels that several steps share in registers
                # that the accumulators need.
                with T.serial(0, count * kh * kw) as number:
                    y, x = tirx.floormod(tirx.floordiv(number, kw), kh), tirx.floormod(number, kw)
                    step(first + tirx.floordiv(number, kh * kw), y, x, 0, range(panels))
                return
            block_loop, rows, columns = T.serial(0, count), T.serial(0, kh), T.serial(0, kw)
            with block_loop as block, rows as y, columns as x:
                if fetch is not None:
                    fetch(((first + block) * kh + y) * kw + x)
                for chosen in together:
                    with T.serial(0, lanes) as lane:
                        step(first + block, y, x, lane, chosen)

        def index(p: int, r: Expr, c: Expr, lane: Expr) -> list[Expr]:
            if self.pointwise:
                pixel = column + c
                return [item, block_of + p, tirx.floordiv(pixel, g.out_width), tirx.floormod(pixel, g.out_width), lane]
            return [item, block_of + p, row + r, column + c, lane]

        for p in range(panels):
            for r, c in pixels:
                self.epilogue.prefetch(index(p, r, c, 0))
        whole, rest = divmod(g.in_channels, g.lanes)
        if whole:
            blocks_of(0, whole, g.lanes)
        if rest:
            blocks_of(whole, 1, rest)
        for p in range(panels):
            for number, (r, c) in enumerate(pixels):
                element = self.biased(accumulators.result(number, p), block_of + p)
                self.epilogue.write(partial(index, p, r, c), element, LANES)
            if self.epilogue.in_place:
                with T.serial(0, rows) as r, T.serial(0, columns) as c:
                    self.epilogue.finish(partial(index, p, r, c), LANES)
