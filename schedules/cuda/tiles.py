"""How large the tiles of tensor-core products are, by the sizes of the result."""

from __future__ import annotations

from dataclasses import dataclass

from ..sizes import Extent, ceil_div, is_fixed
from .ptx import CHUNK

# Multiprocessors of an A100: with fewer blocks than that, some of them idle.
PROCESSORS = 108


@dataclass(frozen=True)
class MmaTile:
    """What a block computes, rows x columns, split over row_warps x column_warps warps; `stages` tiles of CHUNKS * 16
    bytes of the summed dim are in shared memory at a time, one is used while the others are on their way.

    `rate` is the share of the peak that the tile is expected to come to where the device is full of it: an estimate
    from the bytes that ldmatrix loads per product, not a measurement.
    """

    rows: int
    columns: int
    row_warps: int
    column_warps: int
    stages: int
    rate: float

    CHUNKS = 4  # of a line: 64 bytes, 32 half floats

    @property
    def threads(self) -> int:
        return self.row_warps * self.column_warps * 32

    @property
    def stage_bytes(self) -> int:
        return (self.rows + self.columns) * self.CHUNKS * CHUNK


TILES = (
    MmaTile(128, 128, 2, 4, 4, 1.0),
    MmaTile(128, 64, 2, 2, 4, 0.85),
    MmaTile(64, 128, 2, 2, 4, 0.85),
    MmaTile(64, 64, 2, 2, 4, 0.7),
    MmaTile(64, 32, 2, 1, 5, 0.5),
    MmaTile(32, 64, 1, 2, 5, 0.5),
    MmaTile(32, 32, 2, 1, 5, 0.4),
    MmaTile(16, 64, 1, 2, 6, 0.35),
)


def mma_tile(batches: Extent, rows: Extent, columns: Extent) -> MmaTile:
    """The tile with the least time by a simple account: rounds of blocks over the device, each as long as its tile's
    products at its rate. Sizes that vary count as many."""

    def cost(tile: MmaTile) -> float:
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

    return min(TILES, key=cost)
