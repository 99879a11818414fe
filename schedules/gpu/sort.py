"""Sort and top-k: rows sorted in shared memory, tiles of long rows first and then merged.

What is sorted are words: an element as an int that has its order (NaN above all others, both zeros the same) and its
position behind it. No two words are the same, so that every way of sorting them is the stable one. Dtypes of up to 32
bits have one int64 with the position in its lower half, others an int64 for each. Values are read again where they are
written.

A workgroup sorts its tile by a bitonic network (Batcher, "Sorting networks and their applications", 1968), all
comparisons upwards, with all threads waiting for each other between steps. Short rows share a workgroup. Rows of more
than a tile:

- top-k with a small k: every tile gives its first k, which are the next, shorter rows.
- else pairs of sorted runs are merged in global memory: an element's place is its own in its run, and the number of
  those before it in the other one, by binary search.

Limited by shared memory, merging by the loads of the searches, which mostly meet the caches. A target's rule says what
a tile is, and how threads wait.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ops.dtypes import HALF

from ..fuse import lowered
from ..scalar import Tir
from ..sizes import Extent, ceil_div, count, extent, is_empty, is_fixed
from ..tir import LANES, Buffer, KernelBuilder, local, when
from ..vectors import held
from .threads import each_thread
from .workgroup import barrier, private, workgroups

Expr = Any
Words = list[Expr]
Read = Callable[[Expr, Expr], Words]  # the words of an element of a row
Write = Callable[[Expr, Expr, Words], None]  # what becomes of the words at a rank of a row
LAST = 2**63 - 1  # behind every word
HALF_WORD = 2**32
MAX_OFFSET = 1 << 31


@dataclass(frozen=True)
class Form:
    """How a target sorts: elements that a workgroup sorts at most (`tile`), and at least, of several rows (`small`), by
    so many `threads`; `make` makes a tile. `searched(low, high, most)` is the loop of a binary search of up to `most`
    elements, while there is something between its two ends."""

    tile: int
    small: int
    threads: int
    make: Callable[..., Tile]
    searched: Callable[[Buffer, Buffer, int], AbstractContextManager[Any]]


def sorted_rows(group: Group, name: str, form_of: Callable[[int], Form]) -> Lowered | None:
    """The kernel of a sort or a top-k along an axis of known length; `form_of` an element of so many words."""
    if len(group.nodes) != 1 or group.nodes[0].op.name not in ("sort", "topk"):
        return None
    node = group.nodes[0]
    op: Any = node.op
    x = node.inputs[0].type
    along = x.shape[op.axis]
    if not isinstance(along, int):
        return None
    kept: int = along if op.name == "sort" else op.k
    rows: Dim = count(x.shape[: op.axis]) * count(x.shape[op.axis + 1 :])
    descending: bool = op.descending if op.name == "sort" else op.largest
    parts = 2 if x.dtype in ("int64", "float64") else 1
    form = form_of(parts)
    plan = Plan(along, kept, form.tile)
    # Of two buffers that every launch reads or writes in turn.
    space = 2 * parts * plan.space
    if not _offsets_fit(rows, along, space):
        return None
    builder = KernelBuilder(
        name, [x], [value.type for value in node.outputs], workspace=rows * space, workspace_dtype="int64"
    )
    with builder:
        if not is_empty((rows, kept)):
            inner = extent(count(x.shape[op.axis + 1 :]))
            _Sorting(builder, plan, extent(rows), inner, parts, form, descending).emit(rows)
    levels = max(1, (along - 1).bit_length())
    return lowered(group, builder, flops=rows * along * levels, workspace=rows * space * 8)


def _offsets_fit(rows: Dim, along: int, space: int) -> bool:
    """Whether 32 bits hold any offset: tensors are known to fit."""
    return rows * space < MAX_OFFSET if isinstance(rows, int) else space <= along


class Plan:
    """Which launches a row takes: `lengths` of the rows that tiles of are sorted, one after the other; `merged`: the
    first one's tiles are merged, all of them."""

    def __init__(self, along: int, kept: int, tile: int) -> None:
        self.along, self.kept, self.tile = along, kept, tile
        self.merged = along > tile and kept > tile // 2
        self.lengths = [along]
        while not self.merged and self.lengths[-1] > tile:
            self.lengths.append(ceil_div(self.lengths[-1], tile) * kept)
        # Words of a row between launches, of whole lines of the workspace.
        self.space = ceil_div(along, tile) * tile if self.merged else max([0, *self.lengths[1:]])
        self.space = ceil_div(self.space, LANES) * LANES


