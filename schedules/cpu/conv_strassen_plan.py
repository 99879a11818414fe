"""How a 1x1 convolution by Strassen's algorithm is cut into tiles, chunks and tasks; see `conv_strassen`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from transpiler.choices import choose
from transpiler.ops.strassen_conv import LEFT, PRODUCTS, ConvStrassen
from transpiler.target import Isa

from ..tir import LANES
from .convolution import Convolution
from .gemm import Tile, max_rows
from .winograd_plan import even

Expr = Any

# Parts of the workspace that tasks work in, at most; the threads of a pool beyond it would have nothing to do.
STRIPS = 16
# Sums of a task that are stored: products 0, 0 + 1 and 0 + 1 + 2.
KEPT = 3
# Bytes of a chunk's left factors: beside weights that stay in L2, and where weights come from L3 for every chunk.
SMALL_CHUNK, LARGE_CHUNK, L2_WEIGHTS = 192 << 10, 768 << 10, 512 << 10
# Accumulators from which on it does not count how many more there are.
FULL = 24


@dataclass(frozen=True)
class Shape:
    """[pixels, 2 half_blocks x 16] times [., 2 panel_pairs x 16] of an image."""

    height: int  # of the source
    width: int
    out_width: int
    pixels: int
    stride: tuple[int, int]
    half_blocks: int
    panel_pairs: int

    @staticmethod
    def of(conv: Convolution[ConvStrassen]) -> Shape:
        return Shape(
            conv.height, conv.width, conv.out_width, conv.out_height * conv.out_width,
            (conv.op.stride[0], conv.op.stride[1]), conv.inner // 2, conv.op.out_blocks // 2,
        )  # fmt: skip

    @property
    def copied(self) -> bool:
        """Whether the left factors that are no sums are stored too."""
        return self.stride != (1, 1)

    @property
    def pairs(self) -> int:
        """Of pixels; of an odd number, one pixel is in two."""
        return -(-self.pixels // 2)

    @property
    def weights(self) -> int:
        return PRODUCTS * self.half_blocks * self.panel_pairs * LANES * LANES

    @property
    def flops(self) -> int:
        """Of the products, of the left factors, and of two further sums of products."""
        half, depth = self.panel_pairs * LANES, self.half_blocks * LANES
        sums = sum(abs(sign) for signs in LEFT for sign in signs) - PRODUCTS
        return self.pairs * (PRODUCTS * 2 * depth * half + sums * depth + 2 * half)

    def source(self, pixel: Expr) -> Expr:
        """Where a pixel of the output lies in the source map."""
        if self.stride == (1, 1):
            return pixel
        row, column = tirx.floordiv(pixel, self.out_width), tirx.floormod(pixel, self.out_width)
        return row * self.stride[0] * self.width + column * self.stride[1]


@dataclass(frozen=True)
class Plan:
    """How the work is cut. Sizes in elements."""

    tile: Tile
    full: int  # tiles of 2 x tile.rows pixels
    rest: int  # pairs of the last, smaller one
    groups: int  # of panel pairs; the last may be smaller
    chunk: int  # tiles whose left factors are made at once
    factors: int  # left factors that are stored
    factor: int  # of a tile
    strips: int

    @property
    def tiles(self) -> int:
        return self.full + (self.rest > 0)

    @property
    def marks(self) -> int:
        """Where it stands which of a chunk's tiles are computed as direct sums."""
        return self.chunk * self.factors * self.factor

    @property
    def sums(self) -> int:
        """Where the sums of a task begin."""
        return self.marks + _whole(self.chunk)

    @property
    def columns(self) -> int:
        """Where the scales and biases of a group's columns begin."""
        return self.sums + KEPT * self.tile.rows * self.tile.panels * LANES

    @property
    def slot(self) -> int:
        return self.columns + 4 * self.tile.panels * LANES


def _whole(size: int) -> int:
    return -(-size // LANES) * LANES


def make_plan(isa: Isa, shape: Shape) -> Plan:
    tile = _tile(isa, shape)
    full, left = divmod(shape.pixels, 2 * tile.rows)
    groups, tiles = -(-shape.panel_pairs // tile.panels), full + (left > 0)
    factors = PRODUCTS if shape.copied else sum(not is_part(product) for product in range(PRODUCTS))
    factor = shape.half_blocks * tile.rows * LANES
    size = SMALL_CHUNK if 4 * shape.weights <= L2_WEIGHTS else LARGE_CHUNK
    chunk = min(tiles, max(1, size // (4 * factors * factor)))
    return Plan(tile, full, -(-left // 2), groups, chunk, factors, factor, min(STRIPS, groups * tiles))


def _tile(isa: Isa, shape: Shape) -> Tile:
    """A tall tile, which reads weights seldom, its rows such that all tiles are about as tall: choice point "tile"."""
    candidates = [
        Tile(even(shape.pairs, max_rows(isa, panels)), panels) for panels in range(1, min(4, shape.panel_pairs) + 1)
    ]
    candidates.sort(key=lambda tile: (-min(tile.rows * tile.panels, FULL), tile.panels))
    return choose("tile", candidates, candidates[0])


def is_part(product: int) -> bool:
    """Whether a product's left factor is a part of x."""
    return sorted(map(abs, LEFT[product])) == [0, 0, 0, 1]
