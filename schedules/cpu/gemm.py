"""The register tile shared by matrix products and convolutions.

A tile is `rows` x `panels` accumulators of 16 lanes. Every step of k loads one vector per panel of B and broadcasts
one scalar per row of A: rows * panels multiply-adds for rows + panels loads. With AVX-512 (32 registers, 16 lanes
each) 8 x 3 or 14 x 2 tiles keep both FMA ports busy; with fewer or narrower registers the tile shrinks until the
accumulators fit. A's elements come from L1 (rows x K), a B panel group (panels x K x 16) from L2.

A tile of one panel uses each scalar once, so that AVX-512's multiply-adds read it themselves. On processors that make
two passes of a vector (Zen 4) this beats wider tiles where sums are short: filling a register from a scalar takes a
unit that the ends of sums need. Others lack loads for it: long sums have wider tiles unless a measurement says
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.choices import choose
from transpiler.target import Isa

from ..sizes import Extent, is_fixed
from ..tir import LANES, Buffer, local, splat

Expr = Any

MAX_ROWS = 14
TILES_TO_TRY = 8
# Steps of a sum up to which the end of a tile shows.
SHORT_SUM = 96
# Panels read at once by a product of one row: enough to hide the latency of L3, and
MAX_STREAMS = 16
# no more than this many whose lines fall into the same set of an 8-way L1 of 64 sets.
STREAMS_PER_SET = 4
L1_SETS = 64
# Accumulators in flight that hide the latency of the multiply-add on both ports.
LATENCY_TILES = 8


@dataclass(frozen=True)
class Tile:
    """Accumulator rows and panels of a register tile."""

    rows: int
    panels: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.panels}"


def register_budget(isa: Isa) -> int:
    """16-lane vectors that fit in the register file."""
    return isa.vector_registers * isa.vector_bits // (LANES * 32)


def max_rows(isa: Isa, panels: int) -> int:
    """Rows whose accumulators leave room for the panel vectors and one broadcast."""
    return max(1, min(MAX_ROWS, (register_budget(isa) - panels - 1) // panels))


def steps(extent: int, tile: int) -> list[int]:
    """Sizes of the tiles that cover `extent`: full ones, then the rest."""
    return [tile] * (extent // tile) + ([extent % tile] if extent % tile else [])


def choose_tile(isa: Isa, rows: int, panels: int, depth: int | None = None) -> Tile:
    """The tile that covers `rows` x `panels` in the fewest cycles: the choice point "tile".

    The default is by a simple model: a step of a tile costs its multiply-adds, its loads at half weight, and no less
    than what hides the latency. With the `depth` of the sums, tiles of one panel are candidates too, the default where
    sums are short and a vector is a register.
    """

    def cost(tile: Tile) -> float:
        total = 0.0
        for r in steps(rows, tile.rows):
            for p in steps(panels, tile.panels):
                total += max(r * p, LATENCY_TILES * 0.75) + 0.5 * (r + p)
        return total

    widest = min(panels, 8 if rows == 1 else 4, register_budget(isa) - 2)
    candidates = [
        Tile(r, p)
        for p in range(1, max(widest, 1) + 1)
        for r in range(1, min(rows, max_rows(isa, p)) + 1)
        if r >= min(rows, max_rows(isa, p)) // 2
    ]
    candidates.sort(key=lambda tile: (round(cost(tile), 3), -tile.rows * tile.panels))
    best = candidates[:TILES_TO_TRY]
    if depth is None or isa.vector_bits < LANES * 32:
        return choose("tile", best, best[0])
    single = _of_one_panel(candidates, rows)
    # The first few are what a quick sweep tries.
    first = [*single[:1], best[0]] if depth <= SHORT_SUM else [best[0], *single[:1]]
    ordered = list(dict.fromkeys([*first, *single, *best]))
    return choose("tile", ordered, ordered[0])


def _of_one_panel(candidates: Sequence[Tile], rows: int) -> list[Tile]:
    """The best of these that have one panel, and the tallest of those below that leave no rest."""
    single = [tile for tile in candidates if tile.panels == 1]
    exact = [tile for tile in single if rows % tile.rows == 0 and tile.rows < single[0].rows]
    return [*single[:1], *sorted(exact, key=lambda tile: -tile.rows)[:1]]


def streams(isa: Isa, panels: int, distance: int) -> int:
    """How many of `panels` panels, `distance` vectors from each other, a product of one row reads at once: a power of
    two."""
    distinct_sets = L1_SETS // math.gcd(distance, L1_SETS)
    most = min(MAX_STREAMS, STREAMS_PER_SET * distinct_sets, register_budget(isa) - 2, panels)
    return 1 << (max(1, most).bit_length() - 1)


def split_of_sums(isa: Isa, panels: int, k: int) -> int:
    """Into how many sums a product of one row deals k, so that enough multiply-adds are in flight: a power of two."""
    split = 1
    while split * panels < LATENCY_TILES and 2 * split * panels <= register_budget(isa) - 2 and 2 * split <= k:
        split *= 2
    return split


class Accumulators:
    """rows x panels vectors in registers: one small buffer per panel, indexed by Python-level constants. The last panel
    has `last` lanes, so that fewer columns cost less."""

    def __init__(self, tile: Tile, last: int = LANES) -> None:
        self.tile = tile
        self.lanes = [LANES] * (tile.panels - 1) + [last]
        self._panels = [local(tile.rows * lanes) for lanes in self.lanes]

    def zero(self) -> None:
        for panel, lanes in zip(self._panels, self.lanes, strict=True):
            for row in range(self.tile.rows):
                panel.store_vector(row * lanes, splat(0.0, lanes=lanes), lanes)

    def multiply_add(
        self, scalars: Sequence[Callable[[], Expr]], vectors: Sequence[Expr], panels: Sequence[int] | None = None
    ) -> None:
        """acc[r][p] += scalars[r] * vectors[p]; of some `panels` only, the vectors are theirs."""
        chosen = range(self.tile.panels) if panels is None else panels
        bound = [T.bind(vector) for vector in vectors] if self.tile.rows > 1 else list(vectors)
        for row, scalar in enumerate(scalars):
            factor = scalar()
            wide = T.bind(splat(factor)) if len(chosen) > 1 else splat(factor)
            for number, vector in zip(chosen, bound, strict=True):
                panel, lanes = self._panels[number], self.lanes[number]
                factors = wide if lanes == LANES else splat(factor, lanes=lanes)
                panel.store_vector(row * lanes, panel.vector(row * lanes, lanes) + factors * vector, lanes)

    def multiply_add_row(self, row: int, scalar: Expr, vectors: Sequence[Expr]) -> None:
        """acc[row][p] += scalar * vectors[p]."""
        factor = splat(scalar)
        factor = T.bind(factor) if self.tile.panels > 1 else factor
        for panel, vector in zip(self._panels, vectors, strict=True):
            panel.store_vector(row * LANES, panel.vector(row * LANES) + factor * vector)

    def fold_rows(self) -> None:
        """acc[0][p] = the sum of all rows, by halves."""
        distance = self.tile.rows // 2
        while distance:
            for panel in self._panels:
                for row in range(distance):
                    other = panel.vector((row + distance) * LANES)
                    panel.store_vector(row * LANES, panel.vector(row * LANES) + other)
            distance //= 2

    def set(self, row: int, panel: int, value: Expr) -> None:
        self._panels[panel].store_vector(row * LANES, value)

    def vector(self, row: int, panel: int) -> Expr:
        return self._panels[panel].vector(row * LANES)

    def element(self, row: int, panel: int, lane: Expr) -> Expr:
        return self._panels[panel][row * LANES + lane]

    def result(self, row: int, panel: int) -> Callable[[Expr], Expr]:
        """A function of the lane that gives the sum; 0 in lanes that are not computed."""
        lanes = self.lanes[panel]
        if lanes == LANES:
            return partial(self.element, row, panel)
        whole = local(LANES)
        whole.store_vector(0, self._panels[panel].vector(row * lanes, lanes), lanes)
        whole.store_vector(lanes, splat(0.0, lanes=LANES - lanes), LANES - lanes)
        return whole.__getitem__


def pack_columns(
    source: Callable[[Expr, Expr], Expr],
    target: Buffer,
    base: Expr,
    rows: Extent,
    columns: Extent,
    panels: Extent | None = None,
) -> None:
    """Copy a [rows, columns] matrix, read as source(row, column), into panels [columns/16][rows][16] at `base`.

    Columns beyond the matrix are zero, up to `panels` panels where `columns` is a symbol.
    """
    full = columns // LANES
    if not is_fixed(columns):
        _pack_symbolic(source, target, base, rows, columns, panels)
        return
    with T.serial(0, full) as panel, T.serial(0, rows) as row, T.vectorized(0, LANES) as lane:
        target.store(base + (panel * rows + row) * LANES + lane, source(row, panel * LANES + lane))
    rest = columns - full * LANES
    if rest:
        with T.serial(0, rows) as row:
            offset = base + (full * rows + row) * LANES
            target.store_vector(offset, splat(0.0))
            with T.serial(0, rest) as lane:
                target.store(offset + lane, source(row, full * LANES + lane))


def _pack_symbolic(
    source: Callable[[Expr, Expr], Expr], target: Buffer, base: Expr, rows: Extent, columns: Extent, panels: Extent
) -> None:
    full = columns // LANES
    with T.serial(0, full) as panel, T.serial(0, rows) as row, T.vectorized(0, LANES) as lane:
        target.store(base + (panel * rows + row) * LANES + lane, source(row, panel * LANES + lane))
    with T.serial(0, panels - full) as extra, T.serial(0, rows) as row:
        panel = full + extra
        offset = base + (panel * rows + row) * LANES
        target.store_vector(offset, splat(0.0))
        with T.serial(0, tirx.min(tirx.max(columns - panel * LANES, 0), LANES)) as lane:
            target.store(offset + lane, source(row, panel * LANES + lane))
