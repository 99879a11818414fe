"""Products on the tensor cores of compute capability 9.0: warpgroups multiply what lies in shared memory with wgmma.

A warpgroup, four warps, has 64 rows and all columns of the tile; its operands need no registers. In shared memory a
line has 128 bytes, whose chunks are permuted as the swizzle of 128 bytes has it, which is how `place` permutes them.
Columns that lie across come in panels of 64. The products of a step run while the next copies are begun.

Copies are those of `product` (cp.async), which wgmma does not see before a fence; where the copy unit takes the
operands `hopper` is the form. Limited by tensor cores for large tiles, else as `mma` is.

Source of layouts and descriptors: PTX ISA, "Asynchronous warpgroup level matrix multiply-accumulate operations".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from ..vectors import held
from . import ptx
from .epilogue import RunEpilogue
from .mma import MmaBlock
from .product import Operand, Product, place
from .tiles import Tile

Expr = Any
ATOM = 1024  # bytes of 8 lines, after which the permutation repeats: where operands have to begin
PANEL = 64  # half floats that lie across in a line


class WgmmaBlock(MmaBlock):
    """Sums as those of `MmaBlock`, a warp with 16 rows and all columns."""

    resident = 1  # a large tile has half of the registers
    alignment = ATOM

    def __init__(self, product: Product, tile: Tile, epilogue: RunEpilogue, number: Expr, thread: Expr) -> None:
        super().__init__(product, tile, epilogue, number, thread)
        assert self.warp_rows == 16
        assert self.warp_columns == tile.columns
        self.first_row = held(tirx.floordiv(self.thread, 128) * 64)

    def chunk_place(self, operand: Operand, line: Expr, chunk: Expr, per_line: int) -> Expr:
        if not operand.across:
            return super().chunk_place(operand, line, chunk, per_line)
        panel, within = tirx.floordiv(chunk, 8), tirx.floormod(chunk, 8)
        return panel * self._panel_bytes + place(line, within, 8)

    @property
    def _panel_bytes(self) -> int:
        return self.depth * PANEL * 2

    def step(self, stage: Expr, copy: Callable[[], None]) -> None:
        across = self.product.right.across
        left = held(descriptor(ptx.moved(stage, self.first_row * (self.tile.chunks * ptx.CHUNK)), ptx.CHUNK))
        right = held(descriptor(ptx.moved(stage, self.right_start), self._panel_bytes if across else ptx.CHUNK))
        ptx.wgmma_begin(self.sums, self.wide * 4)
        for k in range(self.depth // 16):
            # Along a line 16 elements are 32 bytes; across, 16 lines are 2048.
            moved = (k * 2, k * (2048 // 16 if across else 2))
            descriptors = [part + tirx.const(by, "uint64") for part, by in zip((left, right), moved, strict=True)]
            ptx.wgmma(self.product.kind, self.sums, self.tile.columns, *descriptors, across=across)
        ptx.wgmma_end_group()
        copy()
        ptx.wgmma_wait(self.sums, self.wide * 4)

    def wait(self, newest: int) -> None:
        """And wgmma sees them."""
        super().wait(newest)
        ptx.fence_async()


def descriptor(address: Expr, leading: int) -> Expr:
    """Of a matrix at an address, permuted within 128 bytes: eight lines after ATOM bytes; across, the next panel after
    `leading` bytes. In units of 16 bytes."""
    start = tirx.Cast("uint64", tirx.shift_right(address, tirx.const(4, "uint32")))
    fixed = (leading // 16) << 16 | (ATOM // 16) << 32 | 1 << 62
    return start + tirx.const(fixed, "uint64")
