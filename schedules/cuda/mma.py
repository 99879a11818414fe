"""Products on tensor cores: warps load fragments with ldmatrix and multiply them with mma.sync.

Limited by tensor cores for large tiles, by shared memory for small ones (a fragment is loaded for every 8 or 16 columns
that it serves), by the latency of copies where the summed dim is short.

Source of who holds which elements: PTX ISA, "Matrix fragments for mma.m16n8k16" and the others.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from ..gpu.workgroup import private
from ..tir import Buffer
from . import ptx
from .epilogue import RunEpilogue
from .product import Block, Product, place
from .tiles import Tile

Expr = Any


class MmaBlock(Block):
    """Sums of products of 16 x 8: four of a lane, in rows lane // 4 and + 8, columns lane % 4 * 2 and the next."""

    def __init__(self, product: Product, tile: Tile, epilogue: RunEpilogue, number: Expr, thread: Expr) -> None:
        super().__init__(product, tile, epilogue, number, thread)
        self.high, self.wide = self.warp_rows // 16, self.warp_columns // 8
        self.a, self.b = private(self.high * 4, "uint32"), private(self.wide * 2, "uint32")

    def multiply(self, stage: Expr) -> None:
        for half in range(self.tile.chunks // self.tile.slices // 2):
            self._multiply(stage, half)

    def _multiply(self, stage: Expr, half: int) -> None:
        """Half a line of each operand: 16 half floats of the summed dim, 8 of TF32."""
        row = self.own_row + tirx.floormod(self.lane, 16)
        chunk = self.slice_chunk + half * 2 + tirx.floordiv(self.lane, 16)
        with ptx.unrolled(self.high) as i:
            ptx.load_matrices(self.a, i * 4, ptx.moved(stage, place(row + i * 16, chunk, self.tile.chunks)))
        if self.product.kind == "tf32" and self.product.right.across:
            self._load_words(stage, half)
        else:
            with ptx.unrolled(self.wide // 2) as j:
                at = ptx.moved(stage, self.right_start + self._right_place(half, j))
                ptx.load_matrices(self.b, j * 4, at, transposed=self.product.right.across)
        if self.product.kind == "tf32":
            self._round(self.a)
            self._round(self.b)
        with ptx.unrolled(self.high) as i, ptx.unrolled(self.wide) as j:
            ptx.mma(self.product.kind, self.sums, (i * self.wide + j) * 4, self.a, i * 4, self.b, j * 2)

    def _round(self, words: Buffer) -> None:
        with ptx.unrolled(int(words.size)) as i:
            ptx.round_to_tf32(words, i)

    def _right_place(self, half: int, pair: Expr) -> Expr:
        """What this lane's row of the matrices for 16 columns is: two of the first 8, two of the others."""
        eighth, within = tirx.floordiv(self.lane, 8), tirx.floormod(self.lane, 8)
        low, high = tirx.floormod(eighth, 2), tirx.floordiv(eighth, 2)
        column = self.own_column + pair * 16 + high * 8
        if self.product.right.across:
            k = (self.slice_chunk + half * 2) * self.chunk + low * 8 + within
            return place(k, tirx.floordiv(column, 8), self.tile.columns // 8)
        return place(column + within, self.slice_chunk + half * 2 + low, self.tile.chunks)

    def _load_words(self, stage: Expr, half: int) -> None:
        """Fragments of 32-bit elements that lie across: ldmatrix transposes none, so they come one by one."""
        with ptx.unrolled(self.wide) as j, ptx.unrolled(2) as lower:
            k = (self.slice_chunk + half * 2) * self.chunk + lower * 4 + tirx.floormod(self.lane, 4)
            column = self.own_column + j * 8 + tirx.floordiv(self.lane, 4)
            chunk = place(k, tirx.floordiv(column, 4), self.tile.columns // 4)
            at = ptx.moved(stage, self.right_start + chunk + tirx.floormod(column, 4) * 4)
            self.b.store(j * 2 + lower, tirx.reinterpret("uint32", ptx.load_shared(at)))

    def pass_on(self, band: Expr) -> None:
        group, pair = tirx.floordiv(self.lane, 4), tirx.floormod(self.lane, 4)
        with ptx.unrolled(self.wide) as j, ptx.unrolled(2) as lower:
            at = (band * self.wide + j) * 4 + lower * 2
            offset = (group + lower * 8) * self.pitch + (j * 8 + pair * 2) * 4
            ptx.store_shared_pair(ptx.moved(self.own_sums, offset), [self.sums[at], self.sums[at + 1]])
