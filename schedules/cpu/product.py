"""Loops of a matrix product over packed panels, used by `linear` and `matmul`.

The parallel loop runs over (panel groups x chunks of rows); inside a task the panel group stays in L2 while the row
tiles stream through L1. Meanwhile the next panel group is fetched into L2, some lines per step of k: weights that come
from DRAM would otherwise stall the first row tile of every group, which for 64 rows is one in eight. Row and panel
remainders are tiles of their own, unrolled at their exact size. Where the number
of rows is a symbol, there is one tile per possible remainder; where the number of columns is, panels come in whole
groups (packing pads them with zeros) and only existing columns are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.target import Isa

from ..sizes import Extent, ceil_div, is_fixed, is_large, smaller
from ..tir import LANES, Buffer, local, loop, own_turns, when
from .epilogue import Epilogue
from .gemm import Accumulators, Tile, choose_tile, split_of_sums, streams

Expr = Any
Placed = Callable[..., Any]

# Tasks to aim for, so that a static split over a few threads is even.
TASKS = 8
# What tiles are chosen for where the number of rows or columns is a symbol.
SYMBOLIC_ROWS = 8
SYMBOLIC_PANELS = 2


@dataclass(frozen=True)
class Product:
    """C[m, n] = bias[n] + sum over k of A[m, k] * B[k, n].

    `load_a(row, k)` is a scalar, `load_b(panel, k)` the 16 columns of a panel; `place(row, column)` is the index of an
    element in the output.
    """

    m: Extent
    n: Extent
    k: Extent
    load_a: Callable[[Expr, Expr], Expr]
    load_b: Callable[[Expr, Expr], Expr]
    epilogue: Epilogue
    place: Callable[[Expr, Expr], Sequence[Expr]]
    bias: Buffer | None = None
    # Whether B's panels lie side by side in rows, rather than one after the other.
    adjacent: bool = False
    # Asks for the vector (panel, k) of B to be brought into L2.
    fetch_b: Callable[[Expr, Expr], None] | None = None


def emit_product(isa: Isa, product: Product, *, parallel: bool = True) -> None:
    """The loops of `product`; `parallel` allows them to be split over the threads."""
    panels = ceil_div(product.n, LANES)
    if is_fixed(product.m, product.n, product.k) and product.m == 1:
        _matrix_vector(isa, product, panels, parallel and is_large(product.n * product.k))
        return
    tile = product_tile(isa, product.m, product.n)
    parallel = parallel and is_large(product.m * product.n * product.k)
    if not is_fixed(panels):
        _panel_groups(product, tile, 0, ceil_div(panels, tile.panels), parallel)
        return
    groups, rest_panels = divmod(panels, tile.panels)
    if groups:
        _panel_groups(product, tile, 0, groups, parallel)
    if rest_panels:
        _panel_groups(product, Tile(tile.rows, rest_panels), groups * tile.panels, 1, parallel)


def product_tile(isa: Isa, m: Extent, n: Extent) -> Tile:
    """The register tile of a product with `m` rows and `n` columns, either of which may be a symbol."""
    rows = m if is_fixed(m) else SYMBOLIC_ROWS
    return choose_tile(isa, rows, ceil_div(n, LANES) if is_fixed(n) else SYMBOLIC_PANELS)


def _panel_groups(product: Product, tile: Tile, first_panel: int, groups: Extent, parallel: bool) -> None:
    """`groups` panel groups from `first_panel`, all rows."""
    if not is_fixed(product.m, groups):
        _symbolic_panel_groups(product, tile, first_panel, groups, parallel)
        return
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
        following = None
        if product.fetch_b is not None and groups > 1 and tiles > 1:
            following = first_panel + tirx.min(group + 1, groups - 1) * tile.panels
        if full:
            exact = chunks * per_chunk == full
            with T.serial(0, per_chunk) as step, when(None if exact else first + step < full):
                fetched = None if following is None else partial(_fetch, product, tile, following, step, per_chunk)
                _tile(product, tile, (first + step) * tile.rows, panel, fetch=fetched)
        if rest:
            with when(None if chunks == 1 else first + per_chunk >= tiles):
                _tile(product, Tile(rest, tile.panels), full * tile.rows, panel)


def _matrix_vector(isa: Isa, product: Product, panels: int, parallel: bool) -> None:
    """One row: every thread reads its panels once, as many at a time as it has and the caches bear."""
    widest = streams(isa, panels, 1 if product.adjacent else product.k)
    parallel = parallel and panels > 1
    # How panels are dealt to threads must not change a result: then all of them have the sums of the widest.
    together = split_of_sums(isa, widest, product.k)
    with own_turns(panels, parallel=parallel) as (first, number):
        done = tirx.const(0, "int32")
        width = widest
        while width:
            # All that are left of the widest, then at most one of each half.
            times = tirx.floordiv(number if width == widest else tirx.floormod(number, 2 * width), width)
            with T.serial(0, times) as turn:
                split = together if parallel else split_of_sums(isa, width, product.k)
                _row_tile(product, Tile(split, width), first + done + turn * width)
            done = done + times * width
            width //= 2


def _row_tile(product: Product, tile: Tile, first_panel: Expr) -> None:
    """Some panels of a product of one row; k is dealt to as many sums as the tile has rows."""
    split, panels = tile.rows, tile.panels
    accumulators = Accumulators(tile)
    accumulators.zero()

    def add(part: int, step: Expr) -> None:
        vectors = [product.load_b(first_panel + panel, step) for panel in range(panels)]
        accumulators.multiply_add_row(part, product.load_a(0, step), vectors)

    with T.serial(0, product.k // split) as group:
        for part in range(split):
            add(part, group * split + part)
    for step in range(product.k // split * split, product.k):
        add(step % split, step)
    accumulators.fold_rows()
    _write(product, Tile(1, panels), accumulators, 0, first_panel)


def _symbolic_panel_groups(product: Product, tile: Tile, first_panel: int, groups: Extent, parallel: bool) -> None:
    """The same for a number of rows or groups that only the call knows."""
    full, tiles = product.m // tile.rows, ceil_div(product.m, tile.rows)
    rest = product.m % tile.rows
    chunks = (ceil_div(TASKS, groups) if is_fixed(groups) else TASKS // 2) if parallel else 1
    chunks = min(chunks, tiles) if is_fixed(tiles) else chunks
    per_chunk = ceil_div(tiles, chunks)
    tasks = groups * chunks
    with loop(tasks, parallel=parallel and not (is_fixed(tasks) and tasks == 1)) as task:
        group = tirx.floordiv(task, chunks) if chunks > 1 else task
        first = (tirx.floormod(task, chunks) if chunks > 1 else 0) * per_chunk
        panel = first_panel + group * tile.panels
        with T.serial(0, smaller(per_chunk, full - first)) as step:
            _tile(product, tile, (first + step) * tile.rows, panel)
        here = tirx.And(first <= full, first + per_chunk > full) if chunks > 1 else None
        if is_fixed(rest):
            if rest:
                with when(here):
                    _tile(product, Tile(rest, tile.panels), full * tile.rows, panel)
            return
        if is_fixed(product.n):
            for rows in range(1, tile.rows):
                last = tirx.EQ(rest, rows)
                with when(last if here is None else tirx.And(here, last)):
                    _tile(product, Tile(rows, tile.panels), full * tile.rows, panel, compact=True)
            return
        # Of two symbolic sizes, less code: the remainder is made of tiles of 1, 2, 4, ... rows.
        rows = (1 << (tile.rows - 1).bit_length()) // 2
        while rows:
            left = rest % (2 * rows)
            fits = left >= rows
            with when(fits if here is None else tirx.And(here, fits)):
                _tile(product, Tile(rows, tile.panels), product.m - left, panel, compact=True)
            rows //= 2


def _fetch(product: Product, tile: Tile, panel: Expr, number: Expr, tiles: int, step: Expr) -> None:
    """What row tile `number` of `tiles` fetches at step `step` of k: all together, the panel group at `panel`."""
    assert product.fetch_b is not None
    share = -(-tile.panels // tiles)
    for part in range(share):
        mine = number * share + part
        with when(None if share * tiles == tile.panels else mine < tile.panels):
            product.fetch_b(panel + mine, step)


def _tile(
    product: Product,
    tile: Tile,
    first_row: Expr,
    first_panel: Expr,
    *,
    compact: bool = False,
    fetch: Callable[[Expr], None] | None = None,
) -> None:
    """One register tile; `compact` keeps the code of its epilogue small; `fetch` is called at every step of k."""
    accumulators = Accumulators(tile)
    accumulators.zero()
    if fetch is not None:
        for row in range(tile.rows):
            for panel in range(tile.panels):
                product.epilogue.fetch(product.place(first_row + row, (first_panel + panel) * LANES))
    with T.serial(0, product.k) as step:
        if fetch is not None:
            fetch(step)
        accumulators.multiply_add(
            [partial(product.load_a, first_row + row, step) for row in range(tile.rows)],
            [product.load_b(first_panel + panel, step) for panel in range(tile.panels)],
        )
    _write(product, tile, accumulators, first_row, first_panel, compact=compact)


def _write(
    product: Product,
    tile: Tile,
    accumulators: Accumulators,
    first_row: Expr,
    first_panel: Expr,
    *,
    compact: bool = False,
) -> None:
    """The sums of a tile, through the epilogue, to the output."""
    epilogue, bias = product.epilogue, product.bias
    for panel in range(tile.panels):
        column = (first_panel + panel) * LANES

        def place(row: Expr, lane: Expr, column: Expr = column) -> Sequence[Expr]:
            return product.place(first_row + row, column + lane)

        def element(row: int, lane: Expr, panel: int = panel, column: Expr = column) -> Expr:
            value = accumulators.element(row, panel, lane)
            return value if bias is None else value + bias[column + lane]

        def write(
            lanes: Extent, place: Placed = place, element: Placed = element, panel: int = panel, column: Expr = column
        ) -> None:
            later = epilogue.in_place or (compact and epilogue.can_be_in_place)
            for row in range(tile.rows):
                value = partial(element, row)
                if not is_fixed(lanes):  # a register cannot be indexed: the vector goes through memory
                    staged = local(LANES)
                    staged.store_vector(0, accumulators.vector(row, panel))
                    value = partial(_staged, staged, bias, column)
                epilogue.write(partial(place, row), value, lanes, later)
            if later:
                with T.serial(0, tile.rows) as row_later:
                    epilogue.finish(partial(place, row_later), lanes)

        by_width(first_panel + panel, product.n, write)


def _staged(staged: Buffer, bias: Buffer | None, column: Expr, lane: Expr) -> Expr:
    return staged[lane] if bias is None else staged[lane] + bias[column + lane]


def by_width(panel: Expr, n: Extent, body: Callable[[Extent], None]) -> None:
    """Run body(lanes) with the number of real columns of `panel`: 16, or what is left in the last one."""
    if not is_fixed(n):
        with T.If((panel + 1) * LANES <= n):
            with T.Then():
                body(LANES)
            with T.Else():
                body(tirx.max(n - panel * LANES, 0))
        return
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
