"""Winograd convolution on blocked maps: 3x3 filters of stride 1 or 2 by F(2x2, 3x3) or F(4x4, 3x3) and their parts.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). A tile of M x M outputs needs
(M + 2)^2 products per channel pair instead of 9 M^2. The transforms evaluate polynomials at 0, infinity and the pairs
+-p of `POINTS`; for M = 4, 5/8 and 3/2 keep the rounding error near that of the direct sum, a fifth of what the
textbook's 1 and 2 give (Barabasz, Anderson, Soodhalter and Gregg, "Error Analysis and Improving the Accuracy of
Winograd Convolution for Deep Neural Networks", 2020).

At stride 2 the M outputs of a line meet taps 0 and 2 at its even places and tap 1 at its odd ones. The even places are
F(M, 2) at the same points less infinity, the odd ones M plain products: 2M + 1 per line instead of 3M.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from transpiler.ir import Array, TensorType, fixed_size
from transpiler.ops.base import Expr, Injective, Load, OpError, Sample, Scalar, rng
from transpiler.ops.blocked_conv import BlockedConv
from transpiler.ops.packed import BLOCK, PackChannels, UnpackChannels, blocks

# Outputs per tile and dim -> p of the evaluation points +-p.
POINTS: dict[int, tuple[float, ...]] = {2: (1.0,), 4: (0.625, 1.5)}

Rows = tuple[tuple[float, ...], ...]


def span(tile: int, stride: int) -> int:
    """Inputs of a line of `tile` outputs, and products per line and channel pair."""
    return tile + 2 if stride == 1 else 2 * tile + 1


def filter_rows(tile: int, stride: int = 1) -> Rows:
    """G, [M + 2, 3]: a filter row at every point, over the derivative of the points' polynomial x * prod(x^2 - p^2).

    The last row is the value at infinity. At stride 2, taps 0 and 2 at the points, and last tap 1.
    """
    points = POINTS[tile]
    rows = [(1.0 / prod(-p * p for p in points), 0.0, 0.0)]
    for p in points:
        scale = 1.0 / (2.0 * p * p * prod(p * p - other * other for other in points if other != p))
        rows += [(scale, p * scale, p * p * scale), (scale, -p * scale, p * p * scale)]
    if stride == 2:
        return (*((low, 0.0, high) for low, high, _ in rows), (0.0, 1.0, 0.0))
    return (*rows, (0.0, 0.0, 1.0))


def filter_from_rows(tile: int, stride: int = 1) -> tuple[tuple[tuple[int, float], ...], ...]:
    """A filter row from its values at the points: per tap, (point's position, factor) terms that add up to it.

    Tap 0 is the value at 0, tap 2 the one at infinity, tap 1 the odd part at the first pair; at stride 2, the other
    way round for taps 1 and 2.
    """
    g = filter_rows(tile)
    first, odd, last = ((0, 1.0 / g[0][0]),), ((1, 0.5 / g[1][1]), (2, -0.5 / g[1][1])), ((len(g) - 1, 1.0),)
    return (first, odd, last) if stride == 1 else (first, last, odd)


class PackWinograd(Injective, name="pack_winograd"):
    """weight[O, I, 3, 3] -> [ceil(O/16), (M+2)^2, ceil(I/16), 16 (i), 16 (o)]: G w G^T, computed in float64."""

    tile: int  # M
    stride: int = 1

    def infer(self, *types: TensorType) -> TensorType:
        o, i, kh, kw = types[0].static_shape()
        if (kh, kw) != (3, 3):
            raise OpError(f"pack_winograd: a 3x3 filter expected, got {types[0]}")
        return types[0].with_shape((blocks(o), (self.tile + 2) ** 2, blocks(i), BLOCK, BLOCK))

    def reference(self, *inputs: Array) -> Array:
        o, i = inputs[0].shape[:2]
        wide = np.zeros((blocks(o) * BLOCK, blocks(i) * BLOCK, 3, 3))
        wide[:o, :i] = inputs[0]
        for axis in (2, 3):
            taps = [np.take(wide, tap, axis=axis) for tap in range(3)]
            rows = [
                row[0] * taps[0] + row[1] * taps[1] + row[2] * taps[2] for row in filter_rows(self.tile, self.stride)
            ]
            wide = np.stack(rows, axis=axis)
        split = wide.astype(inputs[0].dtype).reshape(blocks(o), BLOCK, blocks(i), BLOCK, -1)
        return np.ascontiguousarray(split.transpose(0, 4, 2, 3, 1))

    def host(self, *names: str) -> str:
        stride = "" if self.stride == 1 else f", {self.stride}"
        return f"pack_winograd({names[0]}, {self.tile}{stride})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        o, i, _, _ = types[0].static_shape()
        out_block, point, in_block, in_lane, out_lane = index
        row, column = out_block * BLOCK + out_lane, in_block * BLOCK + in_lane
        inside = s.logical_and(row < o, column < i)
        dtype, width = types[0].dtype, self.tile + 2

        def factor(position: Expr, tap: int) -> Expr:
            """The entry of G at `position`."""
            value = s.const(0.0, dtype)
            for number, entries in enumerate(filter_rows(self.tile, self.stride)):
                value = s.select(s.eq(position, number), s.const(entries[tap], dtype), value)
            return value

        total = s.const(0.0, dtype)
        for y in range(3):
            for x in range(3):
                weight = s.guarded(inside, inputs[0](row, column, y, x), s.const(0.0, dtype))
                total += factor(s.floordiv(point, width), y) * factor(s.floormod(point, width), x) * weight
        return total

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((16, 16, 3, 3), (17, 5, 3, 3)):
            for tile, stride in ((2, 1), (4, 1), (4, 2)):
                weight = rng(f"pack_winograd{shape}").standard_normal(shape, np.float32)
                label = f"{'x'.join(map(str, shape))}_{tile}" + "_s2" * (stride == 2)
                yield Sample(label, cls(tile, stride), (weight,))


def unpacked_filters(packed: Array, tile: int, stride: int = 1) -> Array:
    """The filters [O, I, 3, 3] in float64 that `pack_winograd` made the weight of, channels in whole blocks."""
    o, _, i, _, _ = packed.shape
    width = tile + 2
    wide = packed.astype(np.float64).transpose(0, 4, 2, 3, 1).reshape(o * BLOCK, i * BLOCK, width, width)
    for axis in (2, 3):
        taps = [
            sum(factor * np.take(wide, position, axis=axis) for position, factor in terms)
            for terms in filter_from_rows(tile, stride)
        ]
        wide = np.stack(taps, axis=axis)
    return wide


class ConvWinograd(BlockedConv, name="conv_winograd"):
    """(x[N, ceil(I/16), H, W, 16], weight[ceil(O/16), (M+2)^2, ceil(I/16), 16, 16][, bias[16*ceil(O/16)]])
    -> [N, ceil(O/16), H', W', 16]: a 3x3 convolution of stride 1 or 2 with the weight of `pack_winograd`.

    Where a tile's result is not finite it is computed directly, so that NaN and infinities reach the same outputs.
    """

    tile: int  # M

    def infer(self, *types: TensorType) -> TensorType:
        x, weight, *bias = types
        if (self.kernel, self.dilation) != ((3, 3), (1, 1)) or self.stride not in ((1, 1), (2, 2)):
            raise OpError(f"conv_winograd: a 3x3 filter of stride 1 or 2 and no dilation expected, got {self}")
        shape = (blocks(self.channels), (self.tile + 2) ** 2, fixed_size(x.shape[1]), BLOCK, BLOCK)
        return self._infer(x, weight, shape, bias)

    def reference(self, *inputs: Array) -> Array:
        """The direct convolution with the filter that the packed weight stands for."""
        x, packed, *bias = inputs
        weight = unpacked_filters(packed, self.tile, self.stride[0])[:, : self.in_channels].astype(packed.dtype)
        return self._dense(UnpackChannels(self.in_channels).reference(x), weight, bias)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        # (images, channels in, channels out, H, W, padding)
        cases: list[tuple[int, int, int, int, int, tuple[int, int, int, int]]] = [
            (2, 16, 16, 5, 7, (1, 1, 1, 1)), (1, 32, 48, 14, 14, (1, 1, 1, 1)), (1, 17, 33, 9, 8, (0, 0, 0, 0)),
            (2, 24, 40, 6, 13, (2, 2, 2, 2)),
            (1, 48, 16, 1, 1, (1, 1, 1, 1)), (1, 16, 32, 3, 3, (0, 0, 0, 0)),
            (1, 16, 20, 45, 47, (1, 1, 1, 1)), (1, 16, 16, 9, 10, (0, 2, 1, 0)),
        ]  # fmt: skip
        strided = [cases[0], cases[2], cases[4], cases[6], cases[7]]
        for tile, stride, (n, c, o, h, w, p) in (
            *((tile, 1, case) for tile in POINTS for case in cases),
            *((tile, 2, case) for tile in POINTS for case in strided),
        ):
            label = f"f{tile}_{n}x{c}to{o}_{h}x{w}_p{''.join(map(str, p))}" + "_s2" * (stride == 2)
            g = rng(label)
            x = PackChannels().reference(g.standard_normal((n, c, h, w), np.float32))
            x[:, -1, :, :, c % BLOCK or BLOCK :] = np.nan
            scale = np.float32((9 * c) ** -0.5)
            weight = PackWinograd(tile, stride).reference(g.standard_normal((o, c, 3, 3), np.float32) * scale)
            op = cls(o, c, (3, 3), (stride, stride), p, (1, 1), tile)
            yield Sample(label, op, (x, weight))
            bias = np.zeros(blocks(o) * BLOCK, np.float32)
            bias[:o] = g.standard_normal(o, np.float32)
            yield Sample(f"{label}_bias", op, (x, weight, bias))
            for value in (np.nan, np.inf, -np.inf, 1e38):
                odd = x.copy()
                odd[0, 0, h // 2, w // 3, 1] = value
                yield Sample(f"{label}_{value:g}", op, (odd, weight, bias))
