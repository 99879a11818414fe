"""Products of matrices given by functions: the loop nest that linear layers, matmul and convolutions share.

Two forms:

* `direct`: a thread computes a tile of the result in registers and reads both operands where they lie. The threads of a
  workgroup lie beside each other along the columns, so that neighbours read neighbours. Limited by loads: rows +
  columns of them for rows * columns multiply-adds. For devices whose loads are cached and whose barriers cost much.
  An operand with `Quads` is read four elements at once.
* `staged`: a workgroup copies a block of both operands to shared memory, `depth` of the summed dim at a time, and each
  thread reads its tile's rows and columns from there: every element is read from memory once per workgroup. Two
  barriers per block.

Indices beyond the result are clamped on the way in and left out on the way out, so that the inner loop has no branches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..sizes import Extent, ceil_div, count, is_fixed
from ..tir import unflatten, when
from ..vectors import held
from .workgroup import barrier, private, shared, workgroups

Expr = Any
# An operand's row (or column) made ready: given the indices of the summed loops but the last, the element at an index
# of that one. Emits what is worth computing once per turn of those loops.
Line = Callable[[Sequence[Expr]], Callable[[Expr], Expr]]
# The line at (batch, row or column). Emits what is worth computing once.
Operand = Callable[[Expr, Expr], Line]
# Where a column's elements are in the output: at (batch, column), the index by row. Emits what is worth computing once.
Place = Callable[[Expr, Expr], Callable[[Expr], Sequence[Expr]]]


QUAD = 4


class Sink(Protocol):
    """Where results go: the group's epilogue, mostly."""

    def store(self, index: Sequence[Expr], value: Expr) -> None:
        """The element at `index`, as `place` gives it."""


@dataclass(frozen=True)
class Quads:
    """An operand by vectors of four elements that lie side by side in memory, from a multiple of four on.

    `line` gives those of the four rows (columns) from the given one on, a multiple of four; `along`: those of one row
    (column) at four times the given index of the last summed loop.
    """

    line: Operand
    along: bool = False


@dataclass(frozen=True)
class Tile:
    """What a thread computes, and how the threads of a workgroup lie. `depth` 0: the direct form. A thread's columns
    are `column_threads` apart, runs of `run` of them side by side."""

    rows: int
    columns: int
    row_threads: int
    column_threads: int
    depth: int = 0
    run: int = 1

    @property
    def threads(self) -> int:
        return self.row_threads * self.column_threads

    @property
    def block_rows(self) -> int:
        return self.rows * self.row_threads

    @property
    def block_columns(self) -> int:
        return self.columns * self.column_threads


