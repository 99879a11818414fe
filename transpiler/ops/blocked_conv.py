"""Convolutions on blocked maps, with blocked weights (see `packed`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from transpiler.dims import Dim
from transpiler.ir import Array, TensorType, fixed_size
from transpiler.ops.base import Opaque, OpError, Sample, rng
from transpiler.ops.packed import (
    BLOCK,
    Ints,
    PackChannels,
    PackConv,
    PackConvStem,
    PackDepthwise,
    UnpackChannels,
    blocks,
    require_float32,
)


class BlockedConv(Opaque):
    """Shared attributes and shape rule of convolutions that give a blocked map; `kernel` is (KH, KW), `padding` zeros
    at (top, left, bottom, right)."""

    channels: int  # logical output channels
    in_channels: int  # logical input channels: padding lanes of the input take no part, whatever they hold
    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns of padding."""
        top, left, bottom, right = self.padding
        return top + bottom, left + right

    def output_map(self, h: Dim, w: Dim) -> tuple[Dim, Dim]:
        sizes = [
            (size + p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip((h, w), self.kernel, self.stride, self.padded, self.dilation, strict=True)
        ]
        return sizes[0], sizes[1]

    def _infer(
        self, x: TensorType, weight: TensorType, expected: tuple[int, ...], bias: Sequence[TensorType]
    ) -> TensorType:
        require_float32(self, (x, weight, *bias))
        if weight.static_shape() != expected:
            raise OpError(f"{self.name}: weight {expected} expected, got {weight}")
        if bias and bias[0].shape != (blocks(self.channels) * BLOCK,):
            raise OpError(f"{self.name}: bias[{blocks(self.channels) * BLOCK}] expected, got {bias[0]}")
        h, w = self.output_map(*x.shape[2:4])
        return x.with_shape((x.shape[0], blocks(self.channels), h, w, BLOCK))

    def _dense(self, x: Array, weight: Array, bias: Sequence[Array], groups: int = 1) -> Array:
        """NCHW16c result from an NCHW input and an OIHW weight."""
        from transpiler.ops.conv import Conv

        top, left, bottom, right = self.padding
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        plain = Conv(self.stride, (0, 0), self.dilation, groups).reference(x, weight, *bias)
        return PackChannels().reference(plain)


def _sides(padding: int | Ints) -> Ints:
    return (padding,) * 4 if isinstance(padding, int) else padding


def _label(padding: int | Ints) -> str:
    return str(padding) if isinstance(padding, int) else "".join(map(str, padding))


class ConvBlocked(BlockedConv, name="conv_blocked"):
    """(x[N, ceil(I/16), H, W, 16], weight[ceil(O/16), ceil(I/16), KH, KW, 16, 16][, bias[16*ceil(O/16)]])
    -> [N, ceil(O/16), H', W', 16]."""

    def infer(self, *types: TensorType) -> TensorType:
        x, weight, *bias = types
        inner = fixed_size(x.shape[1])
        return self._infer(x, weight, (blocks(self.channels), inner, *self.kernel, BLOCK, BLOCK), bias)

    def reference(self, *inputs: Array) -> Array:
        x, packed, *bias = inputs
        o, i, kh, kw, _, _ = packed.shape
        weight = packed.transpose(0, 5, 1, 4, 2, 3).reshape(o * BLOCK, i * BLOCK, kh, kw)[:, : self.in_channels]
        return self._dense(UnpackChannels(self.in_channels).reference(x), weight, bias)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        # (channels in, channels out, H, W, kernel, stride, padding, dilation)
        cases: list[tuple[int, int, int, int, int, int, int | Ints, int]] = [
            (16, 16, 5, 7, 3, 1, 1, 1), (32, 48, 14, 14, 3, 1, 1, 1), (64, 32, 7, 7, 1, 1, 0, 1),
            (16, 64, 9, 15, 3, 2, 1, 1), (32, 32, 8, 8, 1, 2, 0, 1), (16, 33, 6, 29, 3, 1, 2, 2),
            (32, 16, 7, 7, 3, 1, 1, 1), (16, 16, 1, 1, 1, 1, 0, 1),
            (48, 80, 15, 17, 5, 2, 2, 1), (17, 16, 6, 6, 3, 1, 1, 1), (40, 10, 7, 9, 1, 1, 0, 1),
            (16, 16, 9, 8, 3, 2, (0, 0, 1, 1), 1),
        ]  # fmt: skip
        for c, o, h, w, k, s, p, d in cases:
            label = f"{c}to{o}_{h}x{w}_k{k}s{s}p{_label(p)}d{d}"
            g = rng(label)
            op = cls(o, c, (k, k), (s, s), _sides(p), (d, d))
            x = PackChannels().reference(g.standard_normal((2, c, h, w), np.float32))
            x[:, -1, :, :, c % BLOCK or BLOCK :] = np.nan
            scale = np.float32((c * k * k) ** -0.5)
            weight = PackConv().reference(g.standard_normal((o, c, k, k), np.float32) * scale)
            yield Sample(label, op, (x, weight))
            bias = np.zeros(blocks(o) * BLOCK, np.float32)
            bias[:o] = g.standard_normal(o, np.float32)
            yield Sample(f"{label}_bias", op, (x, weight, bias))


class ConvStem(BlockedConv, name="conv_stem"):
    """(x[N, I, H, W], weight[ceil(O/16), I, KH, KW, 16][, bias[16*ceil(O/16)]]) -> [N, ceil(O/16), H', W', 16]."""

    def infer(self, *types: TensorType) -> TensorType:
        x, weight, *bias = types
        inner = fixed_size(x.shape[1])
        return self._infer(x, weight, (blocks(self.channels), inner, *self.kernel, BLOCK), bias)

    def reference(self, *inputs: Array) -> Array:
        x, packed, *bias = inputs
        o, i, kh, kw, _ = packed.shape
        return self._dense(x, packed.transpose(0, 4, 1, 2, 3).reshape(o * BLOCK, i, kh, kw), bias)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        cases: list[tuple[int, int, int, int, int, int, int | Ints, int]] = [
            (3, 16, 12, 13, 7, 2, 3, 1),
            (1, 32, 9, 9, 3, 1, 1, 1),
            (3, 40, 16, 16, 8, 8, 0, 1),
            (4, 16, 5, 21, 3, 1, 0, 2),
            (3, 16, 12, 13, 3, 2, (0, 0, 1, 1), 1),
        ]
        for c, o, h, w, k, s, p, d in cases:
            label = f"stem{c}to{o}_{h}x{w}_k{k}s{s}p{_label(p)}d{d}"
            g = rng(label)
            x = g.standard_normal((2, c, h, w), np.float32)
            weight = PackConvStem().reference(
                g.standard_normal((o, c, k, k), np.float32) * np.float32((c * k * k) ** -0.5)
            )
            bias = np.zeros(blocks(o) * BLOCK, np.float32)
            bias[:o] = g.standard_normal(o, np.float32)
            padding = _sides(p)
            yield Sample(label, cls(o, c, (k, k), (s, s), padding, (d, d)), (x, weight, bias))


class ConvDepthwise(BlockedConv, name="conv_depthwise"):
    """(x[N, ceil(C/16), H, W, 16], weight[ceil(C/16), KH, KW, 16][, bias[16*ceil(C/16)]])
    -> [N, ceil(C/16), H', W', 16]: every channel has its own filter."""

    def infer(self, *types: TensorType) -> TensorType:
        x, weight, *bias = types
        return self._infer(x, weight, (blocks(self.channels), *self.kernel, BLOCK), bias)

    def reference(self, *inputs: Array) -> Array:
        x, packed, *bias = inputs
        cb, kh, kw, _ = packed.shape
        weight = packed.transpose(0, 3, 1, 2).reshape(cb * BLOCK, 1, kh, kw)
        return self._dense(UnpackChannels(cb * BLOCK).reference(x), weight, bias, groups=cb * BLOCK)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        cases: list[tuple[int, int, int, int, int, int | Ints, int]] = [
            (16, 5, 7, 3, 1, 1, 1),
            (33, 14, 15, 3, 2, 1, 1),
            (32, 9, 30, 5, 1, 2, 1),
            (16, 12, 12, 3, 1, 2, 2),
            (48, 7, 7, 7, 1, 3, 1),
            (32, 8, 9, 3, 2, (0, 1, 1, 0), 1),
        ]
        for c, h, w, k, s, p, d in cases:
            label = f"depthwise{c}_{h}x{w}_k{k}s{s}p{_label(p)}d{d}"
            g = rng(label)
            x = PackChannels().reference(g.standard_normal((2, c, h, w), np.float32))
            weight = PackDepthwise().reference(g.standard_normal((c, 1, k, k), np.float32) / np.float32(k))
            bias = np.zeros(blocks(c) * BLOCK, np.float32)
            bias[:c] = g.standard_normal(c, np.float32)
            padding = _sides(p)
            yield Sample(label, cls(c, c, (k, k), (s, s), padding, (d, d)), (x, weight, bias))
