"""Fused attention in float32, by multiply-adds: the walk of `attention`, with the same rows and columns in a lane.

A lane computes the scores of 2 rows and 16 keys from chunks of shared memory, 18 loads for 128 multiply-adds. The
weights go through the warp's own shared memory, since a lane needs those of all keys for its columns of the values.
Limited by shared memory.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from ..gpu.workgroup import private
from . import ptx
from .attention import WARP_ROWS, Attention
from .attention_parts import KEYS

Expr = Any
PITCH = (KEYS + 8) * 4  # bytes between rows of weights


class SimtAttention(Attention):
    """Operands in float32."""

    @property
    def more_bytes(self) -> int:
        return self.rows * PITCH

    def load_queries(self) -> None:
        """They stay where they are."""

    def products(self, keys: Expr) -> None:
        with ptx.unrolled(KEYS // 2) as i:
            self.scores.store(i, self.zero)
        q, k = private(8), private(4)
        row, pair = self.own + tirx.floordiv(self.lane, 4), tirx.floormod(self.lane, 4) * 2
        with ptx.rolled(self.E // 4) as chunk:
            for half in range(2):
                ptx.load_shared_chunk(q, half * 4, self.query.at(self.memory, row + half * 8, chunk))
            with ptx.unrolled(KEYS // 8) as j, ptx.unrolled(2) as e:
                ptx.load_shared_chunk(k, 0, self.keys.at(keys, j * 8 + pair + e, chunk))
                for half in range(2):
                    at = j * 4 + half * 2 + e
                    with ptx.unrolled(4) as c:
                        self.scores.store(at, self.scores[at] + q[half * 4 + c] * k[c])

    def add_values(self, values: Expr) -> None:
        group, pair = tirx.floordiv(self.lane, 4), tirx.floormod(self.lane, 4) * 2
        end = self.query.bytes + 2 * (self.keys.bytes + self.values.bytes)
        weights = [ptx.moved(self.memory, end + (self.own + group + half * 8) * PITCH) for half in range(2)]
        ptx.sync_warp()
        for half in range(2):
            with ptx.unrolled(KEYS // 8) as j:
                at = j * 4 + half * 2
                ptx.store_shared_pair(
                    ptx.moved(weights[half], (j * 8 + pair) * 4), [self.scores[at], self.scores[at + 1]]
                )
        ptx.sync_warp()
        w, v = private(8), private(2)
        with ptx.rolled(KEYS // 4) as part:
            for half in range(2):
                ptx.load_shared_chunk(w, half * 4, ptx.moved(weights[half], part * 16))
            with ptx.unrolled(4) as c, ptx.unrolled(self.Ev // 8) as j:
                chunk = self.values.at(values, part * 4 + c, j * 2 + tirx.floordiv(pair, 4))
                for e in range(2):
                    v.store(e, ptx.load_shared(ptx.moved(chunk, (tirx.floormod(pair, 4) + e) * 4)))
                for half in range(2):
                    for e in range(2):
                        at = j * 4 + half * 2 + e
                        self.sums.store(at, self.sums[at] + w[half * 4 + c] * v[e])


assert WARP_ROWS == 16  # rows lane // 4 and 8 on
