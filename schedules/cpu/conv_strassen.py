"""1x1 convolution on NCHW16c by Strassen's algorithm in Winograd's form: seven products of half the size, not eight.

Pixels are paired by register tiles: the first `rows` of 2 x rows neighbours with the others. Tasks are (tiles x groups
of panel pairs), counted tile by tile. A thread takes those that fall to it in chunks of tiles: it makes the left
factors of a chunk, sums of x (what is no sum is read where it lies), in its own part of the workspace; then it takes
one group after the other for the tiles of the chunk. So neighbouring layers keep a part of the map in the same
core's L2, and nothing waits for another thread. A task is seven loops over the sums of a register tile: what one
leaves in the registers the next one goes on with, so that beside the four parts of the result only three sums per
task are stored, to L1.

Limited by multiply-adds, of which there are 7/8 as many as in a direct product. What is added to them: about 2/K of
theirs for the sums in L1, 10/N for the left factors, and the weights are 7/4 as large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.strassen_conv import LEFT, PRODUCTS, RECOVERED, ConvStrassen
from transpiler.target import Target

from ..fuse import lowered
from ..scalar import Tir
from ..sizes import extent, is_large, is_several
from ..tir import LANES, Buffer, KernelBuilder, local, own_turns, splat, when
from ..vectors import Vectors, held
from .conv_strassen_plan import KEPT, L2_WEIGHTS, Plan, Shape, is_part, make_plan
from .convolution import convolution
from .epilogue import Epilogue
from .gemm import Accumulators, Tile

EPILOGUE = True

Expr = Any
Element = Callable[[Expr], Expr]

# Tiles up to which weights are read so seldom that each task asks for a share of the next group's.
FEW_TILES = 32
# Bits of float32's infinity.
INFINITY = 0x7F800000


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    conv = convolution(group, ConvStrassen)
    if conv is None:
        return None
    shape = Shape.of(conv)
    plan = make_plan(target.isa, shape)
    builder = KernelBuilder(
        name, [value.type for value in group.inputs], [group.outputs[0].type], workspace=plan.strips * plan.slot
    )
    with builder:
        emitter = _Emitter(
            shape, plan, *conv.operands(builder), Epilogue(group, builder),
            builder.scratch(plan.strips * plan.slot),
        )  # fmt: skip
        if is_several(conv.images):
            with T.serial(0, extent(conv.images)) as image:
                emitter.emit(image)
        else:
            emitter.emit(0)
    return lowered(group, builder, flops=conv.images * shape.flops, workspace=4 * plan.strips * plan.slot)


@dataclass(frozen=True)
class _Emitter:
    shape: Shape
    plan: Plan
    x: Buffer
    weight: Buffer
    bias: Buffer | None
    epilogue: Epilogue
    memory: Buffer  # [strips, slot]

    def emit(self, image: Expr) -> None:
        """An image: a thread works in the slot of its first strip."""
        plan = self.plan
        number = plan.groups * plan.tiles
        with own_turns(plan.strips, parallel=is_large(self.shape.flops) and plan.strips > 1) as (first, turns):
            begin = held(tirx.floordiv(first * number, plan.strips))
            end = held(tirx.floordiv((first + turns) * number, plan.strips))
            low = held(tirx.floordiv(begin, plan.groups))
            high = held(tirx.floordiv(end + plan.groups - 1, plan.groups))
            slot = held(first * plan.slot)
            if plan.chunk == plan.tiles:
                self.chunk(_Chunk(self, image, slot, low), high, begin, end)
                return
            with T.serial(0, tirx.floordiv(high - low + plan.chunk - 1, plan.chunk)) as turn:
                start = held(low + turn * plan.chunk)
                self.chunk(_Chunk(self, image, slot, start), held(tirx.min(start + plan.chunk, high)), begin, end)

    def chunk(self, chunk: _Chunk, stop: Expr, begin: Expr, end: Expr) -> None:
        """Those of the tasks from `begin` to `end` whose tiles are in a chunk, which ends at tile `stop`."""
        groups = self.plan.groups
        with T.serial(0, stop - chunk.start) as step:
            self.by_rows(chunk.start + step, chunk.fill)
        with T.serial(0, groups) as group:
            since = held(tirx.max(chunk.start, tirx.floordiv(begin - group + groups - 1, groups)))
            until = held(tirx.min(stop, tirx.floordiv(end - group + groups - 1, groups)))
            self.group(chunk, group, since, until)

    def group(self, chunk: _Chunk, group: Expr, since: Expr, until: Expr) -> None:
        """Tasks of a group of panel pairs."""
        tile = self.plan.tile
        full, rest = divmod(self.shape.panel_pairs, tile.panels)

        def tasks(panels: int) -> None:
            chunk.columns(group * tile.panels, panels)
            with T.serial(0, tirx.max(until - since, 0)) as step:

                def one(number: Expr, rows: int) -> None:
                    _Task(chunk, number, rows, group * tile.panels, panels, step).emit()

                self.by_rows(since + step, one)

        if not rest or not full:
            tasks(tile.panels if full else rest)
        else:
            with T.If(group < full):
                with T.Then():
                    tasks(tile.panels)
                with T.Else():
                    tasks(rest)

    def by_rows(self, tile: Expr, body: Callable[[Expr, int], None]) -> None:
        """body(tile, its pairs of pixels)."""
        plan, tile = self.plan, held(tile)
        if not plan.rest or not plan.full:
            body(tile, plan.tile.rows if plan.full else plan.rest)
        else:
            with T.If(tile < plan.full):
                with T.Then():
                    body(tile, plan.tile.rows)
                with T.Else():
                    body(tile, plan.rest)

    def pixels(self, tile: Expr, rows: int) -> tuple[Expr, Expr]:
        """The first pixels of both halves of a tile of `rows` pairs."""
        upper = tile * (2 * self.plan.tile.rows)
        if self.shape.pixels % 2 == 0 or rows == self.plan.tile.rows != self.plan.rest:
            return upper, upper + rows
        return upper, tirx.min(upper + rows, self.shape.pixels - rows)

    def place(self, image: Expr, block: Expr, pixel: Expr) -> Expr:
        """Where 16 channels of a pixel begin."""
        shape = self.shape
        plane = image * (2 * shape.half_blocks) + block
        return (plane * (shape.height * shape.width) + shape.source(pixel)) * LANES

    def factor(self, product: int) -> int | None:
        """Which of the stored left factors a product takes; None: x itself."""
        if self.shape.copied:
            return product
        stored = [number for number in range(PRODUCTS) if not is_part(number)]
        return stored.index(product) if product in stored else None

    def right_place(self, pair: Expr, product: int, step: Expr) -> Expr:
        """Where 16 columns of a right factor begin; PRODUCTS: the scales of both panels."""
        depth = self.shape.half_blocks * LANES
        return (pair * (PRODUCTS * depth + 2) + product * depth + step) * LANES

    def index(self, image: Expr, panel: Expr, pixel: Expr, lane: Expr) -> list[Expr]:
        width = self.shape.out_width
        return [image, panel, tirx.floordiv(pixel, width), tirx.floormod(pixel, width), lane]


@dataclass(frozen=True)
class _Chunk:
    """Tiles from `start` on, whose left factors and marks are in a slot of the workspace."""

    e: _Emitter
    image: Expr
    slot: Expr
    start: Expr

    def factor_place(self, tile: Expr, rows: int, factor: int, block: Expr, row: Expr) -> Expr:
        """Where 16 channels of a pixel of a left factor begin: [tile][factor][half_blocks][rows][16]."""
        plan = self.e.plan
        before = self.slot + (tile - self.start) * (plan.factors * plan.factor)
        return before + ((factor * self.e.shape.half_blocks + block) * rows + row) * LANES

    def columns(self, pair: Expr, panels: int) -> None:
        """Copies of the scales and biases of `panels` panel pairs from `pair` on: registers that held them over a loop
        would be missing in the tasks."""
        e = self.e
        for number in range(2 * panels):
            place, panel = self.column_place(number), held(2 * pair + number)
            e.memory.store_vector(place, e.weight.vector(e.right_place(pair + number // 2, PRODUCTS, number % 2)))
            if e.bias is not None:
                e.memory.store_vector(place + LANES, e.bias.vector(panel * LANES))

    def column_place(self, panel: Expr) -> Expr:
        return self.slot + self.e.plan.columns + panel * (2 * LANES)

    def write(self, pair: Expr, number: Expr, side: int, pixel: Expr, element: Element) -> None:
        """16 results, before scales and bias, of the group's panel pair `number`, which is `pair` of all, through the
        epilogue."""
        e, columns = self.e, self.column_place(2 * number + side)

        def value(lane: Expr) -> Expr:
            result = element(lane) * e.memory[columns + lane]
            return result if e.bias is None else result + e.memory[columns + LANES + lane]

        e.epilogue.write(partial(e.index, self.image, 2 * pair + side, pixel), value, LANES)

    def mark_place(self, tile: Expr) -> Expr:
        return self.slot + self.e.plan.marks + tile - self.start

    def fill(self, tile: Expr, rows: int) -> None:
        """The left factors of a tile, and whether it is finite."""
        e = self.e
        check = local(LANES)
        check.store_vector(0, splat(0.0))
        with T.serial(0, e.shape.half_blocks) as block, T.serial(0, rows) as row:
            parts = []
            for first in e.pixels(tile, rows):
                for half in range(2):
                    parts.append(held(e.x.vector(e.place(self.image, 2 * block + half, first + row))))
            total = check.vector(0)
            for part in parts:
                total = total + part * part
            check.store_vector(0, total)
            for product, signs in enumerate(LEFT):
                number = e.factor(product)
                if number is not None:
                    value = _signed_sum([(sign, parts[at]) for at, sign in enumerate(signs) if sign])
                    e.memory.store_vector(self.factor_place(tile, rows, number, block, row), value)
        s = Tir()
        norm = Vectors("float32").fold(check.vector(0), lambda one, two: one + two)
        bits = s.reinterpret(s.magnitude(norm), "uint32")
        one, zero = tirx.const(1.0, "float32"), tirx.const(0.0, "float32")
        e.memory.store(self.mark_place(tile), s.select(bits >= tirx.const(INFINITY, "uint32"), one, zero))

    def direct(self, tile: Expr, rows: int, pair: Expr, panels: int) -> None:
        """A tile that is not finite as direct sums, with the weights put together from the right factors."""
        e = self.e
        with T.serial(0, rows) as row, T.serial(0, panels) as panel:
            number = held(pair + panel)
            for first in e.pixels(tile, rows):
                for side in range(2):
                    total = local(LANES)
                    total.store_vector(0, splat(0.0))
                    with T.serial(0, e.shape.half_blocks * LANES) as step:
                        for half in range(2):
                            parts = [
                                e.weight.vector(e.right_place(number, product, step))
                                for product in RECOVERED[2 * half + side]
                            ]
                            place = e.place(self.image, tirx.floordiv(step, LANES) * 2 + half, first + row)
                            value = splat(e.x[place + tirx.floormod(step, LANES)])
                            total.store_vector(0, total.vector(0) + value * sum(parts[1:], parts[0]))
                    self.write(number, panel, side, first + row, total.__getitem__)
                    if e.epilogue.in_place:
                        e.epilogue.finish(partial(e.index, self.image, 2 * number + side, first + row), LANES)


@dataclass(frozen=True)
class _Task:
    """A register tile of pairs of pixels and `panels` pairs of panels from `pair` on; `step` counts a thread's tasks
    of a group."""

    chunk: _Chunk
    tile: Expr
    rows: int
    pair: Expr
    panels: int
    step: Expr

    @property
    def e(self) -> _Emitter:
        return self.chunk.e

    def emit(self) -> None:
        upper, lower = self.e.pixels(self.tile, self.rows)
        for first in (upper, lower):
            for panel in range(2 * self.panels):
                for row in range(self.rows):
                    self.e.epilogue.prefetch(self.e.index(self.chunk.image, 2 * self.pair + panel, first + row, 0))
        sums = Accumulators(Tile(self.rows, self.panels))
        mark = self.e.memory[self.chunk.mark_place(self.tile)]
        # Always 0, which LLVM does not know: it would keep what is stored in registers until it is loaded.
        again = held(tirx.min(T.Cast("int32", mark), 0))
        sums.zero()
        for kept in range(KEPT):
            self.add_product(sums, kept)
            self.keep(sums, kept)
        self.add_product(sums, 3)
        self.results(sums, 1, 0, sums.result)
        self.load(sums, 0, again)
        self.add_product(sums, 4)
        self.results(sums, 0, 0, sums.result)
        sums.zero()
        self.add_product(sums, 5)
        self.results(sums, 1, 1, lambda row, panel: partial(self.with_kept, sums, row, panel, again))
        self.load(sums, 1, again, added=True)
        self.add_product(sums, 6)
        self.results(sums, 0, 1, sums.result)
        with when(tirx.NE(mark, tirx.const(0.0, "float32"))):
            self.chunk.direct(self.tile, self.rows, self.pair, self.panels)

    def add_product(self, sums: Accumulators, product: int) -> None:
        e = self.e
        number, half = e.factor(product), [abs(sign) for sign in LEFT[product]].index(1)
        first = e.pixels(self.tile, self.rows)[half // 2]
        with T.serial(0, e.shape.half_blocks) as block, T.serial(0, LANES) as lane:
            scalars = []
            for row in range(self.rows):
                if number is None:
                    scalars.append(partial(e.x.__getitem__, self.x_place(block, half, first + row) + lane))
                else:
                    # Of 64 bits, so that constants become a part of the instruction's address.
                    place = T.Cast("int64", self.chunk.factor_place(self.tile, self.rows, number, block, 0) + lane)
                    scalars.append(partial(e.memory.__getitem__, place + row * LANES))
            step = block * LANES + lane
            self.fetch(product, step)
            vectors = [e.weight.vector(e.right_place(self.pair + panel, product, step)) for panel in range(self.panels)]
            sums.multiply_add(scalars, vectors)

    def x_place(self, block: Expr, half: int, pixel: Expr) -> Expr:
        return self.e.place(self.chunk.image, 2 * block + half % 2, pixel)

    def fetch(self, product: int, step: Expr) -> None:
        """Ask for a share of the next group's weights, all of which half of the tiles ask for."""
        e, depth = self.e, self.e.shape.half_blocks * LANES
        if e.plan.tiles > FEW_TILES or 4 * e.shape.weights <= L2_WEIGHTS:
            return
        share = -(-2 * self.panels // e.plan.tiles)
        line = (self.step * PRODUCTS + product) * depth + step
        for part in range(share):
            e.weight.fetch(e.right_place(self.pair + self.panels, 0, line * share + part))

    def kept_place(self, kept: int, row: int, panel: int) -> Expr:
        return self.chunk.slot + self.e.plan.sums + ((kept * self.rows + row) * self.panels + panel) * LANES

    def keep(self, sums: Accumulators, kept: int) -> None:
        for row in range(self.rows):
            for panel in range(self.panels):
                self.e.memory.store_vector(self.kept_place(kept, row, panel), sums.vector(row, panel))

    def load(self, sums: Accumulators, kept: int, again: Expr, *, added: bool = False) -> None:
        for row in range(self.rows):
            for panel in range(self.panels):
                value = self.e.memory.vector(self.kept_place(kept, row, panel) + again)
                sums.set(row, panel, sums.vector(row, panel) + value if added else value)

    def with_kept(self, sums: Accumulators, row: int, panel: int, again: Expr, lane: Expr) -> Expr:
        return sums.element(row, panel, lane) + self.e.memory[self.kept_place(KEPT - 1, row, panel) + again + lane]

    def results(self, sums: Accumulators, below: int, side: int, element: Callable[[int, int], Element]) -> None:
        """The upper (0) or lower pixels' results of the left (0) or right panels."""
        e = self.e
        first = e.pixels(self.tile, self.rows)[below]
        for panel in range(self.panels):
            for row in range(self.rows):
                self.chunk.write(self.pair + panel, panel, side, first + row, element(row, panel))
            if e.epilogue.in_place:
                with T.serial(0, self.rows) as later:
                    place = partial(e.index, self.chunk.image, 2 * (self.pair + panel) + side, first + later)
                    e.epilogue.finish(place, LANES)


def _signed_sum(terms: list[tuple[int, Expr]]) -> Expr:
    """Of terms of factor 1 or -1, one of factor 1 among them."""
    ordered = sorted(terms, key=lambda term: -term[0])
    total = ordered[0][1]
    for sign, value in ordered[1:]:
        total = total + value if sign > 0 else total - value
    return total
