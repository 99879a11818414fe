"""Loops of a matrix product over packed panels, used by `linear` and `matmul`.

The parallel loop runs over (panel groups x chunks of rows); inside a task the panel group stays in L2 while the row
tiles stream through L1. Row and panel remainders are tiles of their own, unrolled at their exact size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.target import Isa

from ..fuse import PARALLEL_THRESHOLD
from ..tir import LANES, Buffer, when
from .epilogue import Epilogue
from .gemm import Accumulators, Tile, choose_tile

Expr = Any
Placed = Callable[..., Any]

# Tasks to aim for, so that a static split over a few threads is even.
TASKS = 8


@dataclass(frozen=True)
class Product:
    """C[m, n] = bias[n] + sum over k of A[m, k] * B[k, n].

    `load_a(row, k)` is a scalar, `load_b(panel, k)` the 16 columns of a panel; `place(row, column)` is the index of an
    element in the output.
    """

    m: int
    n: int
    k: int
    load_a: Callable[[Expr, Expr], Expr]
    load_b: Callable[[Expr, Expr], Expr]
    epilogue: Epilogue
    place: Callable[[Expr, Expr], Sequence[Expr]]
    bias: Buffer | None = None


def emit_product(isa: Isa, product: Product, *, parallel: bool = True) -> None:
    """The loops of `product`; `parallel` allows them to be split over the threads."""
    panels = -(-product.n // LANES)
    tile = choose_tile(isa, product.m, panels)
    parallel = parallel and product.m * product.n * product.k >= PARALLEL_THRESHOLD
    groups, rest_panels = divmod(panels, tile.panels)
    if groups:
        _panel_groups(product, tile, 0, groups, parallel)
    if rest_panels:
        _panel_groups(product, Tile(tile.rows, rest_panels), groups * tile.panels, 1, parallel)


def _panel_groups(product: Product, tile: Tile, first_panel: int, groups: int, parallel: bool) -> None:
    """`groups` panel groups from `first_panel`, all rows."""
    full, rest = divmod(product.m, tile.rows)
    tiles = full + bool(rest)
    chunks = min(tiles, max(1, -(-TASKS // groups))) if parallel else 1
    per_chunk = -(-tiles // chunks)
    chunks = -(-tiles // per_chunk)
    tasks = groups * chunks

    with T.parallel(0, tasks) if parallel and tasks > 1 else T.serial(0, tasks) as task:
        group = tirx.floordiv(task, chunks) if chunks > 1 else task
        first = (tirx.floormod(task, chunks) if chunks > 1 else 0) * per_chunk
        panel = first_panel + group * tile.panels if groups > 1 else first_panel
        if full:
            exact = chunks * per_chunk == full
            with T.serial(0, per_chunk) as step, when(None if exact else first + step < full):
                _tile(product, tile, (first + step) * tile.rows, panel)
        if rest:
            with when(None if chunks == 1 else first + per_chunk >= tiles):
                _tile(product, Tile(rest, tile.panels), full * tile.rows, panel)


def _tile(product: Product, tile: Tile, first_row: Expr, first_panel: Expr) -> None:
    accumulators = Accumulators(tile)
    accumulators.zero()
    with T.serial(0, product.k) as step:
        accumulators.multiply_add(
            [partial(product.load_a, first_row + row, step) for row in range(tile.rows)],
            [product.load_b(first_panel + panel, step) for panel in range(tile.panels)],
        )
    epilogue, bias = product.epilogue, product.bias
    for panel in range(tile.panels):
        column = (first_panel + panel) * LANES

        def place(row: Expr, lane: Expr, column: Expr = column) -> Sequence[Expr]:
            return product.place(first_row + row, column + lane)

        def element(row: int, lane: Expr, panel: int = panel, column: Expr = column) -> Expr:
            value = accumulators.element(row, panel, lane)
            return value if bias is None else value + bias[column + lane]

        def write(lanes: int, place: Placed = place, element: Placed = element) -> None:
            for row in range(tile.rows):
                epilogue.write(partial(place, row), partial(element, row), lanes)
            if epilogue.in_place:
                with T.serial(0, tile.rows) as later:
                    epilogue.finish(partial(place, later), lanes)

        _by_width(first_panel + panel, product.n, write)


def _by_width(panel: Expr, n: int, body: Callable[[int], None]) -> None:
    """Run body(lanes) with the number of real columns of `panel`: 16, or n % 16 in the last one."""
    last, ragged = divmod(n, LANES)
    if not ragged:
        body(LANES)
    elif isinstance(panel, int):
        body(ragged if panel == last else LANES)
    else:
        with T.If(panel < last):
            with T.Then():
                body(LANES)
            with T.Else():
                body(ragged)
