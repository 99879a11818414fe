"""Sort and top-k (see gpu/sort.py): tiles in shared memory, with a barrier of the workgroup between two steps.

Nothing is known of subgroups, so that all threads of a workgroup wait for each other at every step. Rows whose length
varies are left to the rule that gives a thread to each; on processors, where barriers are dear, those as well that take
no more turns of a thread's loops than a driver there allows (see transpiler/spirv/turns.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.spirv.turns import MAX_DIVERGENT_TURNS
from transpiler.target import Target

from ..cpu.sort import INSERTION
from ..gpu.sort import Form, Tile, Words, sorted_rows
from ..gpu.workgroup import barrier, shared
from ..tir import Buffer, when
from ..vectors import held

Expr = Any
THREADS = 256
# Bytes of a tile: two of them fit on a multiprocessor that has no more than every card.
TILE_BYTES = 1 << 14
SMALL = 512  # elements of rows that share a workgroup
MORE_TURNS = 4  # of an element: ends of loops, what is done before and behind


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    return sorted_rows(group, name, _form) if target.gpu.staged or _is_long(group) else None


def _is_long(group: Group) -> bool:
    """Whether a thread that sorts a row by itself may have too many turns: for every element one for each of those
    that are kept, or for each level of merging, and some more."""
    if len(group.nodes) != 1 or group.nodes[0].op.name not in ("sort", "topk"):
        return False
    node = group.nodes[0]
    op: Any = node.op
    along = node.inputs[0].shape[op.axis]
    if not isinstance(along, int):
        return False
    inserted = op.name == "topk" and op.k <= INSERTION and op.k * 4 <= along
    return along * ((op.k if inserted else along.bit_length()) + MORE_TURNS) > MAX_DIVERGENT_TURNS


def _form(parts: int) -> Form:
    return Form(tile=TILE_BYTES // (8 * parts), small=SMALL, threads=THREADS, make=_Tile, searched=_searched)


class _Tile(Tile):
    def __init__(self, size: int, padded: int, parts: int, thread: Expr, threads: int, *, turned: bool = False) -> None:
        super().__init__(size, padded, parts, thread, threads, turned=turned)
        self.memory = shared(size * parts, "int64", watched=False)

    def read(self, place: Expr) -> Words:
        return [held(self.memory[place + part * self.size]) for part in range(self.parts)]

    def write(self, place: Expr, words: Words) -> None:
        for part, word in enumerate(words):
            self.memory.store(place + part * self.size, word)

    def meet(self, distance: Expr) -> None:
        barrier()


@contextmanager
def _searched(low: Buffer, high: Buffer, most: int) -> Iterator[None]:
    """As many turns as the search may take: some drivers limit loops whose turns are not known."""
    with T.serial(0, most.bit_length()), when(low[0] < high[0]):
        yield
