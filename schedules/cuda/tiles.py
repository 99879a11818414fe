"""How large the tiles of products are, by the sizes of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import prod

from ..sizes import Extent, ceil_div, is_fixed
from .ptx import CHUNK

# Multiprocessors of an A100: with fewer blocks than that, some of them idle.
PROCESSORS = 108


@dataclass(frozen=True)
class Card:
    """What the rule knows of a device: its multiprocessors; of each the bytes of shared memory that blocks share, and
    `products` of pairs of 16-byte chunks in a cycle on tensor cores, and by ordinary multiply-adds; the bytes that its
    memory moves in a cycle."""

    processors: int
    shared_bytes: int
    tensor_products: int
    plain_products: int
    memory_bytes: int

    def products(self, kind: str) -> int:
        return self.plain_products if kind == "float32" else self.tensor_products


# From NVIDIA's data sheets: an A100 for sm_80 and an H200 for sm_90a.
CARDS = {
    "sm_80": Card(PROCESSORS, 167936, tensor_products=128, plain_products=16, memory_bytes=1400),
    "sm_90a": Card(132, 233472, tensor_products=256, plain_products=32, memory_bytes=2700),
}
# Cycles between the start of a block and its first products, and from its last ones until its results are stored: an
# estimate, with which many short rounds cost more than a few long ones.
LATENCY = 1500
MEETING = 500  # what blocks of a cluster wait for each other, at their start and end: an estimate, too
REGISTERS, THREADS = 65536, 2048  # of a multiprocessor
BESIDES = 64  # registers of a thread besides its sums


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
    splits: int = 1  # of the summed dim, by blocks, whose sums a second launch adds
    cluster: int = 1  # blocks with neighbouring rows, which copy the columns' operand for each other

    def __str__(self) -> str:
        """What tells it from others in tables and records of choices: everything but the estimate."""
        named = [
            f"{item.name}={getattr(self, item.name)}"
            for item in fields(self)[2:]
            if item.name != "rate" and getattr(self, item.name) != item.default
        ]
        return " ".join([f"{self.rows}x{self.columns}", *named])

    @property
    def joint(self) -> Tile:
        """What the blocks of a cluster compute together."""
        return replace(self, rows=self.rows * self.cluster, cluster=1)

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
# The same by blocks that share their work out (`hopper`): a warpgroup that copies comes on top.
SPECIALISED = (
    Tile(128, 256, 8, 1, 4, 1.1, 8),
    Tile(128, 128, 8, 1, 6, 1.0, 8),
    Tile(128, 64, 8, 1, 7, 0.75, 8),
    Tile(64, 128, 4, 1, 7, 0.7, 8),
    Tile(64, 64, 4, 1, 8, 0.55, 8),
)
# By two blocks that read the columns' operand once: less of the bandwidth of L2, which large products are short of.
CLUSTERED = tuple(replace(tile, rate=tile.rate * 1.05, cluster=2) for tile in SPECIALISED[:2])
# Where there are few tiles and a long summed dim.
SPLIT = tuple(replace(tile, splits=splits) for tile in SPECIALISED[1:] for splits in (2, 4, 8))
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
# What the rule takes for sizes that vary: tokens of a few sentences, a width of transformers.
MANY, MANY_CHUNKS = 1024, 96
DEEP = 3  # steps that a tile of several slices is worth at least


def cycles(tile: Tile, card: Card, kind: str, batches: Extent, rows: Extent, columns: Extent, inner: Extent) -> float:
    """The time of a product by a simple account: rounds of blocks over the processors, each as long as its tile's
    products at its rate, and a latency for every wave of blocks that are resident together. Sizes that vary count as
    `MANY`. `inner` is the summed dim in chunks."""
    known = [size if is_fixed(size) else MANY for size in (batches, rows, columns)]
    depth = inner if is_fixed(inner) else MANY_CHUNKS
    blocks = tile.splits * tile.cluster
    for size, step in zip(known, (1, tile.joint.rows, tile.columns), strict=True):
        blocks *= ceil_div(size, step)
    rounds = ceil_div(blocks, card.processors)
    chunks = ceil_div(depth, tile.chunks * tile.splits) * tile.chunks
    work = rounds * tile.rows * tile.columns * chunks / (card.products(kind) * tile.rate)
    waves = ceil_div(rounds, resident(tile, card))
    if tile.splits > 1:  # the second launch, and sums in float32 that go to memory and back
        waves += 2
        work += 2 * 4 * tile.splits * prod(known) / card.memory_bytes
    return float(work + waves * LATENCY + (MEETING if tile.cluster > 1 else 0))


def resident(tile: Tile, card: Card) -> int:
    """Blocks that a processor has room for."""
    registers = tile.rows * tile.columns // tile.team // 32 + BESIDES
    limits = (
        card.shared_bytes // (tile.stages * tile.stage_bytes + 1024),
        THREADS // tile.threads,
        REGISTERS // (registers * tile.threads),
    )
    return max(1, min(limits))


def ranked(
    tiles: Sequence[Tile], card: Card, kind: str, batches: Extent, rows: Extent, columns: Extent, inner: Extent
) -> list[Tile]:
    """The tiles that suit a product, the one with the least `cycles` first."""

    def worth(tile: Tile) -> bool:
        if tile.splits > 1:
            return is_fixed(batches, rows, columns, inner) and inner >= DEEP * tile.chunks * tile.splits
        if tile.cluster > 1 and is_fixed(rows) and rows <= tile.rows:
            return False
        return tile.slices == 1 or (is_fixed(inner) and inner >= DEEP * tile.chunks)

    def cost(tile: Tile) -> float:
        return cycles(tile, card, kind, batches, rows, columns, inner)

    return sorted(filter(worth, tiles), key=cost)
