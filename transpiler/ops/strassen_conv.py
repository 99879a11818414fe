"""1x1 convolutions on blocked maps by Strassen's algorithm in Winograd's form: seven products instead of eight.

A map's pixels are taken in pairs, and so are blocks of 16 input and of 16 output channels: pixel x input block x output
block are products of 2x2 matrices. Winograd's form (Cohen and Roth, "On the implementation of Strassen's fast
multiplication algorithm", 1976) shares sums, so that six of the seven products are added up in the registers that the
next one starts from. The right factors, sums of the weight's parts, are made when weights are loaded; there the filters
are scaled by powers of two, so that one of large weights costs its neighbour no digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from transpiler.ir import Array, TensorType
from transpiler.ops.base import Expr, Injective, Load, OpError, Sample, Scalar, rng
from transpiler.ops.blocked_conv import BlockedConv
from transpiler.ops.packed import BLOCK, PackChannels, require_float32
from transpiler.ops.strassen import RowScales, right_factor, right_factors

# Every product, in the order of computation, as what it multiplies. A's parts are pixel x half of the input channels,
# B's half of the input channels x output block, both 11, 12, 21, 22 in this order. Products 0, 1, 2 and 3 are one chain
# of sums: after 1 and 2 they are needed later, after 3 they are C's part 21. Part 11 is products 0 and 4, part 22 the
# chain up to 2 and product 5, part 12 the chain up to 1 and products 5 and 6.
LEFT = ((1, 0, 0, 0), (-1, 0, 1, 1), (1, 0, -1, 0), (0, 0, 0, 1), (0, 1, 0, 0), (0, 0, 1, 1), (1, 1, -1, -1))
RIGHT = ((1, 0, 0, 0), (1, -1, 0, 1), (0, -1, 0, 1), (-1, 1, 1, -1), (0, 0, 1, 0), (-1, 1, 0, 0), (0, 0, 0, 1))
PRODUCTS = len(LEFT)
# B's parts from the right factors: the products whose factors are added.
RECOVERED = ((0,), (0, 5), (4,), (6,))
PAIR = 2 * BLOCK


class PackConvStrassen(Injective, name="pack_conv_strassen"):
    """(weight[O, I], scales[O]) -> [O/32, 7*I/2 + 2, 16]: for every pair of blocks of outputs the seven right factors,
    one after the other, of the weight divided by its scales; then the scales of the first block and of the second.

    A row of NaN scale counts as zeros, so that it does not reach the channels that it shares products with.
    """

    def infer(self, *types: TensorType) -> TensorType:
        require_float32(self, types)
        o, i = types[0].static_shape()
        if o % PAIR or i % PAIR or types[1].shape != (o,):
            raise OpError(f"pack_conv_strassen: multiples of {PAIR} and a scale per row expected, got {types}")
        return types[0].with_shape((o // PAIR, PRODUCTS * i // 2 + 2, BLOCK))

    def reference(self, *inputs: Array) -> Array:
        weight, scales = inputs
        finite = np.isfinite(scales)[:, None]
        scaled = np.where(finite, weight, 0) / np.where(finite, scales[:, None], 1).astype(weight.dtype)
        split = scaled.reshape(-1, 2, BLOCK, weight.shape[1] // PAIR, 2, BLOCK)  # pair, side, output, pair, half, input
        parts = split.transpose(4, 1, 0, 3, 5, 2).reshape(4, len(scales) // PAIR, -1, BLOCK)
        factors = right_factors(parts, RIGHT)
        return np.ascontiguousarray(np.concatenate([*factors, scales.reshape(-1, 2, BLOCK)], axis=1))

    def host(self, *names: str) -> str:
        return f"pack_conv_strassen({names[0]}, {names[1]})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        depth, dtype = types[0].static_shape()[1] // 2, types[0].dtype
        pair, row, lane = index
        zero = s.const(0.0, dtype)

        def scale(side: Expr) -> Expr:
            return inputs[1]((pair * 2 + side) * BLOCK + lane)

        def part(at: int) -> Expr:
            half, side = divmod(at, 2)
            step = s.floormod(row, depth)
            channel = (s.floordiv(step, BLOCK) * 2 + half) * BLOCK + s.floormod(step, BLOCK)
            value = inputs[0]((pair * 2 + side) * BLOCK + lane, channel)
            return s.select(s.call("isnan", scale(side)), zero, s.divide(value, scale(side)))

        total = right_factor(s, dtype, RIGHT, s.floordiv(row, depth), part)
        return s.guarded(row >= PRODUCTS * depth, scale(row - PRODUCTS * depth), total)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((32, 32), (64, 96)):
            weight = rng(f"pack_conv_strassen{shape}").standard_normal(shape, np.float32)
            weight[1], weight[2, 1] = weight[1] * np.float32(1e4), np.nan
            yield Sample("x".join(map(str, shape)), cls(), (weight, RowScales().reference(weight)))


class ConvStrassen(BlockedConv, name="conv_strassen"):
    """(x[N, I/16, H, W, 16], weight[O/32, 7*I/2 + 2, 16][, bias[O]]) -> [N, O/16, H', W', 16] with the weight of
    `pack_conv_strassen`, filters of one pixel and no padding.

    The rounding error of an output follows the larger one of its pair of pixels, which lie near each other. Pixels next
    to one that is not finite are computed as direct sums, so that NaN and infinities stay in their pixel.
    """

    def infer(self, *types: TensorType) -> TensorType:
        x, weight, *bias = types
        if self.channels % PAIR or self.in_channels % PAIR or x.shape[1] != self.in_channels // BLOCK:
            raise OpError(f"conv_strassen: multiples of {PAIR} channels expected, got {x} and {self.channels}")
        if self.kernel != (1, 1) or any(self.padding):
            raise OpError("conv_strassen: filters of one pixel without padding expected")
        depth = self.in_channels // 2
        return self._infer(x, weight, (self.channels // PAIR, PRODUCTS * depth + 2, BLOCK), bias)

    def reference(self, *inputs: Array) -> Array:
        """The direct sums with the weight that the packed one stands for."""
        from transpiler.ops.packed import UnpackChannels

        x, packed, *bias = inputs
        pairs, depth = len(packed), self.in_channels // 2
        factors = packed[:, :-2].reshape(pairs, PRODUCTS, depth, BLOCK)
        parts = np.stack([sum(factors[:, number] for number in numbers) for numbers in RECOVERED])
        split = parts.reshape(2, 2, pairs, depth // BLOCK, BLOCK, BLOCK)  # half, side, pair, pair, input, output
        weight = split.transpose(2, 1, 5, 3, 0, 4).reshape(self.channels, self.in_channels)
        weight = weight * packed[:, -2:].reshape(self.channels, 1)
        return self._dense(UnpackChannels(self.in_channels).reference(x), weight[:, :, None, None], bias)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        # (channels in, channels out, H, W, stride)
        for c, o, h, w, stride in (
            (32, 32, 5, 7, 1), (64, 96, 14, 14, 1), (96, 64, 7, 9, 1), (32, 160, 1, 1, 1), (128, 32, 28, 28, 1),
            (32, 64, 15, 18, 2),
        ):  # fmt: skip
            label = f"{c}to{o}_{h}x{w}_s{stride}"
            g = rng(label)
            w2 = g.standard_normal((o, c), np.float32) * np.float32(c**-0.5)
            w2 *= np.exp2(g.integers(-8, 8, (o, 1))).astype(np.float32)
            weight = PackConvStrassen().reference(w2, RowScales().reference(w2))
            bias = g.standard_normal(o, np.float32)
            x = PackChannels().reference(g.standard_normal((2, c, h, w), np.float32))
            attributes = (o, c, (1, 1), (stride, stride), (0, 0, 0, 0), (1, 1))
            yield Sample(label, cls(*attributes), (x, weight))
            yield Sample(f"{label}_bias", cls(*attributes), (x, weight, bias))
            for value in (np.nan, np.inf, -np.inf, 1e30, 1e-42):
                odd = x.copy()
                odd[1, 1, h // 2, w // 2, 3] = value
                yield Sample(f"{label}_{value:g}", cls(*attributes), (odd, weight, bias))