@dataclass(frozen=True)
class Product:
    """result[batch, row, column] = sum over `inner` of left * right, + biases.

    `left_quads` and `right_quads` are other ways to read the operands. Quads across rows (columns) need a number of
    rows (columns) that is a multiple of four, quads along the summed dim that of its last loop.
    """

    batches: Extent
    rows: Extent
    columns: Extent
    inner: tuple[Extent, ...]
    left: Operand
    right: Operand
    place: Place
    dtype: str = "float32"
    row_bias: Callable[[Expr, Expr], Expr] | None = None  # of (batch, row)
    column_bias: Callable[[Expr, Expr], Expr] | None = None  # of (batch, column)
    left_quads: Quads | None = None
    right_quads: Quads | None = None

    def emit(self, tile: Tile, epilogue: Sink) -> None:
        """One kernel at the root of the function."""
        row_blocks, column_blocks = ceil_div(self.rows, tile.block_rows), ceil_div(self.columns, tile.block_columns)
        with workgroups(self.batches * row_blocks * column_blocks, tile.threads) as (group, thread):
            batch, row_block, column_block = unflatten(group, (self.batches, row_blocks, column_blocks))
            batch = held(batch)
            down, across = tirx.floordiv(thread, tile.column_threads), tirx.floormod(thread, tile.column_threads)
            corner = _Corner(
                held(row_block * tile.block_rows), held(column_block * tile.block_columns), held(down), held(across)
            )
            sums = private(tile.rows * tile.columns, self.dtype)
            self._begin(tile, batch, corner, sums)
            (self._staged if tile.depth else self._direct)(tile, batch, corner, sums)
            self._store(tile, batch, corner, sums, epilogue)

    def _begin(self, tile: Tile, batch: Expr, corner: _Corner, sums: Any) -> None:
        zero = tirx.const(0, self.dtype)
        rows, columns = [zero] * tile.rows, [zero] * tile.columns
        if self.row_bias is not None:
            rows = [held(self.row_bias(batch, self._row(corner.own_row(tile, i), tile))) for i in range(tile.rows)]
        if self.column_bias is not None:
            columns = [
                held(self.column_bias(batch, self._column(corner.own_column(tile, j), tile)))
                for j in range(tile.columns)
            ]
        for i in range(tile.rows):
            for j in range(tile.columns):
                first = columns[j] if self.row_bias is None else rows[i]
                sums.store(i * tile.columns + j, first)

    def _direct(self, tile: Tile, batch: Expr, corner: _Corner, sums: Any) -> None:
        rows = [self._row(corner.own_row(tile, i), tile) for i in range(tile.rows)]
        columns = [self._column(corner.own_column(tile, j), tile) for j in range(tile.columns)]
        left = _side(self.left, self.left_quads, batch, rows, 1 if tile.rows % QUAD else QUAD)
        right = _side(self.right, self.right_quads, batch, columns, tile.run)
        step = QUAD if left.along or right.along else 1
        with ExitStack() as loops:
            index = [loops.enter_context(T.serial(0, extent)) for extent in self.inner[:-1]]
            left_lines, right_lines = left.ready(index), right.ready(index)
            last = loops.enter_context(T.serial(0, self.inner[-1] // step))
            left_elements, right_elements = left_lines(last, step), right_lines(last, step)
            for k in range(step):
                _multiply_add(tile, sums, left_elements(k), right_elements(k))

    def _staged(self, tile: Tile, batch: Expr, corner: _Corner, sums: Any) -> None:
        total = count(self.inner)
        # A row more than there is, so that threads that write down a column meet different banks.
        pitch_left, pitch_right = tile.block_rows + 1, tile.block_columns + 1
        left, right = shared(tile.depth * pitch_left, self.dtype), shared(tile.depth * pitch_right, self.dtype)
        thread = corner.down * tile.column_threads + corner.across
        with T.serial(0, ceil_div(total, tile.depth)) as step:
            barrier()
            with _dealt(tile.block_rows * tile.depth, tile.threads, thread) as element:
                row, k = tirx.floordiv(element, tile.depth), tirx.floormod(element, tile.depth)
                line = self.left(batch, self._row(corner.row + row, tile))
                left.store(k * pitch_left + row, self._element(line, step * tile.depth + k, total))
            with _dealt(tile.block_columns * tile.depth, tile.threads, thread) as element:
                k, column = tirx.floordiv(element, tile.block_columns), tirx.floormod(element, tile.block_columns)
                line = self.right(batch, self._column(corner.column + column, tile))
                right.store(k * pitch_right + column, self._element(line, step * tile.depth + k, total))
            barrier()
            with T.serial(0, tile.depth) as k:
                own_left = [left[k * pitch_left + (corner.down * tile.rows + row)] for row in range(tile.rows)]
                own_right = [
                    right[k * pitch_right + (column * tile.column_threads + corner.across)]
                    for column in range(tile.columns)
                ]
                _multiply_add(tile, sums, own_left, own_right)

    def _element(self, line: Line, k: Expr, total: Extent) -> Expr:
        """The element at `k` of the summed loops, 0 behind their end."""
        k = held(k)
        inside = k < (total if is_fixed(total) else held(total))
        clamped = T.min(k, total - 1)
        *outer, last = unflatten(clamped, self.inner)
        return T.if_then_else(inside, line(outer)(last), tirx.const(0, self.dtype))

    def _row(self, row: Expr, tile: Tile) -> Expr:
        return held(row if _divides(tile.block_rows, self.rows) else T.min(row, self.rows - 1))

    def _column(self, column: Expr, tile: Tile) -> Expr:
        return held(column if _divides(tile.block_columns, self.columns) else T.min(column, self.columns - 1))

    def _store(self, tile: Tile, batch: Expr, corner: _Corner, sums: Any, epilogue: Sink) -> None:
        """The sums through the epilogue, in a loop over a copy of them: an array that is indexed by a variable lies in
        memory, and as many copies of the epilogue as the tile has elements take seconds to compile."""
        copy = private(tile.rows * tile.columns, self.dtype)
        for position in range(tile.rows * tile.columns):
            copy.store(position, sums[position])
        rows_fit, columns_fit = _divides(tile.block_rows, self.rows), _divides(tile.block_columns, self.columns)
        with T.serial(0, tile.columns) as j:
            column = held(corner.own_column(tile, j))
            with when(None if columns_fit else column < self.columns):
                place = self.place(batch, column)
                with T.serial(0, tile.rows) as i:
                    row = held(corner.own_row(tile, i))
                    with when(None if rows_fit else row < self.rows):
                        epilogue.store(place(row), copy[i * tile.columns + j])


@dataclass(frozen=True)
class _Corner:
    """The first row and column of the workgroup, and the thread's place in it."""

    row: Expr
    column: Expr
    down: Expr
    across: Expr

    def own_row(self, tile: Tile, number: Expr) -> Expr:
        return self.row + self.down * tile.rows + number

    def own_column(self, tile: Tile, number: Expr) -> Expr:
        if tile.run == 1:
            return self.column + number * tile.column_threads + self.across
        run, lane = (
            divmod(number, tile.run)
            if isinstance(number, int)
            else (tirx.floordiv(number, tile.run), tirx.floormod(number, tile.run))
        )
        return self.column + (run * tile.column_threads + self.across) * tile.run + lane


# The elements of a side at one of the steps of a turn of the last summed loop.
Elements = Callable[[int], Sequence[Expr]]


@dataclass(frozen=True)
class _Side:
    """The rows (columns) of a thread's tile; `ready` is given the indices of the summed loops but the last, then a turn
    of that one and the number of its elements in a turn."""

    ready: Callable[[Sequence[Expr]], Callable[[Expr, int], Elements]]
    along: bool = False


def _side(single: Operand, quads: Quads | None, batch: Expr, places: Sequence[Expr], run: int) -> _Side:
    """`run`: how many of `places` at least lie side by side from a multiple of that on."""
    if quads is not None and quads.along:
        return _along(quads, batch, places)
    if quads is not None and run == QUAD:
        return _across(quads, batch, places)
    lines = [single(batch, place) for place in places]

    def ready(outer: Sequence[Expr]) -> Callable[[Expr, int], Elements]:
        at = [line(outer) for line in lines]
        return lambda turn, step: lambda k: [element(turn if step == 1 else turn * step + k) for element in at]

    return _Side(ready)


def _across(quads: Quads, batch: Expr, places: Sequence[Expr]) -> _Side:
    lines = [quads.line(batch, place) for place in places[::QUAD]]

    def ready(outer: Sequence[Expr]) -> Callable[[Expr, int], Elements]:
        at = [line(outer) for line in lines]
        return lambda turn, step: (
            lambda k: [lane for vector in at for lane in _lanes(vector(turn if step == 1 else turn * step + k))]
        )

    return _Side(ready)


def _along(quads: Quads, batch: Expr, places: Sequence[Expr]) -> _Side:
    lines = [quads.line(batch, place) for place in places]

    def ready(outer: Sequence[Expr]) -> Callable[[Expr, int], Elements]:
        at = [line(outer) for line in lines]

        def elements(turn: Expr, _step: int) -> Elements:
            vectors = [_lanes(vector(turn)) for vector in at]
            return lambda k: [lanes[k] for lanes in vectors]

        return elements

    return _Side(ready, along=True)


def _lanes(vector: Expr) -> list[Expr]:
    """The elements of a vector, which is loaded once."""
    kept = private(QUAD, str(vector.dtype if hasattr(vector, "dtype") else vector.ty.dtype).partition("x")[0])
    kept.store_vector(0, vector, QUAD)
    return [kept[lane] for lane in range(QUAD)]


def _multiply_add(tile: Tile, sums: Any, left: Sequence[Expr], right: Sequence[Expr]) -> None:
    own_left, own_right = [held(x) for x in left], [held(x) for x in right]
    for i, x in enumerate(own_left):
        for j, y in enumerate(own_right):
            position = i * tile.columns + j
            sums.store(position, sums[position] + x * y)


@contextmanager
def _dealt(work: int, threads: int, thread: Expr) -> Iterator[Expr]:
    """A loop over 0..work, its turns dealt to the threads."""
    with ExitStack() as stack:
        turn = stack.enter_context(T.serial(0, ceil_div(work, threads)))
        index = held(turn * threads + thread)
        if work % threads:
            stack.enter_context(T.If(index < work))
            stack.enter_context(T.Then())
        yield index


def _divides(block: int, size: Extent) -> bool:
    return is_fixed(size) and size % block == 0
