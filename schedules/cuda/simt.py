"""Products in float32 by ordinary multiply-adds: true float32, as PyTorch computes unless TF32 is switched on.

The lanes of a warp lie 4 x 8 beside each other; a lane computes every fourth row and every eighth column of the warp's
tile (columns that lie across in shared memory: four neighbours of every 32). For four elements of the summed dim it
loads as many chunks of 16 bytes as it has rows and columns, 16 for 256 multiply-adds with a tile of 8 x 8. Limited by
multiply-adds for such tiles, by shared memory for smaller ones.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from ..gpu.workgroup import private
from . import ptx
from .product import Block, Destination, Product, place
from .tiles import Tile

Expr = Any
LARGE = 32  # sums of a lane


class SimtBlock(Block):
    """Sums of `high` x `wide` elements in a lane, row by row."""

    def __init__(self, product: Product, tile: Tile, epilogue: Destination, number: Expr, thread: Expr) -> None:
        super().__init__(product, tile, epilogue, number, thread)
        self.high, self.wide = self.warp_rows // 4, self.warp_columns // 8
        self.down, self.across = tirx.floordiv(self.lane, 8), tirx.floormod(self.lane, 8)
        self.a = private(self.high * 4)
        self.b = private(self.wide if product.right.across else 4)

    def multiply(self, stage: Expr) -> None:
        # Chunks ahead would take more registers than a lane with a large tile has left.
        loop = ptx.rolled if self.high * self.wide > LARGE else ptx.unrolled
        with loop(self.tile.chunks // self.tile.slices) as part:
            chunk = self.slice_chunk + part
            with ptx.unrolled(self.high) as i:
                row = self.own_row + self.down + i * 4
                ptx.load_shared_chunk(self.a, i * 4, ptx.moved(stage, place(row, chunk, self.tile.chunks)))
            if self.product.right.across:
                self._multiply_rows(stage, chunk)
            else:
                self._multiply_columns(stage, chunk)

    def _multiply_columns(self, stage: Expr, chunk: Expr) -> None:
        """Column by column, whose chunks lie along the summed dim."""
        with ptx.unrolled(self.wide) as j:
            at = place(self.own_column + self._column(j), chunk, self.tile.chunks)
            ptx.load_shared_chunk(self.b, 0, ptx.moved(stage, self.right_start + at))
            with ptx.unrolled(4) as k, ptx.unrolled(self.high) as i:
                self._add(i * self.wide + j, self.a[i * 4 + k], self.b[k])

    def _multiply_rows(self, stage: Expr, chunk: Expr) -> None:
        """One element of the summed dim after the other, whose chunks lie along the columns."""
        with ptx.unrolled(4) as k:
            with ptx.unrolled(self.wide // 4) as j:
                column = tirx.floordiv(self.own_column + self._column(j * 4), 4)
                at = place(chunk * 4 + k, column, self.tile.columns // 4)
                ptx.load_shared_chunk(self.b, j * 4, ptx.moved(stage, self.right_start + at))
            with ptx.unrolled(self.high) as i, ptx.unrolled(self.wide) as j:
                self._add(i * self.wide + j, self.a[i * 4 + k], self.b[j])

    def _add(self, at: Expr, a: Expr, b: Expr) -> None:
        self.sums.store(at, self.sums[at] + a * b)

    def _column(self, j: Expr) -> Expr:
        """Where the lane's column `j` is in the warp's tile."""
        if self.product.right.across:
            return self.across * 4 + tirx.floordiv(j, 4) * 32 + tirx.floormod(j, 4)
        return self.across + j * 8

    def pass_on(self, band: Expr) -> None:
        with ptx.unrolled(4) as i, ptx.unrolled(self.wide) as j:
            offset = (self.down + i * 4) * self.pitch + self._column(j) * 4
            value = self.sums[(band * 4 + i) * self.wide + j]
            ptx.store_shared(ptx.moved(self.own_sums, offset), value)
