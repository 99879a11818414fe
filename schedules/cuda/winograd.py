"""Winograd convolutions in float32 on maps with their channels last, with what is fused behind them.

The kernels are those of gpu/winograd.py, where neighbouring threads have neighbouring channels, and the products those
of `simt`: rows are tiles, columns output channels, a product for every point. Channels of V are filled up to whole
chunks of 16 bytes. The transforms are limited by memory, the products by multiply-adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from transpiler.group import Group, Lowered
from transpiler.ops.packed import BLOCK, blocks
from transpiler.ops.winograd_last import WinogradLast
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..gpu.winograd import WORKSPACE, Geometry, Winograd, lower
from ..sizes import ceil_div, is_fixed
from ..tir import unflatten
from ..vectors import held
from .cores import emit_plain
from .epilogue import Sums
from .product import DEPTHS, Chunks, Operand, Product

Expr = Any
CHUNK = DEPTHS["float32"]


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, WinogradLast) or group.prologue or not elementwise_epilogue(group):
        return None
    if not is_fixed(*node.inputs[0].shape):
        return None
    images, height, width, channels = node.inputs[0].type.static_shape()
    _, out_height, out_width, out_channels = node.output.type.static_shape()
    if min(images, channels, out_channels, out_height, out_width) == 0:
        return None
    padding = node.op.padding[0], node.op.padding[1]
    geometry = _Last(
        0, images, channels, height, width, out_channels, out_height, out_width, padding, node.op.tile, images
    )  # fmt: skip
    return lower(group, target, name, _Kernels, WORKSPACE, geometry)


@dataclass(frozen=True)
class _Last(Geometry):
    """V is [point, tile, channel], P [point, tile, output channel]; of `total` images some are computed at a time."""

    total: int = 0

    @property
    def filled(self) -> int:
        """Channels in whole chunks."""
        return int(ceil_div(self.channels, CHUNK)) * CHUNK

    @property
    def map_size(self) -> int:
        return self.points * self.columns * self.filled

    @property
    def product_size(self) -> int:
        return self.points * self.columns * self.out_channels


@dataclass(frozen=True)
class _Kernels(Winograd):
    g: _Last

    def _own(self, thread: Expr, channels: int) -> tuple[Expr, Expr]:
        column, channel = (held(i) for i in unflatten(thread, (self.g.columns, channels)))
        return channel, column

    def _pixels(self, image: Expr, channel: Expr) -> tuple[Expr, int]:
        g = self.g
        return held(image * (g.height * g.width * g.channels) + channel), g.channels

    def _map_place(self, channel: Expr, column: Expr) -> tuple[Expr, int]:
        return held(column * self.g.filled + channel), self.g.columns * self.g.filled

    def _product_place(self, channel: Expr, column: Expr) -> tuple[Expr, int]:
        return held(column * self.g.out_channels + channel), self.g.columns * self.g.out_channels

    def _index(self, image: Expr, channel: Expr, row: Expr, column: Expr) -> Sequence[Expr]:
        return [image, row, column, channel]

    @property
    def _map_channels(self) -> int:
        return self.g.filled

    def _product(self, target: Target) -> None:
        g = self.g
        inner = blocks(g.channels) * BLOCK

        def tiles(point: Expr, row: Expr) -> Chunks:
            start = held((point * g.columns + row) * g.filled)
            return lambda k: (start + k, None)

        def filters(point: Expr, column: Expr) -> Chunks:
            block, lane = tirx.floordiv(column, BLOCK), tirx.floormod(column, BLOCK)
            start = held((block * g.points + point) * (inner * BLOCK) + lane)
            return lambda k: (start + k * BLOCK, None)

        shape = g.points, g.columns, g.out_channels
        product = Product(
            "float32", *shape, g.filled, Operand(self.maps, tiles), Operand(self.weight, filters, across=True),
            _as_it_is, g.out_channels,
        )  # fmt: skip
        emit_plain(product, Sums(self.products, shape), target, g.total * g.down * g.across)


def _as_it_is(point: Expr, row: Expr, column: Expr) -> Sequence[Expr]:
    return [point, row, column]
