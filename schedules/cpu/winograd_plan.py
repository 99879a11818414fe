"""How a Winograd convolution is cut into tasks, and where its intermediate maps lie in the workspace."""

from __future__ import annotations

from dataclasses import dataclass

from transpiler.ops.winograd import span
from transpiler.target import Isa

from ..sizes import Extent
from ..tir import LANES
from .gemm import Tile, max_rows

# Blocks of tiles from which on the threads share tiles rather than panel groups.
MANY_BLOCKS = 8
# Panel groups that are enough for the threads to share without cutting the map as well.
TASKS = 4
# Bytes of filters that stay in L2 beside a block; larger ones are read for two register tiles at a time.
FILTERS_IN_CACHE = 1 << 20
# Parts of the workspace that tasks work in, at most; the threads of a pool beyond it would have nothing to do.
STRIPS = 16


@dataclass(frozen=True)
class Geometry:
    batch: Extent
    in_blocks: int
    in_channels: int
    height: int
    width: int
    out_blocks: int
    out_height: int
    out_width: int
    padding: tuple[int, int]  # above and on the left
    stride: int
    tile: int  # M

    @property
    def span(self) -> int:
        """Rows and columns of inputs of a tile, and of its products."""
        return span(self.tile, self.stride)

    @property
    def points(self) -> int:
        """Products of a tile and channel pair."""
        return self.span**2

    @property
    def filters(self) -> int:
        """Values of a filter: products may share one."""
        return (self.tile + 2) ** 2

    @property
    def across(self) -> int:
        """Tiles per row of tiles."""
        return -(-self.out_width // self.tile)

    @property
    def down(self) -> int:
        return -(-self.out_height // self.tile)

    @property
    def tiles(self) -> int:
        return self.across * self.down


@dataclass(frozen=True)
class Plan:
    """Rows (tiles) that are worked on together, and the workspace: V and P of `strips` tasks, or one V of the whole map
    and P of `strips` tasks. Offsets and strides in vectors."""

    many: bool
    rows: int  # tiles of a block
    blocks: int
    strips: int
    panels: int
    map_stride: int  # between points of V
    product_stride: int  # between tiles of P
    map_size: int
    product_size: int

    @property
    def workspace(self) -> int:
        """In elements."""
        maps = self.strips if self.many else 1
        return (maps * self.map_size + self.strips * self.product_size) * LANES


def tall_tile(isa: Isa, g: Geometry) -> Tile:
    """The register tile with most accumulators, its rows such that all tiles of the map are about as tall: what is read
    per multiply-add is then mostly the map's part, which is in L1."""
    shapes = [Tile(max_rows(isa, panels), panels) for panels in range(1, min(4, g.out_blocks) + 1)]
    best = max(shapes, key=lambda tile: tile.rows * tile.panels)
    return Tile(even(g.tiles, best.rows), best.panels)


def even(total: int, most: int) -> int:
    """The size of the least number of about equal parts of `total`, none over `most`."""
    return -(-total // -(-total // most))


def make_plan(g: Geometry, tile: Tile) -> Plan:
    count = -(-g.tiles // tile.rows)
    many = count >= MANY_BLOCKS
    groups = -(-g.out_blocks // tile.panels)
    if many:
        large = 4 * g.filters * g.in_blocks * g.out_blocks * LANES * LANES > FILTERS_IN_CACHE
        rows = min(tile.rows * (2 if large else 1), g.tiles)
        count = -(-g.tiles // rows)
        strips = min(count, STRIPS)
    else:
        rows = min(even(count, -(-count // -(-TASKS // groups))) * tile.rows, g.tiles)
        count = -(-g.tiles // rows)
        strips = min(groups * count, STRIPS)
    map_stride = g.in_blocks * (rows if many else g.tiles) | 1
    product_stride = g.points | 1
    return Plan(
        many, rows, count, strips, tile.panels, map_stride, product_stride,
        g.points * map_stride, tile.panels * rows * product_stride,
    )  # fmt: skip
