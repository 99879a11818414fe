"""Sort and top-k (see gpu/sort.py) on graphics cards: tiles in shared memory, a barrier of the workgroup between steps.

Nothing is known of subgroups, so that all threads of a workgroup wait for each other at every step. Rows whose length
varies, and everything on processors, are left to the rule that gives a thread to each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.target import Target

from ..gpu.sort import Form, Tile, Words, sorted_rows
from ..gpu.workgroup import barrier, shared
from ..tir import Buffer, when
from ..vectors import held

Expr = Any
THREADS = 256
# Bytes of a tile: two of them fit on a multiprocessor that has no more than every card.
TILE_BYTES = 1 << 14
SMALL = 512  # elements of rows that share a workgroup


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    return sorted_rows(group, name, _form) if target.gpu.staged else None


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
