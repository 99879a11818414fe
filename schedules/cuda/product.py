"""Products of matrices by blocks of warps: what tensor cores and ordinary multiply-adds have in common.

A block computes a tile of the result. Both operands come to shared memory by asynchronous copies of 16 bytes, several
stages ahead of their use; there a line of 64 bytes (or as many columns as the tile has) is cut into chunks of 16, which
are permuted by the line's number, so that neither the copies nor what reads them meet the same banks twice. The sums
stay in registers, in float32.

At the end each warp passes its sums through shared memory, 16 rows at a time, so that neighbouring lanes store
neighbouring elements, up to 16 bytes each, through the epilogue of the group. One barrier per stage. Where there are
few tiles, several teams of warps share one: each sums a part of every line, and the parts meet at the end in order.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim

from ..gpu.workgroup import barrier, private
from ..sizes import Extent, ceil_div, is_fixed
from ..tir import Buffer, unflatten, when
from ..vectors import held
from . import ptx
from .tiles import Tile

Expr = Any
# From the summed index (of a chunk's first element) to its offset, and whether it exists: None means always.
Chunks = Callable[[Expr], tuple[Expr, Expr | None]]
DEPTHS = {"float16": 8, "bfloat16": 8, "tf32": 4, "float32": 4}  # elements of a chunk
SKEW = 8  # floats between rows of sums in shared memory beyond their length: rows begin at different banks
BAND = 8  # rows of tiles that are taken together, so that what they share is still in L2


@dataclass(frozen=True)
class Tensor:
    """An operand as a device's copy unit is told of it: `sizes` in elements, innermost first, of which no copy reads
    more (what lies outside is zero), `strides` in bytes of all dims but the innermost. Its lines are along dim `lines`.

    `places(batch, line)` emits what is worth computing once, and gives the coordinates of a copy by the summed index.
    With `corners` (im2col: those of the first and of the last pixel that a filter's first tap meets, by dim; positions
    are `steps` apart) lines are pixels, and the tap's offsets follow the coordinates.
    """

    buffer: Buffer
    sizes: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    places: Callable[[Expr, Expr], Callable[[Expr], Sequence[Expr]]]
    lines: int = 1
    corners: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Operand:
    """A matrix of 16-bit elements or float32 in memory, in chunks of 16 bytes that are aligned to that.

    `chunks(batch, line)` emits what is worth computing once. Where `across` is False a line is a row of the left
    operand or a column of the right one, and chunks lie along the summed dim. Where it is True (right operand)
    chunks lie along the columns, and `chunks(batch, column)` takes a chunk's first column.
    `tensor`: the same for a copy unit, where it takes it; across, its dims are lines, then the summed dim.
    """

    buffer: Buffer
    chunks: Callable[[Expr, Expr], Chunks]
    across: bool = False
    tensor: Tensor | None = None


@dataclass(frozen=True)
class Product:
    """result[batch, row, column] = sum over `inner` of left * right, + biases; `kind` is "float16",
    "bfloat16", "tf32" or "float32". Operands may have zeros behind `inner`, up to the end of a chunk.

    `place` is the index in the output. `run`: that many columns from a multiple of it on are neighbours in memory.
    """

    kind: str
    batches: Extent
    rows: Extent
    columns: Extent
    inner: Extent
    left: Operand
    right: Operand
    place: Callable[[Expr, Expr, Expr], Sequence[Expr]]
    run: Extent
    row_bias: Callable[[Expr, Expr], Expr] | None = None
    column_bias: Callable[[Expr, Expr], Expr] | None = None

    def biased(self, value: Expr, batch: Expr, row: Expr, column: Expr) -> Expr:
        """A sum of products with what is added to it."""
        if self.row_bias is not None:
            value = value + self.row_bias(batch, row)
        return value if self.column_bias is None else value + self.column_bias(batch, column)

    def block(self, number: Expr, tile: Tile) -> tuple[Expr, Expr, Expr]:
        """(batch, row, column) of block `number` of `blocks`, in tiles."""
        row_blocks, column_blocks = ceil_div(self.rows, tile.rows), ceil_div(self.columns, tile.columns)
        batch, within = _quotient(number, row_blocks * column_blocks)
        return (held(batch), *_in_bands(within, row_blocks, column_blocks))

    def blocks(self, tile: Tile) -> Extent:
        """How many tiles there are."""
        return self.batches * ceil_div(self.rows, tile.rows) * ceil_div(self.columns, tile.columns)


def _quotient(number: Expr, divisor: Extent) -> tuple[Expr, Expr]:
    return tirx.floordiv(number, divisor), tirx.floormod(number, divisor)


def _in_bands(number: Expr, rows: Extent, columns: Extent) -> tuple[Expr, Expr]:
    """(row, column) of block `number`: down BAND rows of blocks, then the next column."""
    if not is_fixed(rows, columns) or rows <= 1 or columns <= 1:
        row, column = unflatten(number, (rows, columns))
        return held(row), held(column)
    band, rest = _quotient(number, BAND * columns)
    first = held(band * BAND)
    height = held(T.min(rows - first, BAND))
    return held(first + tirx.floormod(rest, height)), held(tirx.floordiv(rest, height))


class Block(ABC):
    """The kernel of one block of threads."""

    resident = 2  # on a multiprocessor at least
    alignment = 0  # of shared memory in bytes, a power of two; 0: what every block has

    def __init__(
        self,
        product: Product,
        tile: Tile,
        epilogue: Destination,
        number: Expr,
        thread: Expr,
    ) -> None:
        self.product, self.tile, self.epilogue = product, tile, epilogue
        self.thread = held(thread)
        self.batch, row, column = product.block(number, tile)
        self.row, self.column = held(row * tile.rows), held(column * tile.columns)
        self.chunk = DEPTHS[product.kind]
        self.depth = self.chunk * tile.chunks
        self.steps = ceil_div(product.inner, self.depth)
        self.warp_rows, self.warp_columns = tile.rows // tile.row_warps, tile.columns // tile.column_warps
        self.lane = held(tirx.floormod(self.thread, 32))
        warp = held(tirx.floordiv(self.thread, 32))
        self.slice, within = (held(x) for x in _quotient(warp, tile.team))
        self.slice_chunk = held(self.slice * (tile.chunks // tile.slices))
        self.own_row = held(tirx.floormod(within, tile.row_warps) * self.warp_rows)
        self.own_column = held(tirx.floordiv(within, tile.row_warps) * self.warp_columns)
        pitch = (self.warp_columns + SKEW) * 4
        self.pitch, self.sums_bytes = pitch, 16 * pitch
        size = max(tile.stages * tile.stage_bytes, tile.threads // 32 * self.sums_bytes)
        memory = T.alloc_buffer((size + self.alignment,), "uint8", scope="shared.dyn")
        self.memory = held(ptx.aligned(ptx.shared_address(memory), self.alignment))
        self.own_sums = held(ptx.moved(self.memory, warp * self.sums_bytes))
        self.team_sums = held(ptx.moved(self.memory, within * self.sums_bytes))
        self.sums = private(self.warp_rows * self.warp_columns // 32)

    def emit(self) -> None:
        tile = self.tile
        with ptx.unrolled(int(self.sums.size)) as i:
            self.sums.store(i, tirx.const(0.0, "float32"))
        copies = [*self._copies(self.product.left, 0, self.row, tile.rows, self.product.rows)]
        first = self.right_start
        copies += self._copies(self.product.right, first, self.column, tile.columns, self.product.columns)
        ahead = tile.stages - 1
        for step in range(ahead):
            self._copy(copies, step, tirx.const(step, "int32"))
        with ptx.rolled(self.steps) as step:
            self.wait(ahead - 1)
            barrier()
            stage = held(self._stage(tirx.floormod(step, tile.stages)))
            self.step(stage, lambda: self._copy(copies, tirx.floormod(step + ahead, tile.stages), step + ahead))
        ptx.copies_wait(0)
        barrier()
        self._store()

    def _stage(self, number: Expr) -> Expr:
        return ptx.moved(self.memory, number * self.tile.stage_bytes)

    # --- copies to shared memory
    def _copies(
        self, operand: Operand, first: int, corner: Expr, lines: int, end: Extent
    ) -> list[Callable[[Expr, Expr], None]]:
        """The copies of this thread: functions of a stage's address and of the step."""
        tile = self.tile
        made = []
        total = lines * tile.chunks
        for turn in range(ceil_div(total, tile.threads)):
            number = held(self.thread + turn * tile.threads)
            own = None if total % tile.threads == 0 else number < total
            made.append(self._copier(operand, first, corner, lines, end, number, own))
        return made

    def _copier(
        self, operand: Operand, first: int, corner: Expr, lines: int, end: Extent, number: Expr, own: Expr | None
    ) -> Callable[[Expr, Expr], None]:
        per_line = lines // self.chunk if operand.across else self.tile.chunks
        line, chunk = (held(x) for x in _quotient(number, per_line))
        target = held(tirx.Cast("uint32", first + self.chunk_place(operand, line, chunk, per_line)))
        outer = held(corner + (chunk * self.chunk if operand.across else line))
        inside = None if is_fixed(end) and end % lines == 0 else held(tirx.Cast("int32", outer < end))
        # Lines that do not exist are computed from one that does, and not read.
        chunks = operand.chunks(
            self.batch, outer if inside is None else held(tirx.Select(inside != 0, outer, as_expr(0)))
        )

        def copy(stage: Expr, step: Expr) -> None:
            k = held(step * self.depth + (line if operand.across else chunk * self.chunk))
            offset, exists = chunks(k)
            conditions = [inside != 0] if inside is not None else []
            conditions += [exists] if exists is not None else []
            # Copies run past the last step.
            conditions.append(k < self.product.inner)
            condition = functools.reduce(tirx.And, conditions)
            with when(own):
                ptx.copy_async(stage + target, operand.buffer, offset, condition)

        return copy

    def _copy(self, copies: Sequence[Callable[[Expr, Expr], None]], stage: Expr, step: Expr) -> None:
        address = held(self._stage(stage))
        for copy in copies:
            copy(address, step)
        ptx.copies_end_group()

    # --- products
    @property
    def right_start(self) -> int:
        """Where the right operand's lines begin in a stage, in bytes."""
        return self.tile.rows * self.tile.chunks * ptx.CHUNK

    def wait(self, newest: int) -> None:
        """This thread's copies but the `newest` have landed; a barrier makes them those of the block."""
        ptx.copies_wait(newest)

    def step(self, stage: Expr, copy: Callable[[], None]) -> None:
        """Begins the next copies and adds the products of the stage at an address to the sums."""
        copy()
        self.multiply(stage)

    def chunk_place(self, operand: Operand, line: Expr, chunk: Expr, per_line: int) -> Expr:
        """Where a chunk of an operand lies behind its start, in bytes."""
        return place(line, chunk, per_line)

    @abstractmethod
    def multiply(self, stage: Expr) -> None:
        """Adds the products of the stage at an address to the sums."""

    @abstractmethod
    def pass_on(self, band: Expr) -> None:
        """Writes the sums of 16 rows of the warp to its shared memory, `pitch` bytes a row."""

    # --- results
    def _store(self) -> None:
        with ptx.unrolled(self.warp_rows // 16) as band:
            self._meet()
            self.pass_on(band)
            self._meet()
            self._store_rows(band)

    def _meet(self) -> None:
        """The warps that have parts of the same sums."""
        if self.tile.slices == 1:
            ptx.sync_warp()
        else:
            barrier()

    def _store_rows(self, i: Expr) -> None:
        slices, lane = self.tile.slices, self.slice * 32 + self.lane
        store_rows(
            self.product, self.tile, self.epilogue, Rows(self.team_sums, self.warp_columns, self.pitch), self.batch,
            self.row + self.own_row + i * 16, self.column + self.own_column, lane, 32 * slices,
            [other * self.tile.team * self.sums_bytes for other in range(1, slices)],
        )  # fmt: skip


class Destination(Protocol):
    """What takes runs of results, given in float32; `bytes` of an element."""

    @property
    def bytes(self) -> int: ...

    def store_run(self, index: Callable[[Expr], Sequence[Expr]], value: Callable[[Expr], Expr], size: int) -> None:
        """Elements 0 .. size - 1, which lie side by side, at once; their place is a multiple of `size`."""


@dataclass(frozen=True)
class Rows:
    """16 rows of sums in shared memory at an address, each of `columns` float32, `pitch` bytes apart."""

    address: Expr
    columns: int
    pitch: int


def store_rows(
    product: Product,
    tile: Tile,
    epilogue: Destination,
    rows: Rows,
    batch: Expr,
    first_row: Expr,
    first_column: Expr,
    lane: Expr,
    lanes: int,
    others: Sequence[int] = (),
) -> None:
    """Stores sums through the epilogue, by `lanes` threads. The sums of other slices of the summed dim lie `others`
    bytes behind, and are added in that order."""
    size = vector(product, epilogue, rows.columns)
    runs = 16 * rows.columns // size

    def result(source: Expr, row: Expr, column: Expr, e: Expr) -> Expr:
        value = ptx.load_shared(ptx.moved(source, e * 4))
        for other in others:
            value = value + ptx.load_shared(ptx.moved(source, e * 4 + other))
        return product.biased(value, batch, row, column + e)

    with ptx.rolled(ceil_div(runs, lanes)) as turn:
        number = held(turn * lanes + lane)
        down, part = (held(x) for x in _quotient(number, rows.columns // size))
        across = held(part * size)
        row, column = held(first_row + down), held(first_column + across)
        fits = [
            position < end
            for position, end, block in ((row, product.rows, tile.rows), (column, product.columns, tile.columns))
            if not (is_fixed(end) and end % block == 0)
        ]
        fits += [number < runs] if runs % lanes else []
        condition = functools.reduce(tirx.And, fits) if fits else None
        source = held(ptx.moved(rows.address, down * rows.pitch + across * 4))
        with when(condition):
            epilogue.store_run(
                lambda e: product.place(batch, row, column + e), lambda e: result(source, row, column, e), size
            )


def vector(product: Product, epilogue: Destination, columns: int) -> int:
    """Elements that a lane stores at once: 16 bytes, if that many lie side by side, or 1."""
    size = ptx.CHUNK // epilogue.bytes
    return size if is_fixed(product.run) and product.run % size == 0 and columns % size == 0 else 1


def place(line: Expr, chunk: Expr, per_line: int) -> Expr:
    """Where a chunk lies, in bytes: lines follow each other; within 128 bytes, chunks are permuted."""
    lines = max(1, 8 // per_line)  # that share 128 bytes
    turned = tirx.floormod(tirx.floordiv(line, lines), min(8, per_line))
    return (line * per_line + tirx.bitwise_xor(as_expr(chunk), turned)) * ptx.CHUNK


def as_expr(value: Extent) -> Expr:
    return tirx.const(value, "int32") if isinstance(value, int) else value
