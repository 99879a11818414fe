"""Products of matrices on tensor cores: what linear layers, matmul and convolutions have in common.

A block of warps computes a tile of the result. Both operands come to shared memory by asynchronous copies of 16 bytes,
several stages ahead of their use; there a line of 64 bytes (or as many columns as the tile has) is cut into chunks of
16, which are permuted by the line's number, so that neither the copies nor ldmatrix meet the same banks twice. Warps
load fragments with ldmatrix and multiply them with mma.sync; the sums stay in registers, in float32.

At the end each warp passes its sums through shared memory, 16 rows at a time, so that neighbouring lanes store
neighbouring elements, up to 16 bytes each, through the epilogue of the group.

One barrier per stage. Limited by tensor cores for large tiles, by shared memory for small ones (a fragment is loaded
for every 8 or 16 columns that it serves), by the latency of copies where the summed dim is short.

Source of who holds which elements: PTX ISA, "Matrix fragments for mma.m16n8k16".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..gpu.workgroup import barrier, private, workgroups
from ..sizes import Extent, ceil_div, is_fixed
from ..tir import Buffer, unflatten, when
from ..vectors import held
from . import ptx
from .epilogue import RunEpilogue
from .tiles import MmaTile

Expr = Any
# From the summed index (of a chunk's first element) to its offset, and whether it exists: None means always.
Chunks = Callable[[Expr], tuple[Expr, Expr | None]]
DEPTHS = {"float16": 8, "bfloat16": 8, "tf32": 4}  # elements of a chunk
SKEW = 8  # floats between rows of sums in shared memory beyond their length: rows begin at different banks
BAND = 8  # rows of tiles that are taken together, so that what they share is still in L2


@dataclass(frozen=True)
class Operand:
    """A matrix of 16-bit elements or float32 in memory, in chunks of 16 bytes that are aligned to that.

    `chunks(batch, line)` emits what is worth computing once. Where `across` is False a line is a row of the left
    operand or a column of the right one, and chunks lie along the summed dim. Where it is True (right operand, 16 bits)
    chunks lie along the columns, and `chunks(batch, column)` takes a chunk's first column.
    """

    buffer: Buffer
    chunks: Callable[[Expr, Expr], Chunks]
    across: bool = False


@dataclass(frozen=True)
class MmaProduct:
    """result[batch, row, column] = sum over `inner` of left * right, + biases; `kind` is "float16", "bfloat16" or
    "tf32". Operands may have zeros behind `inner`, up to the end of a chunk.

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

    def emit(self, tile: MmaTile, epilogue: RunEpilogue) -> None:
        """One kernel at the root of the function."""
        row_blocks, column_blocks = ceil_div(self.rows, tile.rows), ceil_div(self.columns, tile.columns)
        with workgroups(self.batches * row_blocks * column_blocks, tile.threads) as (block, thread):
            batch, number = _quotient(block, row_blocks * column_blocks)
            row_block, column_block = _in_bands(number, row_blocks, column_blocks)
            _Block(self, tile, epilogue, held(batch), row_block, column_block, thread).emit()


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


