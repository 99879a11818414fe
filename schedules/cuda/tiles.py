"""How large the tiles of products are, by the sizes of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..sizes import Extent, ceil_div, is_fixed
from .ptx import CHUNK

# Multiprocessors of an A100: with fewer blocks than that, some of them idle.
PROCESSORS = 108


@dataclass(frozen=True)
class Tile:
    """What a block computes, rows x columns, split over row_warps x column_warps warps; `stages` tiles of `chunks` * 16
    bytes of the summed dim are in shared memory at a time, one is used while the others are on their way.

    `rate` is the share of the peak that the tile is expected to come to where the device is full of it: an estimate
    from the bytes that come out of shared memory per product, not a measurement.
    """

    rows: int
    columns: int
    row_warps: int
    column_warps: int
    stages: int
    rate: float
    chunks: int = 4  # of a line: 64 bytes, 32 half floats
    slices: int = 1  # teams of warps that share the tile: each sums a part of every line

    @property
    def team(self) -> int:
        """Warps that the tile is split over."""
        return self.row_warps * self.column_warps

    @property
    def threads(self) -> int:
        return self.team * self.slices * 32

    @property
    def stage_bytes(self) -> int:
        return (self.rows + self.columns) * self.chunks * CHUNK


MMA = (
    Tile(128, 128, 2, 4, 4, 1.0),
    Tile(128, 64, 2, 2, 4, 0.85),
    Tile(64, 128, 2, 2, 4, 0.85),
    Tile(64, 64, 2, 2, 4, 0.7),
    Tile(64, 32, 2, 1, 5, 0.5),
    Tile(32, 64, 1, 2, 5, 0.5),
    Tile(32, 32, 2, 1, 5, 0.4),
    Tile(16, 64, 1, 2, 6, 0.35),
    # Where there are few tiles: warps enough to hide what each waits for.
    Tile(64, 64, 2, 2, 4, 0.75, 8, 2),
    Tile(64, 32, 2, 1, 3, 0.65, 16, 4),
    Tile(32, 32, 2, 1, 3, 0.6, 16, 4),
    Tile(16, 64, 1, 2, 3, 0.55, 16, 4),
)
# Of warpgroups, which have 64 rows and all columns. Of an H200, wgmma comes to its peak, mma.sync to 0.6 of it.
WGMMA = (
    Tile(128, 256, 8, 1, 4, 1.0, 8),
    Tile(128, 128, 8, 1, 4, 0.9, 8),
    Tile(128, 64, 8, 1, 4, 0.65, 8),
    Tile(64, 128, 4, 1, 4, 0.65, 8),
    Tile(64, 64, 4, 1, 5, 0.5, 8),
)
MMA_ON_HOPPER = tuple(replace(tile, rate=tile.rate * 0.6) for tile in MMA)
# Of multiply-adds: a warp's tile is 16 or 32 x 32 or 64.
SIMT = (
    Tile(128, 128, 4, 2, 3, 1.0),
    Tile(128, 64, 4, 1, 3, 0.95),
    Tile(64, 128, 2, 2, 3, 0.95),
    Tile(64, 64, 2, 2, 4, 0.8),
    Tile(32, 64, 2, 2, 4, 0.65),
    Tile(32, 32, 2, 1, 5, 0.6),
    Tile(16, 32, 1, 1, 6, 0.5),
    Tile(64, 64, 2, 2, 3, 0.85, 8, 2),
    Tile(32, 32, 2, 1, 3, 0.75, 16, 4),
    Tile(16, 32, 1, 1, 3, 0.65, 16, 4),
)
DEEP = 3  # steps that a tile of several slices is worth at least


def tile_for(tiles: Sequence[Tile], batches: Extent, rows: Extent, columns: Extent, inner: Extent) -> Tile:
    """The one of `tiles` with the least time by a simple account: rounds of blocks over the device, each as long as its
    tile's products at its rate. Sizes that vary count as many. `inner` is the summed dim in chunks."""

    def worth(tile: Tile) -> bool:
        return is_fixed(inner) and inner >= DEEP * tile.chunks

    def cost(tile: Tile) -> float:
        known = [
            ceil_div(size, step)
            for size, step in ((batches, 1), (rows, tile.rows), (columns, tile.columns))
            if is_fixed(size)
        ]
        blocks = 1
        for number in known:
            blocks *= number
        rounds = blocks / PROCESSORS if len(known) < 3 else ceil_div(blocks, PROCESSORS)
        return rounds * tile.rows * tile.columns / tile.rate

    return min((tile for tile in tiles if tile.slices == 1 or worth(tile)), key=cost)
