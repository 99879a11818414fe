"""Sort and top-k (see gpu/sort.py): comparisons of elements that are far apart take a barrier of the block, those
within the 64 of a warp wait for the warp alone.

Limited by shared memory, merging by the loads of the searches, which mostly meet L1 and L2.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.target import Target

from ..gpu.sort import Form, Tile, Words, sorted_rows
from ..gpu.workgroup import barrier
from ..tir import Buffer
from ..vectors import held
from . import ptx

Expr = Any
WARP_SPAN = 64  # elements that the pairs of a warp cover, as long as both of a pair are no further apart


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    return sorted_rows(group, name, lambda parts: FORM)


class _Tile(Tile):
    def __init__(self, size: int, padded: int, parts: int, thread: Expr, threads: int, *, turned: bool = False) -> None:
        super().__init__(size, padded, parts, thread, threads, turned=turned)
        # Named by addresses: TVM puts barriers of its own around what it sees of shared memory.
        memory = T.alloc_buffer((size * parts * 8,), "uint8", scope="shared.dyn")
        self.memory = held(ptx.shared_address(memory))

    def address(self, place: Expr, part: int) -> Expr:
        return ptx.moved(self.memory, (place + part * self.size) * 8)

    def loop(self, turns: Any) -> Any:
        return ptx.rolled(turns)

    def read(self, place: Expr) -> Words:
        return [held(ptx.load_shared_long(self.address(place, part))) for part in range(self.parts)]

    def write(self, place: Expr, words: Words) -> None:
        for part, word in enumerate(words):
            ptx.store_shared_long(self.address(place, part), word)

    def meet(self, distance: Expr) -> None:
        with T.If(distance >= WARP_SPAN // 2):
            with T.Then():
                barrier()
            with T.Else():
                ptx.sync_warp()


def _searched(low: Buffer, high: Buffer, most: int) -> Any:
    return T.While(low[0] < high[0])


FORM = Form(tile=2048, small=512, threads=512, make=_Tile, searched=_searched)
