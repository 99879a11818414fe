"""x @ W.T + bias of many rows by one level of Strassen's algorithm: seven products of half the size, not eight.

Two parallel loops. The first makes the seven left factors, rows of K/2, from pairs of rows of x, each row scaled by a
power of two to about 1 (see transpiler/ops/strassen.py). The second runs over (panel groups x chunks of rows), as in
`product.py`: for every factor pair the register tiles of a chunk, whose sums are added to the four quarters of the
result in the workspace of the thread (L1 and L2); then the quarters are scaled back and go through the epilogue.
The next factor's panels are fetched into L2 meanwhile.

Limited by multiply-adds, of which there are 7/8 as many as in a direct product. What is added to them: 6/K of
theirs for the quarters, 3/N for the left factors, and the weights are 7/4 as large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.packed import blocks
from transpiler.ops.strassen import LEFT, PRODUCTS, RECOVERED, RESULT, LinearStrassen, half_panels
from transpiler.target import Isa, Target

from ..fuse import lowered
from ..scalar import Tir
from ..sizes import is_empty, is_large
from ..tir import LANES, Buffer, KernelBuilder, local, loop, own_turns, splat, unflatten, vector_loop, when
from .epilogue import Epilogue, elementwise_epilogue
from .gemm import Accumulators, Tile, choose_tile
from .product import by_width

EPILOGUE = True

Expr = Any

# Tasks to aim for, so that a static split over a few threads is even.
TASKS = 8
# Parts of the workspace that tasks work in, at most; the threads of a pool beyond it would have nothing to do.
STRIPS = 16
QUARTERS = 4
# Exponent bits of float32: its infinities have EXPONENT, 1 is at BIAS. Scales are normal numbers and so are their
# reciprocals, which have the exponents SUM - e.
EXPONENT, MANTISSA_BITS, SUM = 255, 23, 254


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, LinearStrassen) or group.prologue or not elementwise_epilogue(group):
        return None
    x, weight, *bias = node.inputs
    if not x.type.is_static:
        return None
    *leading, k = x.type.static_shape()
    rows = 1
    for size in leading:
        rows *= size
    if is_empty(leading) or k == 0:
        return None
    shape = _Shape(rows, node.op.features, k // 2, leading)
    plan = _make_plan(target.isa, shape)
    builder = KernelBuilder(
        name, [value.type for value in group.inputs], [group.outputs[0].type], workspace=plan.workspace(shape)
    )
    with builder:
        emitter = _Emitter(
            shape, plan,
            builder.inputs[group.input_index(x)],
            builder.inputs[group.input_index(weight)],
            builder.inputs[group.input_index(bias[0])] if bias else None,
            Epilogue(group, builder),
            builder.scratch(PRODUCTS * shape.upper * plan.stride),
            builder.scratch(2 * shape.upper),
            builder.scratch(plan.strips * plan.slot),
        )  # fmt: skip
        emitter.emit()
    return lowered(group, builder, flops=shape.flops, workspace=4 * plan.workspace(shape))


@dataclass(frozen=True)
class _Shape:
    """[rows, 2 depth] times [2 depth, columns]."""

    rows: int
    columns: int
    depth: int
    leading: Sequence[int]

    @property
    def upper(self) -> int:
        """Rows of the upper half; the lower one may have one less."""
        return -(-self.rows // 2)

    @property
    def panels(self) -> int:
        """Panels of the left half of the columns; the right one may have one less that is real."""
        return half_panels(self.columns)

    @property
    def flops(self) -> int:
        """Of the products, of the left factors and of the sums of products."""
        left = sum(abs(sign) for signs in LEFT for sign in signs) - PRODUCTS
        sums = sum(abs(sign) for signs in RESULT for sign in signs) - QUARTERS
        quarter = self.upper * self.panels * LANES
        return quarter * (PRODUCTS * 2 * self.depth + sums) + left * self.upper * self.depth


@dataclass(frozen=True)
class _Plan:
    """How the work is cut. Sizes in elements."""

    tile: Tile
    chunks: int  # of the upper rows, each of `tiles` register tiles; the last may have fewer
    tiles: int
    strips: int
    stride: int  # between rows of a left factor
    slot: int  # of the workspace, for the quarters of a task

    def workspace(self, shape: _Shape) -> int:
        aligned = -(-2 * shape.upper // LANES) * LANES
        return PRODUCTS * shape.upper * self.stride + aligned + self.strips * self.slot


def _make_plan(isa: Isa, shape: _Shape) -> _Plan:
    tile = choose_tile(isa, shape.upper, shape.panels)
    groups, tiles = -(-shape.panels // tile.panels), -(-shape.upper // tile.rows)
    per_chunk = -(-tiles // min(tiles, max(1, -(-TASKS // groups))))
    chunks = -(-tiles // per_chunk)
    # An odd number of cache lines, so that the rows of a tile lie in different sets.
    stride = (-(-shape.depth // LANES) | 1) * LANES
    slot = QUARTERS * per_chunk * tile.rows * tile.panels * LANES
    return _Plan(tile, chunks, per_chunk, min(STRIPS, groups * chunks), stride, slot)


@dataclass(frozen=True)
class _Emitter:
    shape: _Shape
    plan: _Plan
    x: Buffer
    weight: Buffer
    bias: Buffer | None
    epilogue: Epilogue
    factors: Buffer  # [PRODUCTS, upper, stride]: the left factors
    scales: Buffer  # of each row what its results are multiplied with; 0 if the row is not finite
    quarters: Buffer  # [strips, slot]

    def emit(self) -> None:
        shape, plan = self.shape, self.plan
        parallel = is_large(shape.flops)
        pairs = shape.rows - shape.upper
        with loop(pairs, parallel=parallel and pairs > 1) as row:
            self.left_factors(row, row + shape.upper)
        if pairs < shape.upper:
            self.left_factors(pairs, None)
        groups, rest = divmod(shape.panels, plan.tile.panels)
        for panels, start, number in ((plan.tile.panels, 0, groups), (rest, groups * plan.tile.panels, 1)):
            if panels and number:
                self.tasks(panels, start, number * plan.chunks, parallel)
        with T.serial(0, shape.rows) as row, when(tirx.EQ(self.scales[row], tirx.const(0.0, "float32"))):
            self.direct(row)

    # --- the left factors
    def left_factors(self, upper: Expr, lower: Expr | None) -> None:
        """The row `upper` of every left factor, from rows `upper` and `lower` (none: zeros) of x."""
        shape = self.shape
        finite, factors = zip(*(self.scale(row) for row in (upper, lower) if row is not None), strict=True)
        s = Tir()

        def body(step: Expr) -> None:
            parts = []
            for number, row in enumerate(row for row in (upper, lower) if row is not None):
                for offset in (0, shape.depth):
                    value = self.x[row * (2 * shape.depth) + offset + step]
                    kept = s.select(finite[number][0] != 0, value, tirx.const(0.0, "float32"))
                    parts.append(s.bind(kept * factors[number][0]))
            for product, signs in enumerate(LEFT):
                terms = [(sign, parts[at]) for at, sign in enumerate(signs) if sign and at < len(parts)]
                place = (product * shape.upper + upper) * self.plan.stride + step
                self.factors.store(place, _signed_sum(terms) if terms else tirx.const(0.0, "float32"))

        _along(shape.depth, body, ["float32"] * QUARTERS)

    def scale(self, row: Expr) -> tuple[Buffer, Buffer]:
        """Whether a row is finite, and the power of two that it is multiplied with; what undoes that is stored."""
        peaks = local(LANES, "uint32")
        peaks.store_vector(0, splat(tirx.const(0, "uint32")))
        s, width = Tir(), 2 * self.shape.depth

        def note(lane: Expr, step: Expr) -> None:
            bits = s.reinterpret(s.magnitude(self.x[row * width + step]), "uint32")
            peaks.store(lane, tirx.max(peaks[lane], bits))

        full = width // LANES
        if full:
            with T.serial(0, full) as group, vector_loop(LANES) as lane:
                note(lane, group * LANES + lane)
        with T.serial(0, width - full * LANES) as lane:
            note(lane, full * LANES + lane)
        peak, finite, factor = local(1, "uint32"), local(1, "int32"), local(1)
        peak.store(0, tirx.const(0, "uint32"))
        with T.serial(0, LANES) as lane:
            peak.store(0, tirx.max(peak[0], peaks[lane]))
        peak.store(0, s.shift_right(peak[0], MANTISSA_BITS))
        finite.store(0, T.Cast("int32", peak[0] < tirx.const(EXPONENT, "uint32")))
        low, high = tirx.const(1, "uint32"), tirx.const(SUM - 1, "uint32")
        peak.store(0, tirx.min(tirx.max(peak[0], low), high))
        inverse = s.reinterpret(s.shift_left(peak[0], MANTISSA_BITS), "float32")
        factor.store(0, s.reinterpret(s.shift_left(tirx.const(SUM, "uint32") - peak[0], MANTISSA_BITS), "float32"))
        self.scales.store(row, s.select(finite[0] != 0, inverse, tirx.const(0.0, "float32")))
        return finite, factor

    # --- the products
    def tasks(self, panels: int, start: int, number: int, parallel: bool) -> None:
        """Every (panel group, chunk) of `number`; a thread works in the slot of its first strip."""
        plan = self.plan
        strips = min(plan.strips, number)
        with own_turns(strips, parallel=parallel and strips > 1) as (first, turns):
            begin = tirx.floordiv(first * number, strips)
            end = tirx.floordiv((first + turns) * number, strips)
            with T.serial(0, end - begin) as step:
                group = tirx.floordiv(begin + step, plan.chunks) if plan.chunks > 1 else begin + step
                chunk = tirx.floormod(begin + step, plan.chunks) if plan.chunks > 1 else 0
                panel = start + group * panels
                following = start + tirx.min(group + 1, number // plan.chunks - 1) * panels

                def body(rows: int) -> None:
                    task = _Task(panel, panels, following, chunk * plan.tiles * plan.tile.rows, rows, first * plan.slot)
                    self.products(task)
                    self.results(task)

                last = self.shape.upper - (plan.chunks - 1) * plan.tiles * plan.tile.rows
                if plan.chunks == 1 or last == plan.tiles * plan.tile.rows:
                    body(last)
                else:
                    with T.If(chunk < plan.chunks - 1):
                        with T.Then():
                            body(plan.tiles * plan.tile.rows)
                        with T.Else():
                            body(last)

    def products(self, task: _Task) -> None:
        seen: set[int] = set()
        full, rest = divmod(task.rows, self.plan.tile.rows)
        for product, signs in enumerate(RESULT):
            if full:
                with T.serial(0, full) as tile:
                    fetch = partial(self.fetch, task, product, tile, full)
                    self.register_tile(task, product, tile * self.plan.tile.rows, self.plan.tile.rows, seen, fetch)
            if rest:
                self.register_tile(task, product, full * self.plan.tile.rows, rest, seen, None)
            seen |= {quarter for quarter, sign in enumerate(signs) if sign}

    def register_tile(
        self, task: _Task, product: int, first: Expr, rows: int, seen: set[int], fetch: Callable[[Expr], None] | None
    ) -> None:
        """Sums of `rows` rows of a product from row `first` of the task on, added to the quarters where they count."""
        accumulators = Accumulators(Tile(rows, task.panels))
        accumulators.zero()
        base = (product * self.shape.upper + task.row + first) * self.plan.stride
        with T.serial(0, self.shape.depth) as step:
            if fetch is not None:
                fetch(step)
            accumulators.multiply_add(
                [partial(self.factors.__getitem__, base + row * self.plan.stride + step) for row in range(rows)],
                [self.right(task.panel + panel, product, step) for panel in range(task.panels)],
            )
        for quarter, sign in enumerate(RESULT[product]):
            if not sign:
                continue
            for row in range(rows):
                for panel in range(task.panels):
                    place, value = task.place(quarter, first + row, panel), accumulators.vector(row, panel)
                    if quarter in seen:
                        before = self.quarters.vector(place)
                        value = before + value if sign > 0 else before - value
                    self.quarters.store_vector(place, value)

    def right(self, panel: Expr, product: Expr, step: Expr) -> Expr:
        """16 columns of a right factor."""
        return self.weight.vector(self.right_place(panel, product, step))

    def right_place(self, panel: Expr, product: Expr, step: Expr) -> Expr:
        return (panel * (PRODUCTS * self.shape.depth + 2) + product * self.shape.depth + step) * LANES

    def fetch(self, task: _Task, product: int, tile: Expr, tiles: int, step: Expr) -> None:
        """What register tile `tile` of `tiles` fetches at `step`: the next tile's rows, a line of one of them, and all
        together the right factor that comes next."""
        self.factors.fetch(self.next_rows(task, product, tile, tiles, step))
        last = product == PRODUCTS - 1
        panel, following = (task.following, 0) if last else (task.panel, product + 1)
        share = -(-task.panels // tiles)
        for part in range(share):
            mine = tile * share + part
            with when(None if share * tiles == task.panels else mine < task.panels):
                self.weight.fetch(self.right_place(panel + mine, following, step))

    def next_rows(self, task: _Task, product: int, tile: Expr, tiles: int, step: Expr) -> Expr:
        rows, upper = self.plan.tile.rows, self.shape.upper
        row = product * upper + task.row + (tile + 1) * rows
        if tiles * rows == task.rows:
            first = (product + 1) % PRODUCTS * upper + task.row
            row = tirx.Select(tile < tiles - 1, row, first)
        within = tirx.min(tirx.floormod(step, LANES), rows - 1)
        return (row + within) * self.plan.stride + tirx.floordiv(step, LANES) * LANES

    # --- the results
    def results(self, task: _Task) -> None:
        """The task's quarters, scaled back and through the epilogue, to the output."""
        upper, columns = self.shape.upper, blocks(self.shape.columns)
        with T.serial(0, 2) as down, T.serial(0, task.rows) as step:
            row = down * upper + task.row + step
            with when(None if self.shape.rows == 2 * upper else row < self.shape.rows):
                for across in range(2):
                    for panel in range(task.panels):
                        column = across * self.shape.panels + task.panel + panel
                        place = task.place(down * 2 + across, step, panel)
                        scales = self.right_place(task.panel + panel, PRODUCTS, across)
                        with when(None if across == 0 or columns == 2 * self.shape.panels else column < columns):
                            self.write(row, column, partial(self.scaled, row, scales, place))

    def scaled(self, row: Expr, scales: Expr, place: Expr, lane: Expr) -> Expr:
        """A sum in the quarters as a result. Scaled back in this order nothing over- or underflows on the way."""
        return self.quarters[place + lane] * self.weight[scales + lane] * self.scales[row]

    def write(self, row: Expr, panel: Expr, element: Callable[[Expr], Expr]) -> None:
        """16 results in `row`, before the bias, through the epilogue."""

        def with_bias(lane: Expr) -> Expr:
            return element(lane) if self.bias is None else element(lane) + self.bias[panel * LANES + lane]

        def index(lane: Expr) -> Sequence[Expr]:
            return [*unflatten(row, self.shape.leading), panel * LANES + lane]

        by_width(panel, self.shape.columns, lambda lanes: self.epilogue.store(index, with_bias, lanes))

    def direct(self, row: Expr) -> None:
        """A row as direct sums, with the weights put together from the right factors."""
        panels, depth = self.shape.panels, self.shape.depth
        with T.serial(0, panels) as panel:
            for side in range(2):
                total = local(LANES)
                total.store_vector(0, splat(0.0))
                scale = self.weight.vector(self.right_place(panel, PRODUCTS, side))
                with T.serial(0, depth) as step:
                    for half in range(2):
                        terms = [
                            (sign, self.right(panel, product, step))
                            for product, sign in RECOVERED[2 * half + side].items()
                        ]
                        value = splat(self.x[row * (2 * depth) + half * depth + step])
                        total.store_vector(0, total.vector(0) + value * (_signed_sum(terms) * scale))
                column = side * panels + panel
                with when(None if side == 0 or blocks(self.shape.columns) == 2 * panels else
                          column < blocks(self.shape.columns)):  # fmt: skip
                    self.write(row, column, total.__getitem__)


@dataclass(frozen=True)
class _Task:
    """A panel group of the half width and a chunk of rows of the upper half, and where its quarters lie."""

    panel: Expr
    panels: int
    following: Expr  # the next task's first panel
    row: Expr
    rows: int
    slot: Expr

    def place(self, quarter: Expr, row: Expr, panel: int) -> Expr:
        return self.slot + ((quarter * self.rows + row) * self.panels + panel) * LANES


def _signed_sum(terms: Sequence[tuple[int, Expr]]) -> Expr:
    """Of terms of factor 1 or -1; one of factor 1 is among them, or there is one term."""
    ordered = sorted(terms, key=lambda term: -term[0])
    sign, total = ordered[0]
    total = total if sign > 0 else tirx.const(0.0, "float32") - total
    for sign, value in ordered[1:]:
        total = total + value if sign > 0 else total - value
    return total


def _along(size: int, body: Callable[[Expr], None], temporaries: Sequence[str]) -> None:
    """body(position) for `size` positions, as vectors."""
    full, rest = divmod(size, LANES)
    if full:
        with T.serial(0, full) as group, vector_loop(LANES, temporaries) as lane:
            body(group * LANES + lane)
    if rest:
        with T.serial(0, rest) as lane:
            body(full * LANES + lane)