class Rows(ABC):
    """The launches that sort `rows` rows of `plan.along` elements. Neighbouring elements of a row are `inner` apart in
    memory; words have so many `parts`."""

    def __init__(self, builder: KernelBuilder, plan: Plan, rows: Extent, inner: Extent, parts: int, form: Form) -> None:
        self.builder, self.plan, self.rows, self.inner, self.parts = builder, plan, rows, inner, parts
        self.form = form

    @abstractmethod
    def element(self, row: Expr, position: Expr) -> Words:
        """The words of an element."""

    @abstractmethod
    def result(self, row: Expr, rank: Expr, words: Words) -> None:
        """What becomes of the first `plan.kept` words of a row."""

    def emit(self, rows: Dim) -> None:
        plan, size = self.plan, rows * self.plan.space
        spaces = [[self.builder.scratch(size) for _ in range(self.parts)] for _ in range(2)] if plan.space else []
        if plan.merged:
            self.tiles(plan.along, self.element, self.into(spaces[0], plan.tile), plan.tile)
            self.merge(spaces)
            return
        read: Read = self.element
        for number, length in enumerate(plan.lengths[:-1]):
            self.tiles(length, read, self.into(spaces[number % 2], plan.kept), plan.kept)
            read = self.out_of(spaces[number % 2])
        self.whole(plan.lengths[-1], read)

    def into(self, space: Sequence[Buffer], width: int) -> Write:
        """Runs of `width` words in global memory."""

        def write(row: Expr, place: Expr, words: Words) -> None:
            for part, word in zip(space, words, strict=True):
                part.store(row * self.plan.space + place, word)

        return write

    def out_of(self, space: Sequence[Buffer]) -> Read:
        return lambda row, position: [held(part[row * self.plan.space + position]) for part in space]

    def tiles(self, length: int, read: Read, write: Write, kept: int) -> None:
        """Every tile of rows of `length` gives its first `kept` words, in order; LAST where it has fewer."""
        size, threads = self.plan.tile, self.form.threads
        across = ceil_div(length, size)
        with workgroups(self.rows * across, threads) as (block, thread):
            row, tile = held(tirx.floordiv(block, across)), held(tirx.floormod(block, across))
            block_tile = self.form.make(size, size, self.parts, thread, threads)
            start = held(tile * size)
            block_tile.fill(lambda _, at: start + at < length, lambda _, at: read(row, held(start + at)))
            block_tile.sort()
            block_tile.each(lambda _, at: at < kept, lambda _, at, words: write(row, tile * kept + at, words))

    def whole(self, length: int, read: Read) -> None:
        """Rows of up to a tile's words, to the outputs."""
        padded = max(2, 1 << (length - 1).bit_length())
        size = max(padded, self.form.small)
        together = size // padded
        threads = min(self.form.threads, size // 2)
        # Neighbours in memory are of neighbouring rows.
        turned = read == self.element and (not is_fixed(self.inner) or self.inner > 1)
        with workgroups(ceil_div(self.rows, together), threads) as (block, thread):
            tile = self.form.make(size, padded, self.parts, thread, threads, turned=turned)
            first = held(block * together)

            def exists(number: Expr, at: Expr, end: int) -> Expr:
                return tirx.And(at < end, first + number < self.rows)

            tile.fill(lambda number, at: exists(number, at, length), lambda number, at: read(held(first + number), at))
            tile.sort()
            tile.each(
                lambda number, at: exists(number, at, self.plan.kept),
                lambda number, at, words: self.result(held(first + number), at, words),
            )

    def merge(self, spaces: Sequence[Sequence[Buffer]]) -> None:
        """Runs of a tile, two tiles, ... to the outputs."""
        length, width, number = self.plan.space, self.plan.tile, 0
        while width < length:
            read, last = self.out_of(spaces[number % 2]), 2 * width >= length
            write = self.into(spaces[1 - number % 2], width)
            with each_thread(self.rows * length, 256) as position:
                row, at = held(tirx.floordiv(position, length)), held(tirx.floormod(position, length))
                words = read(row, at)
                run, place = held(tirx.floordiv(at, width)), held(tirx.floormod(at, width))
                other = held(T.bitwise_xor(run, tirx.const(1, "int32")) * width)
                rank = self.rank(read, row, words, other, held(T.max(T.min(length - other, width), 0)), width)
                target = held(tirx.floordiv(run, 2) * (2 * width) + place + rank)
                if last:
                    with when(target < self.plan.kept):
                        self.result(row, target, words)
                else:
                    write(row, target, words)
            width, number = 2 * width, number + 1

    def rank(self, read: Read, row: Expr, words: Words, start: Expr, length: Expr, most: int) -> Expr:
        """How many words of a sorted run of `length`, at `most` so many, stand before these."""
        low, high = local(1, "int32"), local(1, "int32")
        low.store(0, tirx.const(0, "int32"))
        high.store(0, length)
        with self.form.searched(low, high, most):
            middle = held(low[0] + T.shift_right(high[0] - low[0], tirx.const(1, "int32")))
            beyond = held(T.Cast("int32", _before(read(row, held(start + middle)), words)))
            low.store(0, tirx.Select(beyond != 0, middle + 1, low[0]))
            high.store(0, tirx.Select(beyond != 0, high[0], middle))
        return held(low[0])


class _Sorting(Rows):
    """Of a tensor: values and positions."""

    def __init__(
        self,
        builder: KernelBuilder,
        plan: Plan,
        rows: Extent,
        inner: Extent,
        parts: int,
        form: Form,
        descending: bool,
    ) -> None:
        super().__init__(builder, plan, rows, inner, parts, form)
        (self.x,), (self.values, self.positions) = builder.inputs, builder.outputs
        self.descending, self.s = descending, Tir()

    def at(self, length: int, row: Expr, position: Expr) -> Expr:
        """The offset of an element in a tensor with rows of `length`."""
        if is_fixed(self.inner) and self.inner == 1:
            return row * length + position
        outer, column = tirx.floordiv(row, self.inner), tirx.floormod(row, self.inner)
        return (outer * length + position) * self.inner + column

    def element(self, row: Expr, position: Expr) -> Words:
        """Of an element of the input."""
        key = held(self.key(held(self.x[self.at(self.plan.along, row, position)])))
        if self.descending:
            key = tirx.const(-1, "int64") - key
        place = T.Cast("int64", position)
        return [key, place] if self.parts > 1 else [key * tirx.const(HALF_WORD, "int64") + place]

    def key(self, value: Expr) -> Expr:
        """An int64 that has the order of the elements; of 32 bits where one word has to do."""
        s, dtype = self.s, self.x.dtype
        if dtype in HALF:
            value, dtype = held(s.cast(value, "float32")), "float32"
        if dtype == "bool":
            return s.cast(value, "int64")
        if not dtype.startswith("float"):
            return T.Cast("int64", value)
        whole = dtype.replace("float", "int")
        largest = tirx.const(2 ** (int(dtype[5:]) - 1) - 1, whole)
        bits = held(T.reinterpret(whole, value))
        size = held(T.bitwise_and(bits, largest))
        zero = tirx.const(0, whole)
        ordered = tirx.Select(bits < zero, zero - size, size)
        return T.Cast("int64", held(tirx.Select(s.is_nan(value), largest, ordered)))

    def result(self, row: Expr, rank: Expr, words: Words) -> None:
        """An element of the outputs."""
        low = words[-1] if self.parts > 1 else T.bitwise_and(words[0], tirx.const(HALF_WORD - 1, "int64"))
        chosen = held(low)
        place = held(self.at(self.plan.kept, row, rank))
        self.values.store(place, self.x[self.at(self.plan.along, row, T.Cast("int32", chosen))])
        self.positions.store(place, chosen)


class Tile(ABC):
    """`size` words in shared memory, of rows of `padded` (a power of two), and the threads that sort them."""

    def __init__(self, size: int, padded: int, parts: int, thread: Expr, threads: int, *, turned: bool = False) -> None:
        self.size, self.padded, self.parts, self.turned = size, padded, parts, turned
        self.thread, self.threads = thread, threads

    @abstractmethod
    def read(self, place: Expr) -> Words:
        """The words at a place."""

    @abstractmethod
    def write(self, place: Expr, words: Words) -> None:
        """The same, written."""

    @abstractmethod
    def meet(self, distance: Expr) -> None:
        """Threads wait for what others wrote, who compare what is so far apart next."""

    def loop(self, turns: Any) -> Any:
        return T.serial(0, turns)

    def turns(self, count: int) -> Any:
        return self.loop(count // self.threads)

    def fill(self, exists: Callable[[Expr, Expr], Expr], read: Callable[[Expr, Expr], Words]) -> None:
        """The words at each place of each row, LAST where there is nothing."""
        with self.turns(self.size) as turn:
            number, at = self.place(turn)
            words = [private(1, "int64") for _ in range(self.parts)]
            for word in words:
                word.store(0, tirx.const(LAST, "int64"))
            with when(exists(number, at)):
                for word, value in zip(words, read(number, at), strict=True):
                    word.store(0, value)
            self.write(held(number * self.padded + at), [word[0] for word in words])
        barrier()

    def each(self, wanted: Callable[[Expr, Expr], Expr], use: Callable[[Expr, Expr, Words], None]) -> None:
        with self.turns(self.size) as turn:
            number, at = self.place(turn)
            with when(wanted(number, at)):
                use(number, at, self.read(held(number * self.padded + at)))

    def place(self, turn: Expr) -> tuple[Expr, Expr]:
        """The row, and the place in it, of this thread's turn."""
        position = held(turn * self.threads + self.thread)
        if self.turned:
            together = self.size // self.padded
            return held(tirx.floormod(position, together)), held(tirx.floordiv(position, together))
        return held(tirx.floordiv(position, self.padded)), held(tirx.floormod(position, self.padded))

    def sort(self) -> None:
        """Every row upwards. A level joins two runs of 2^level: it compares the first of one with the last of the
        other, and so on inwards, then what is half of that apart."""
        one = tirx.const(1, "int32")
        with self.loop(self.padded.bit_length() - 1) as level, self.loop(level + 1) as step:
            shift = held(level - step)
            distance = held(T.shift_left(one, shift))
            self.meet(distance)
            with self.turns(self.size // 2) as turn:
                pair = held(turn * self.threads + self.thread)
                start = held(T.shift_left(T.shift_right(pair, shift), shift + one))
                inside = held(T.bitwise_and(pair, distance - one))
                low = held(start + inside)
                high = held(tirx.Select(step == 0, start + distance + distance - one - inside, low + distance))
                self.exchange(low, high)
        barrier()

    def exchange(self, low: Expr, high: Expr) -> None:
        a, b = self.read(low), self.read(high)
        with when(_before(b, a)):
            self.write(low, b)
            self.write(high, a)


def _before(a: Words, b: Words) -> Expr:
    if len(a) == 1:
        return a[0] < b[0]
    return tirx.Or(a[0] < b[0], tirx.And(tirx.EQ(a[0], b[0]), a[1] < b[1]))