class _Block:
    """The kernel of one block of threads."""

    def __init__(
        self,
        product: MmaProduct,
        tile: MmaTile,
        epilogue: RunEpilogue,
        batch: Expr,
        row: Expr,
        column: Expr,
        thread: Expr,
    ) -> None:
        self.product, self.tile, self.epilogue = product, tile, epilogue
        self.batch, self.thread = batch, held(thread)
        self.row, self.column = held(row * tile.rows), held(column * tile.columns)
        self.chunk = DEPTHS[product.kind]
        self.depth = self.chunk * tile.CHUNKS
        self.steps = ceil_div(product.inner, self.depth)
        # The tile of a warp, in products of 16 x 8.
        self.warp_rows, self.warp_columns = tile.rows // tile.row_warps, tile.columns // tile.column_warps
        self.high, self.wide = self.warp_rows // 16, self.warp_columns // 8
        self.lane = held(tirx.floormod(self.thread, 32))
        warp = held(tirx.floordiv(self.thread, 32))
        self.own_row = held(tirx.floormod(warp, tile.row_warps) * self.warp_rows)
        self.own_column = held(tirx.floordiv(warp, tile.row_warps) * self.warp_columns)
        pitch = (self.warp_columns + SKEW) * 4
        self.pitch, self.sums_bytes = pitch, 16 * pitch
        size = max(tile.stages * tile.stage_bytes, tile.threads // 32 * self.sums_bytes)
        memory = T.alloc_buffer((size,), "uint8", scope="shared.dyn")
        self.memory = held(ptx.shared_address(memory))
        self.own_sums = held(self.memory + tirx.Cast("uint32", warp * self.sums_bytes))
        self.sums = private(self.high * self.wide * 4)

    def emit(self) -> None:
        tile = self.tile
        with ptx.unrolled(self.high * self.wide * 4) as i:
            self.sums.store(i, tirx.const(0.0, "float32"))
        copies = [*self._copies(self.product.left, 0, self.row, tile.rows, self.product.rows)]
        first = tile.rows * tile.CHUNKS * ptx.CHUNK
        copies += self._copies(self.product.right, first, self.column, tile.columns, self.product.columns)
        ahead = tile.stages - 1
        for step in range(ahead):
            self._copy(copies, step, tirx.const(step, "int32"))
        a, b = private(self.high * 4, "uint32"), private(self.wide * 2, "uint32")
        with ptx.rolled(self.steps) as step:
            ptx.copies_wait(ahead - 1)
            barrier()
            self._copy(copies, tirx.floormod(step + ahead, tile.stages), step + ahead)
            stage = held(self._stage(tirx.floormod(step, tile.stages)))
            for half in range(tile.CHUNKS // 2):
                self._multiply(stage, half, a, b)
        ptx.copies_wait(0)
        barrier()
        self._store()

    def _stage(self, number: Expr) -> Expr:
        return self.memory + tirx.Cast("uint32", number * self.tile.stage_bytes)

    # --- copies to shared memory
    def _copies(
        self, operand: Operand, first: int, corner: Expr, lines: int, end: Extent
    ) -> list[Callable[[Expr, Expr], None]]:
        """The copies of this thread: functions of a stage's address and of the step."""
        tile = self.tile
        made = []
        total = lines * tile.CHUNKS
        for turn in range(ceil_div(total, tile.threads)):
            number = held(self.thread + turn * tile.threads)
            own = None if total % tile.threads == 0 else number < total
            made.append(self._copier(operand, first, corner, lines, end, number, own))
        return made

    def _copier(
        self, operand: Operand, first: int, corner: Expr, lines: int, end: Extent, number: Expr, own: Expr | None
    ) -> Callable[[Expr, Expr], None]:
        per_line = lines // self.chunk if operand.across else self.tile.CHUNKS
        line, chunk = (held(x) for x in _quotient(number, per_line))
        target = held(tirx.Cast("uint32", first + _place(line, chunk, per_line)))
        outer = held(corner + (chunk * self.chunk if operand.across else line))
        inside = None if is_fixed(end) and end % lines == 0 else held(tirx.Cast("int32", outer < end))
        # Lines that do not exist are computed from one that does, and not read.
        chunks = operand.chunks(
            self.batch, outer if inside is None else held(tirx.Select(inside != 0, outer, _expr(0)))
        )

        def copy(stage: Expr, step: Expr) -> None:
            k = held(step * self.depth + (line if operand.across else chunk * self.chunk))
            offset, exists = chunks(k)
            conditions = [inside != 0] if inside is not None else []
            conditions += [exists] if exists is not None else []
            # Copies run past the last step.
            conditions.append(k < self.product.inner)
            condition = conditions[0]
            for item in conditions[1:]:
                condition = tirx.And(condition, item)
            with when(own):
                ptx.copy_async(stage + target, operand.buffer, offset, condition)

        return copy

    def _copy(self, copies: Sequence[Callable[[Expr, Expr], None]], stage: Expr, step: Expr) -> None:
        address = held(self._stage(stage))
        for copy in copies:
            copy(address, step)
        ptx.copies_end_group()

    # --- products
    def _multiply(self, stage: Expr, half: int, a: Buffer, b: Buffer) -> None:
        """Half a line of each operand: 16 half floats of the summed dim, 8 of TF32."""
        row = self.own_row + tirx.floormod(self.lane, 16)
        chunk = half * 2 + tirx.floordiv(self.lane, 16)
        with ptx.unrolled(self.high) as i:
            place = _place(row + i * 16, chunk, self.tile.CHUNKS)
            ptx.load_matrices(a, i * 4, stage + tirx.Cast("uint32", place))
        with ptx.unrolled(self.wide // 2) as j:
            across = self.product.right.across
            place = self.tile.rows * self.tile.CHUNKS * ptx.CHUNK + self._right_place(half, j)
            ptx.load_matrices(b, j * 4, stage + tirx.Cast("uint32", place), transposed=across)
        if self.product.kind == "tf32":
            for words in (a, b):
                with ptx.unrolled(int(words.size)) as i:
                    ptx.round_to_tf32(words, i)
        with ptx.unrolled(self.high) as i, ptx.unrolled(self.wide) as j:
            ptx.mma(self.product.kind, self.sums, (i * self.wide + j) * 4, a, i * 4, b, j * 2)

    def _right_place(self, half: int, pair: Expr) -> Expr:
        """What this lane's row of the matrices for 16 columns is: two of the first 8, two of the others."""
        eighth, within = tirx.floordiv(self.lane, 8), tirx.floormod(self.lane, 8)
        low, high = tirx.floormod(eighth, 2), tirx.floordiv(eighth, 2)
        column = self.own_column + pair * 16 + high * 8
        if self.product.right.across:
            k = half * 16 + low * 8 + within
            return _place(k, tirx.floordiv(column, 8), self.tile.columns // 8)
        return _place(column + within, half * 2 + low, self.tile.CHUNKS)

    # --- results
    def _store(self) -> None:
        """16 rows at a time through the warp's own shared memory."""
        group, pair = tirx.floordiv(self.lane, 4), tirx.floormod(self.lane, 4)
        with ptx.unrolled(self.high) as i:
            ptx.sync_warp()
            with ptx.unrolled(self.wide) as j, ptx.unrolled(2) as lower:
                at = (i * self.wide + j) * 4 + lower * 2
                place = (group + lower * 8) * self.pitch + (j * 8 + pair * 2) * 4
                ptx.store_shared_pair(self.own_sums + tirx.Cast("uint32", place), [self.sums[at], self.sums[at + 1]])
            ptx.sync_warp()
            self._store_rows(i)

    def _store_rows(self, i: Expr) -> None:
        size = self._vector()
        with ptx.rolled(16 * self.warp_columns // size // 32) as turn:
            down, part = (held(x) for x in _quotient(turn * 32 + self.lane, self.warp_columns // size))
            across = held(part * size)
            row = held(self.row + self.own_row + i * 16 + down)
            column = held(self.column + self.own_column + across)
            fits = [
                position < end
                for position, end, block in (
                    (row, self.product.rows, self.tile.rows), (column, self.product.columns, self.tile.columns)
                )
                if not (is_fixed(end) and end % block == 0)
            ]  # fmt: skip
            condition = None if not fits else fits[0] if len(fits) == 1 else tirx.And(*fits)
            source = held(self.own_sums + tirx.Cast("uint32", down * self.pitch + across * 4))
            with when(condition):
                self.epilogue.store_run(
                    lambda e: self.product.place(self.batch, row, column + e),
                    lambda e: self._result(source, row, column, e),
                    size,
                )

    def _vector(self) -> int:
        """Elements that a lane stores at once: 16 bytes, if that many lie side by side, or 1."""
        size = ptx.CHUNK // self.epilogue.bytes
        run = self.product.run
        return size if is_fixed(run) and run % size == 0 and self.warp_columns % size == 0 else 1

    def _result(self, source: Expr, row: Expr, column: Expr, e: Expr) -> Expr:
        value = ptx.load_shared(source + tirx.Cast("uint32", e * 4))
        if self.product.row_bias is not None:
            value = value + self.product.row_bias(self.batch, row)
        if self.product.column_bias is not None:
            value = value + self.product.column_bias(self.batch, column + e)
        return value


def _place(line: Expr, chunk: Expr, per_line: int) -> Expr:
    """Where a chunk lies, in bytes: lines follow each other; within 128 bytes, chunks are permuted."""
    lines = max(1, 8 // per_line)  # that share 128 bytes
    turned = tirx.floormod(tirx.floordiv(line, lines), min(8, per_line))
    return (line * per_line + tirx.bitwise_xor(_expr(chunk), turned)) * ptx.CHUNK


def _expr(value: Extent) -> Expr:
    return tirx.const(value, "int32") if isinstance(value, int) else value
