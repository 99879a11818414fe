"""Convolutions on maps as they come (channels first), with filters packed for the targets that keep maps so: 16 output
channels side by side, which a thread reads as vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from transpiler.ir import Array, TensorType, fixed_size
from transpiler.ops.base import Opaque, OpError, Sample, rng
from transpiler.ops.conv import Conv
from transpiler.ops.packed import BLOCK, Ints, PackConvStem, blocks, require_float32
from transpiler.ops.winograd import POINTS, PackWinograd, unpacked_filters


class PlanesConv(Opaque):
    """What convolutions on plain maps have in common; `channels` are the output's."""

    channels: int

    def plain(self) -> Conv:
        """The convolution with the filter as PyTorch has it."""
        raise NotImplementedError

    def kernel(self, weight: Ints) -> Ints:
        """The filter's sizes, by the shape of the packed one."""
        raise NotImplementedError

    def _infer(self, types: Sequence[TensorType], expected: Ints) -> TensorType:
        x, weight, *bias = types
        require_float32(self, types)
        if weight.static_shape() != expected:
            raise OpError(f"{self.name}: weight {expected} expected, got {weight}")
        if bias and bias[0].shape != (self.channels,):
            raise OpError(f"{self.name}: bias[{self.channels}] expected, got {bias[0]}")
        filters = x.with_shape((self.channels, x.shape[1], *self.kernel(expected)))
        return self.plain().infer(x, filters)


class ConvPlanes(PlanesConv, name="conv_planes"):
    """(x[N, I, H, W], weight[ceil(O/16), I, KH, KW, 16][, bias[O]]) -> [N, O, H', W'], with the weight of
    `pack_conv_stem`."""

    stride: Ints
    padding: Ints
    dilation: Ints

    def plain(self) -> Conv:
        return Conv(self.stride, self.padding, self.dilation)

    def kernel(self, weight: Ints) -> Ints:
        return weight[2:-1]

    def infer(self, *types: TensorType) -> TensorType:
        shape = types[1].static_shape()
        return self._infer(types, (blocks(self.channels), fixed_size(types[0].shape[1]), *shape[2:4], BLOCK))

    def reference(self, *inputs: Array) -> Array:
        x, packed, *bias = inputs
        filters = np.moveaxis(packed, -1, 1).reshape(-1, *packed.shape[1:-1])[: self.channels]
        return self.plain().reference(x, filters, *bias)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        # (images, channels in, channels out, H, W, kernel, stride, padding, dilation)
        for n, c, o, h, w, k, s, p, d in (
            (2, 16, 32, 6, 7, 1, 1, 0, 1), (1, 17, 33, 9, 8, 3, 2, 1, 1), (1, 3, 16, 15, 15, 7, 2, 3, 1),
            (1, 64, 64, 8, 8, 1, 1, 0, 1), (1, 8, 5, 10, 6, 1, 2, 0, 1), (2, 4, 20, 7, 9, 3, 1, 2, 2),
            (1, 20, 48, 20, 21, 3, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1, 0, 1), (1, 6, 40, 2, 2, 1, 1, 1, 1),
            (1, 24, 36, 18, 18, 1, 1, 0, 1),
        ):  # fmt: skip
            label = f"{n}x{c}to{o}_{h}x{w}_k{k}s{s}p{p}d{d}"
            g = rng(f"conv_planes {label}")
            x = g.standard_normal((n, c, h, w), np.float32)
            filters = g.standard_normal((o, c, k, k), np.float32) * np.float32((c * k * k) ** -0.5)
            op, weight = cls(o, (s, s), (p, p), (d, d)), PackConvStem().reference(filters)
            yield Sample(label, op, (x, weight))
            yield Sample(f"{label}_bias", op, (x, weight, g.standard_normal(o, np.float32)))


class WinogradPlanes(PlanesConv, name="winograd_planes"):
    """(x[N, I, H, W], weight[ceil(O/16), (M+2)^2, ceil(I/16), 16, 16][, bias[O]]) -> [N, O, H', W']: a 3x3 convolution
    of stride 1 with the weight of `pack_winograd`.

    Where a tile's result is not finite it is computed directly, so that NaN and infinities reach the same outputs.
    """

    padding: Ints
    tile: int  # M

    def plain(self) -> Conv:
        return Conv((1, 1), self.padding, (1, 1))

    def kernel(self, weight: Ints) -> Ints:
        return (3, 3)

    def infer(self, *types: TensorType) -> TensorType:
        inner = blocks(fixed_size(types[0].shape[1]))
        return self._infer(types, (blocks(self.channels), (self.tile + 2) ** 2, inner, BLOCK, BLOCK))

    def reference(self, *inputs: Array) -> Array:
        """The direct convolution with the filter that the packed weight stands for."""
        x, packed, *bias = inputs
        filters = unpacked_filters(packed, self.tile)[: self.channels, : x.shape[1]].astype(packed.dtype)
        return self.plain().reference(x, filters, *bias)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        # (images, channels in, channels out, H, W, padding)
        cases = (
            (2, 16, 16, 5, 7, (1, 1)), (1, 32, 48, 14, 14, (1, 1)), (1, 17, 33, 9, 8, (0, 0)), (2, 5, 7, 6, 13, (2, 2)),
            (1, 48, 16, 1, 1, (1, 1)), (1, 3, 32, 3, 3, (0, 0)), (1, 16, 20, 45, 47, (1, 1)), (3, 8, 16, 9, 10, (0, 1)),
        )  # fmt: skip
        for tile, number in ((tile, number) for tile in POINTS for number in range(len(cases))):
            n, c, o, h, w, p = cases[number]
            label = f"f{tile}_{n}x{c}to{o}_{h}x{w}_p{p[0]}{p[1]}"
            g = rng(f"planes {label}")
            x = g.standard_normal((n, c, h, w), np.float32)
            filters = g.standard_normal((o, c, 3, 3), np.float32) * np.float32((9 * c) ** -0.5)
            op, weight = cls(o, p, tile), PackWinograd(tile).reference(filters)
            yield Sample(label, op, (x, weight))
            bias = g.standard_normal(o, np.float32)
            yield Sample(f"{label}_bias", op, (x, weight, bias))
            for value in (np.nan, np.inf, -np.inf, 1e38) if number in (0, 3, 7) else ():
                odd = x.copy()
                odd[0, 0, h // 2, w // 3] = value
                yield Sample(f"{label}_{value:g}", op, (odd, weight, bias))
