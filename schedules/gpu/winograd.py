"""3x3 convolution of unit stride on plain maps by Winograd's F(M x M, 3 x 3) (see transpiler/ops/winograd.py).

Three kernels: every tile of the map at its points (V, a matrix [channels, tiles] per point), a product per point with
the packed filters (the register tile of `product.py`: rows are output channels, columns are tiles), and the outputs
from the products (P) with the epilogue. V and P lie in the workspace with whole quads of tiles per row, so that the
product reads both operands four elements at once. The transforms take a thread per tile and channel, neighbours
beside each other along the tiles; they are limited by loads and stores, the product by its multiply-adds where there
are many channels.

A tile whose result is not finite is computed again as direct sums, with the filter recovered from its values at the
points: infinities would spread over the whole tile otherwise, and large values might overflow on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.packed import BLOCK, blocks
from transpiler.ops.winograd import filter_from_rows
from transpiler.target import Target

from ..cpu.winograd import input_line, output_line
from ..fuse import lowered
from ..scalar import Tir
from ..tir import Buffer, KernelBuilder, unflatten, when
from ..vectors import held
from .epilogue import Epilogue
from .product import QUAD, Line, Product, Quads
from .threads import each_thread
from .tiles import product_tile
from .workgroup import private

Expr = Any
# Bytes of a workspace; maps of more images are computed in parts.
WORKSPACE = 96 << 20
# Scales a result so that sums of such stay finite if all of them are.
CHECK = 2.0**-10


def _constant(value: float) -> Expr:
    return tirx.const(value, "float32")


@dataclass(frozen=True)
class Geometry:
    """Images `first` to `first + images` of a map; `padding` zeros above and on the left."""

    first: int
    images: int
    channels: int
    height: int
    width: int
    out_channels: int
    out_height: int
    out_width: int
    padding: tuple[int, int]
    tile: int  # M

    @property
    def span(self) -> int:
        return self.tile + 2

    @property
    def points(self) -> int:
        return self.span**2

    @property
    def down(self) -> int:
        return -(-self.out_height // self.tile)

    @property
    def across(self) -> int:
        return -(-self.out_width // self.tile)

    @property
    def columns(self) -> int:
        """Tiles of all images."""
        return self.images * self.down * self.across

    @property
    def pitch(self) -> int:
        return -(-self.columns // QUAD) * QUAD

    @property
    def map_size(self) -> int:
        """Elements of V."""
        return self.points * self.channels * self.pitch

    @property
    def product_size(self) -> int:
        return self.points * self.out_channels * self.pitch

    def place(self, column: Expr) -> tuple[Expr, Expr, Expr]:
        """Image, and first row and column of outputs, of a tile."""
        image, down, across = unflatten(column, (self.images, self.down, self.across))
        return held(image + self.first), held(down * self.tile), held(across * self.tile)


@dataclass(frozen=True)
class Winograd:
    """The kernels of a convolution; `maps` and `products` are parts of the workspace."""

    g: Geometry
    source: Buffer
    weight: Buffer
    bias: Buffer | None
    maps: Buffer
    products: Buffer

    def emit(self, target: Target, epilogue: Epilogue) -> None:
        self._inputs()
        self._product(target)
        self._outputs(epilogue)

    # --- how maps, V and P lie: here with their channels first
    def _own(self, thread: Expr, channels: int) -> tuple[Expr, Expr]:
        """Channel and tile of a thread: neighbours lie beside each other."""
        channel, column = (held(i) for i in unflatten(thread, (channels, self.g.columns)))
        return channel, column

    def _pixels(self, image: Expr, channel: Expr) -> tuple[Expr, int]:
        """Where the map of a channel begins in the source, and how far its pixels are apart."""
        g = self.g
        return held((image * g.channels + channel) * g.height * g.width), 1

    def _map_place(self, channel: Expr, column: Expr) -> tuple[Expr, int]:
        """Where the first point of a tile lies in V, and how far the points are apart."""
        g = self.g
        return held(channel * g.pitch + column), g.channels * g.pitch

    def _product_place(self, channel: Expr, column: Expr) -> tuple[Expr, int]:
        """The same in P."""
        g = self.g
        return held(channel * g.pitch + column), g.out_channels * g.pitch

    def _index(self, image: Expr, channel: Expr, row: Expr, column: Expr) -> Sequence[Expr]:
        """Of an output."""
        return [image, channel, row, column]

    @property
    def _map_channels(self) -> int:
        """Of V: behind those of the map are zeros."""
        return self.g.channels

    # --- V
    def _inputs(self) -> None:
        g = self.g
        with each_thread(self._map_channels * g.columns) as thread:
            channel, column = self._own(thread, self._map_channels)
            image, top, left = g.place(column)
            filled = self._map_channels != g.channels
            values = self._window(image, T.min(channel, g.channels - 1) if filled else channel, top, left)
            if filled:
                values = [held(tirx.Select(channel < g.channels, value, _constant(0.0))) for value in values]
            columns = [input_line(g.tile, values[x :: g.span], _constant) for x in range(g.span)]
            across = [[held(column[y]) for column in columns] for y in range(g.span)]
            start, step = self._map_place(channel, column)
            for y, line in enumerate(across):
                for x, value in enumerate(input_line(g.tile, line, _constant)):
                    self.maps.store(start + (y * g.span + x) * step, value)

    def _window(self, image: Expr, channel: Expr, top: Expr, left: Expr) -> list[Expr]:
        """The inputs of a tile, row by row, 0 in the padding."""
        g = self.g
        start, apart = self._pixels(image, channel)
        rows = [held(top + (y - g.padding[0])) for y in range(g.span)]
        columns = [held(left + (x - g.padding[1])) for x in range(g.span)]
        rows_fit = _inside(rows, g.height, g.padding[0] == 0 and g.down * g.tile + 2 <= g.height)
        columns_fit = _inside(columns, g.width, g.padding[1] == 0 and g.across * g.tile + 2 <= g.width)
        values = []
        for row, row_fits in zip(rows, rows_fit, strict=True):
            for column, column_fits in zip(columns, columns_fit, strict=True):
                place = start + (row * g.width + column) * apart
                known = [item for item in (row_fits, column_fits) if item is not None]
                if not known:
                    values.append(held(self.source[place]))
                    continue
                fits = math.prod(known) != 0
                element = self.source[tirx.Select(fits, place, start)]
                values.append(held(tirx.Select(fits, element, _constant(0.0))))
        return values

    # --- P
    def _product(self, target: Target) -> None:
        g = self.g
        inner = blocks(g.channels) * BLOCK

        def filters(point: Expr, row: Expr) -> Expr:
            block = tirx.floordiv(row, BLOCK)
            return (block * g.points + point) * inner * BLOCK + tirx.floormod(row, BLOCK)

        def left(point: Expr, row: Expr) -> Line:
            start = held(filters(point, row))
            return lambda _: lambda k: self.weight[start + k * BLOCK]

        def left_quads(point: Expr, row: Expr) -> Line:
            start = held(tirx.floordiv(filters(point, row), QUAD))
            return lambda _: lambda k: self.weight.vector((start + k * (BLOCK // QUAD)) * QUAD, QUAD)

        def right(point: Expr, column: Expr) -> Line:
            start = held(point * g.channels * g.pitch + column)
            return lambda _: lambda k: self.maps[start + k * g.pitch]

        def right_quads(point: Expr, column: Expr) -> Line:
            start = held(tirx.floordiv(point * g.channels * g.pitch + column, QUAD))
            return lambda _: lambda k: self.maps.vector((start + k * (g.pitch // QUAD)) * QUAD, QUAD)

        def place(point: Expr, column: Expr) -> Any:
            return lambda row: [point, row, column]

        product = Product(
            g.points, g.out_channels, g.pitch, (g.channels,), left, right, place,
            left_quads=Quads(left_quads), right_quads=Quads(right_quads),
        )  # fmt: skip
        product.emit(product_tile(target, product), _Stored(self.products, g))

    # --- the outputs
    def _outputs(self, epilogue: Epilogue) -> None:
        g = self.g
        with each_thread(g.out_channels * g.columns) as thread:
            channel, column = self._own(thread, g.out_channels)
            image, top, left = g.place(column)
            start, step = self._product_place(channel, column)
            points = [held(self.products[start + point * step]) for point in range(g.points)]
            columns = [
                [held(value) for value in output_line(g.tile, points[x :: g.span], _constant)] for x in range(g.span)
            ]
            results = private(g.tile**2)
            check = held(_constant(0.0))
            for y in range(g.tile):
                line = [column[y] for column in columns]
                for x, value in enumerate(output_line(g.tile, line, _constant)):
                    result = held(value)
                    check = held(check + result * _constant(CHECK))
                    results.store(y * g.tile + x, result)
            s = Tir()
            bits = s.reinterpret(s.magnitude(check), "uint32")
            infinite = held(tirx.Cast("int32", bits >= tirx.const(0x7F800000, "uint32")))
            self._direct(results, infinite, image, channel, top, left)
            bias = held(_constant(0.0) if self.bias is None else self.bias[channel])
            with T.serial(0, g.tile) as y:
                row = held(top + y)
                for x in range(g.tile):
                    with when(self._fits(row, left + x)):
                        value = results[y * g.tile + x]
                        index = self._index(image, channel, row, held(left + x))
                        epilogue.store(index, value if self.bias is None else value + bias)

    def _fits(self, row: Expr, column: Expr) -> Expr | None:
        g = self.g
        down = None if g.out_height % g.tile == 0 else row < g.out_height
        across = None if g.out_width % g.tile == 0 else column < g.out_width
        return tirx.And(down, across) if down is not None and across is not None else across if down is None else down

    def _direct(self, results: Buffer, infinite: Expr, image: Expr, channel: Expr, top: Expr, left: Expr) -> None:
        """The outputs of a tile that is `infinite` as direct sums. In loops over channels and taps, as drivers on
        processors go once through what no thread takes, and count turns."""
        g = self.g
        for position in range(g.tile**2):
            results.store(position, tirx.Select(infinite != 0, _constant(0.0), results[position]))
        with T.serial(0, T.min(infinite * g.channels, g.channels)) as inner, T.serial(0, 9) as tap:
            ky, kx = held(tirx.floordiv(tap, 3)), held(tirx.floormod(tap, 3))
            factor = self._filter(channel, inner, ky, kx)
            start, apart = self._pixels(image, inner)
            for position in range(g.tile**2):
                y = held(top + ky + (position // g.tile - g.padding[0]))
                x = held(left + kx + (position % g.tile - g.padding[1]))
                with T.If(tirx.all(y >= 0, y < g.height, x >= 0, x < g.width)), T.Then():
                    value = self.source[start + (y * g.width + x) * apart]
                    results.store(position, results[position] + value * factor)

    def _filter(self, channel: Expr, inner: Expr, ky: Expr, kx: Expr) -> Expr:
        """A tap of a filter, from its values at the points: up to two of each dim."""
        g = self.g
        block, lane = tirx.floordiv(channel, BLOCK), tirx.floormod(channel, BLOCK)
        size = blocks(g.channels) * BLOCK
        down, across = _terms(g.tile, ky), _terms(g.tile, kx)
        total: Expr = _constant(0.0)
        for v, a in down:
            for u, b in across:
                place = held(((block * g.points + (v * g.span + u)) * size + inner) * BLOCK + lane)
                factor = held(a * b)
                part = tirx.Select(factor != _constant(0.0), self.weight[place] * factor, _constant(0.0))
                total = held(total + part)
        return total


def lower(
    group: Group, target: Target, name: str, kernels: type[Winograd], workspace: int, geometry: Geometry
) -> Lowered:
    """The kernels of a convolution, of whose images as many are computed at a time as fit into `workspace` bytes."""
    node = group.anchor_node
    assert node is not None
    alone = replace(geometry, images=1)
    most = max(1, min(geometry.images, workspace // (4 * (alone.map_size + alone.product_size))))
    parts = [
        replace(geometry, first=first, images=min(most, geometry.images - first))
        for first in range(0, geometry.images, most)
    ]
    size = parts[0].map_size + parts[0].product_size + 32
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type], workspace=size)
    with builder:
        source, weight, *bias = (builder.inputs[group.input_index(value)] for value in node.inputs)
        maps, products = builder.scratch(parts[0].map_size), builder.scratch(parts[0].product_size)
        for item in parts:
            kernels(item, source, weight, bias[0] if bias else None, maps, products).emit(
                target, Epilogue(group, builder)
            )
    flops = 2 * sum(item.points * item.columns for item in parts) * geometry.channels * geometry.out_channels
    return lowered(group, builder, flops=flops, workspace=size * 4)


def _terms(tile: int, tap: Expr) -> list[tuple[Expr, Expr]]:
    """(point's position, factor) of the tap's terms; a tap of one term has a second one of factor 0."""
    found = [(*terms, (terms[0][0], 0.0))[:2] for terms in filter_from_rows(tile)]

    def chosen(values: Sequence[Expr]) -> Expr:
        return held(tirx.Select(tap == 0, values[0], tirx.Select(tap == 1, values[1], values[2])))

    return [
        (
            chosen([tirx.const(terms[number][0], "int32") for terms in found]),
            chosen([_constant(terms[number][1]) for terms in found]),
        )
        for number in range(2)
    ]


@dataclass(frozen=True)
class _Stored:
    """What the product writes: P as it is."""

    products: Buffer
    g: Geometry

    def store(self, index: Sequence[Expr], value: Expr) -> None:
        point, row, column = index
        self.products.store((point * self.g.out_channels + row) * self.g.pitch + column, value)


def _inside(places: Sequence[Expr], size: int, always: bool) -> list[Expr | None]:
    """Per place 1 if it is in the map, else 0; None if all always are."""
    if always:
        return [None] * len(places)
    return [held(tirx.Cast("int32", tirx.And(place >= 0, place < size))) for place in places]
