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

    @property
    def out_blocks(self) -> int:
        return blocks(self.channels)

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
        if bias and bias[0].shape != (self.out_blocks * BLOCK,):
            raise OpError(f"{self.name}: bias[{self.out_blocks * BLOCK}] expected, got {bias[0]}")
        h, w = self.output_map(*x.shape[2:4])
        return x.with_shape((x.shape[0], self.out_blocks, h, w, BLOCK))

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
    -> [N, ceil(O/16), H', W', 16].

    With `groups`, I and O are the channels of one of them, and x, weight, bias and result have those of every group,
    one after the other along their blocks: each group begins with a block of its own.
    """

    groups: int = 1

    @property
    def out_blocks(self) -> int:
        return self.groups * blocks(self.channels // self.groups)

    def infer(self, *types: TensorType) -> TensorType:
        x, weight, *bias = types
        inner = blocks(self.in_channels // self.groups)
        if self.in_channels % self.groups or self.channels % self.groups or x.shape[1] != self.groups * inner:
            raise OpError(f"conv_blocked: {x} and {self.channels} channels do not fit {self.groups} groups")
        return self._infer(x, weight, (self.out_blocks, inner, *self.kernel, BLOCK, BLOCK), bias)

    def reference(self, *inputs: Array) -> Array:
        x, packed, *bias = inputs
        o, i, kh, kw, _, _ = packed.shape
        inner = self.in_channels // self.groups
        weight = packed.transpose(0, 5, 1, 4, 2, 3).reshape(o * BLOCK, i * BLOCK, kh, kw)[:, :inner]
        plain = [UnpackChannels(inner).reference(part) for part in np.split(x, self.groups, axis=1)]
        return self._dense(np.concatenate(plain, axis=1), weight, bias, self.groups)

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
        yield from cls._grouped_samples()

    @classmethod
    def _grouped_samples(cls) -> Iterator[Sample]:
        # (groups, channels in and out of each, H, W, kernel, stride, padding)
        for groups, c, o, h, w, k, s, p in (
            (3, 32, 16, 9, 15, 3, 1, 1), (2, 24, 40, 8, 7, 3, 2, 1), (5, 3, 6, 6, 20, 1, 1, 0),
            (2, 16, 48, 5, 5, 1, 1, 0),
        ):  # fmt: skip
            label = f"{groups}_groups_{c}to{o}_{h}x{w}_k{k}s{s}p{p}"
            g = rng(label)
            op = cls(groups * o, groups * c, (k, k), (s, s), _sides(p), (1, 1), groups)
            x = PackChannels().reference(g.standard_normal((2 * groups, c, h, w), np.float32))
            x[:, -1, :, :, c % BLOCK or BLOCK :] = np.nan
            weight = np.concatenate(
                [
                    PackConv().reference(g.standard_normal((o, c, k, k), np.float32) / np.float32(c))
                    for _ in range(groups)
                ]
            )
            bias = np.zeros((groups, blocks(o) * BLOCK), np.float32)
            bias[:, :o] = g.standard_normal((groups, o), np.float32)
            maps = x.reshape(2, -1, *x.shape[2:])
            yield Sample(label, op, (maps, weight, bias.reshape(-1)))


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
    """(x[N, ceil(C/16), H, W, 16], weight[ceil(C/16), KH, KW, G, 16][, bias[16*ceil(C/16)]])
    -> [N, ceil(C/16), H', W', 16]: groups of G channels, which divides 16; every channel has a filter over its group's.
    """

    group: int = 1  # G

    def infer(self, *types: TensorType) -> TensorType:
        x, weight, *bias = types
        if BLOCK % self.group or self.channels % self.group or self.channels != self.in_channels:
            raise OpError(f"conv_depthwise: groups of {self.group} of {self.channels} channels")
        return self._infer(x, weight, (blocks(self.channels), *self.kernel, self.group, BLOCK), bias)

    def reference(self, *inputs: Array) -> Array:
        x, packed, *bias = inputs
        cb, kh, kw, group, _ = packed.shape
        weight = packed.transpose(0, 4, 3, 1, 2).reshape(cb * BLOCK, group, kh, kw)
        return self._dense(UnpackChannels(cb * BLOCK).reference(x), weight, bias, groups=cb * BLOCK // group)

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
        for c, h, w, k, s, group in (
            (32, 9, 15, 3, 1, 4),
            (24, 7, 16, 3, 2, 2),
            (40, 5, 6, 1, 1, 8),
            (32, 6, 6, 3, 1, 16),
        ):
            label = f"groups_of_{group}_{c}_{h}x{w}_k{k}s{s}"
            g = rng(label)
            x = PackChannels().reference(g.standard_normal((2, c, h, w), np.float32))
            weight = PackDepthwise().reference(g.standard_normal((c, group, k, k), np.float32) / np.float32(k))
            op = cls(c, c, (k, k), (s, s), _sides(k // 2), (1, 1), group)
            yield Sample(label, op, (x, weight))
