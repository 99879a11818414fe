"""Ops on packed layouts: what `linear` and `conv` become once a target's layout is chosen.

The block is 16 everywhere (`layout_block` of the targets): a packed matrix is [ceil(N/16), K, 16], a blocked map is
[N, ceil(C/16), H, W, 16] (NCHW16c). Padding lanes of weights are zero; padding lanes of maps hold finite values that
nobody reads but zero weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from transpiler.ir import Array, TensorType, fixed_size
from transpiler.ops.base import Expr, Injective, Load, Op, Opaque, OpError, Sample, Scalar, rng

BLOCK = 16

Ints = tuple[int, ...]


def blocks(channels: int) -> int:
    return -(-channels // BLOCK)


def require_float32(op: Op, types: Sequence[TensorType]) -> None:
    """Raise OpError unless all are float32."""
    if any(t.dtype != "float32" for t in types):
        raise OpError(f"{op.name}: float32 expected, got {', '.join(t.dtype for t in types)}")


def _pad_axis(array: Array, axis: int) -> Array:
    """Zero-pad `axis` to a multiple of the block."""
    extra = -array.shape[axis] % BLOCK
    return np.pad(array, [(0, extra if a == axis else 0) for a in range(array.ndim)])


class PackMatmul(Injective, name="pack_matmul"):
    """weight[N, K] -> [ceil(N/16), K, 16]: panels of 16 output columns, zero-padded."""

    def infer(self, *types: TensorType) -> TensorType:
        n, k = types[0].static_shape()
        return types[0].with_shape((blocks(n), k, BLOCK))

    def reference(self, *inputs: Array) -> Array:
        weight = _pad_axis(inputs[0], 0)
        split = weight.reshape(weight.shape[0] // BLOCK, BLOCK, weight.shape[1])
        return np.ascontiguousarray(split.transpose(0, 2, 1))

    def host(self, *names: str) -> str:
        return f"pack_matmul({names[0]})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        n, _ = types[0].static_shape()
        block, k, lane = index
        column = block * BLOCK + lane
        inside = column < n
        return (
            s.guarded(inside, inputs[0](column, k), s.const(0.0, types[0].dtype)) if n % BLOCK else inputs[0](column, k)
        )

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for n, k in ((16, 3), (17, 5), (1, 1), (3, 0)):
            yield Sample(f"{n}x{k}", cls(), (rng(f"pack{n}").standard_normal((n, k), np.float32),), exact=True)


class TakePacked(Injective, name="take_packed"):
    """Rows of weight[`rows`, K] in panels: packed [ceil(rows/16), K, 16], indices (*i) -> (*i, K).

    What is embedding and output layer at once is stored once. The elements of a row are 64 bytes apart: a row costs
    K cache lines, nothing beside the layers behind it. An index may be negative if it `wraps`.
    """

    checks_index = True
    rows: int
    wraps: bool = True

    def infer(self, *types: TensorType) -> TensorType:
        packed, indices = types
        if packed.rank != 3 or packed.shape[0] != blocks(self.rows) or packed.shape[2] != BLOCK:
            raise OpError(f"take_packed: [{blocks(self.rows)}, K, {BLOCK}] expected, got {packed}")
        if indices.dtype not in ("int32", "int64"):
            raise OpError(f"take_packed: int32 or int64 indices expected, got {indices.dtype}")
        return packed.with_shape((*indices.shape, packed.shape[1]))

    def reference(self, *inputs: Array) -> Array:
        packed, indices = inputs
        if not self.wraps and (indices < 0).any():
            raise IndexError("a negative index")
        rows = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[: self.rows]
        return np.take(rows, indices, 0)

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        row = s.index(inputs[1](*index[:-1]), self.rows, self.wraps)
        return inputs[0](s.floordiv(row, BLOCK), index[-1], s.floormod(row, BLOCK))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        packed = rng("take_packed").standard_normal((3, 5, BLOCK), np.float32)
        picks = rng("take_packed").integers(0, 37, (3, 4))
        yield Sample("rows", cls(37), (packed, picks), exact=True)
        yield Sample("int32", cls(37), (packed, picks.astype(np.int32)), exact=True)
        yield Sample("negative", cls(37), (packed, np.array([-1, -37, 36, 0])), exact=True)
        yield Sample("rank0_index", cls(48), (packed, np.array(47)), exact=True)


class PackChannels(Injective, name="pack_channels"):
    """x[N, C, H, W] -> [N, ceil(C/16), H, W, 16], padding lanes zero."""

    def infer(self, *types: TensorType) -> TensorType:
        if types[0].rank != 4:
            raise OpError(f"pack_channels: [N, C, H, W] expected, got {types[0]}")
        n, c, h, w = types[0].shape
        return types[0].with_shape((n, blocks(fixed_size(c)), h, w, BLOCK))

    def reference(self, *inputs: Array) -> Array:
        x = _pad_axis(inputs[0], 1)
        n, c, h, w = x.shape
        return np.ascontiguousarray(x.reshape(n, c // BLOCK, BLOCK, h, w).transpose(0, 1, 3, 4, 2))

    def host(self, *names: str) -> str:
        return f"pack_channels({names[0]})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        channels = fixed_size(types[0].shape[1])
        n, block, h, w, lane = index
        channel = block * BLOCK + lane
        value = inputs[0](n, channel, h, w)
        return s.guarded(channel < channels, value, s.const(0, types[0].dtype)) if channels % BLOCK else value

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((2, 16, 3, 5), (1, 17, 4, 4), (1, 3, 7, 7)):
            x = rng(f"blocked{shape}").standard_normal(shape, np.float32)
            yield Sample("x".join(map(str, shape)), cls(), (x,), exact=True)


class UnpackChannels(Injective, name="unpack_channels"):
    """x[N, ceil(C/16), H, W, 16] -> [N, C, H, W]."""

    channels: int

    def infer(self, *types: TensorType) -> TensorType:
        if types[0].rank != 5 or types[0].shape[1] != blocks(self.channels) or types[0].shape[4] != BLOCK:
            raise OpError(f"unpack_channels: [N, {blocks(self.channels)}, H, W, 16] expected, got {types[0]}")
        n, _, h, w, _ = types[0].shape
        return types[0].with_shape((n, self.channels, h, w))

    def reference(self, *inputs: Array) -> Array:
        n, cb, h, w, b = inputs[0].shape
        full = inputs[0].transpose(0, 1, 4, 2, 3).reshape(n, cb * b, h, w)
        return np.ascontiguousarray(full[:, : self.channels])

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        n, channel, h, w = index
        return inputs[0](n, s.floordiv(channel, BLOCK), h, w, s.floormod(channel, BLOCK))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for n, c, h, w in ((2, 16, 3, 5), (1, 17, 4, 4), (1, 3, 7, 7)):
            x = rng(f"unpack{c}").standard_normal((n, blocks(c), h, w, BLOCK), np.float32)
            yield Sample(f"{n}x{c}x{h}x{w}", cls(c), (x,), exact=True)


class PackConv(Injective, name="pack_conv"):
    """weight[O, I, KH, KW] -> [ceil(O/16), ceil(I/16), KH, KW, 16 (i), 16 (o)], zero-padded."""

    def infer(self, *types: TensorType) -> TensorType:
        o, i, kh, kw = types[0].static_shape()
        return types[0].with_shape((blocks(o), blocks(i), kh, kw, BLOCK, BLOCK))

    def reference(self, *inputs: Array) -> Array:
        weight = _pad_axis(_pad_axis(inputs[0], 0), 1)
        o, i, kh, kw = weight.shape
        split = weight.reshape(o // BLOCK, BLOCK, i // BLOCK, BLOCK, kh, kw)
        return np.ascontiguousarray(split.transpose(0, 2, 4, 5, 3, 1))

    def host(self, *names: str) -> str:
        return f"pack_conv({names[0]})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        o, i, _, _ = types[0].static_shape()
        out_block, in_block, y, x, in_lane, out_lane = index
        row, column = out_block * BLOCK + out_lane, in_block * BLOCK + in_lane
        inside = s.logical_and(row < o, column < i)
        return s.guarded(inside, inputs[0](row, column, y, x), s.const(0.0, types[0].dtype))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((16, 16, 3, 3), (17, 5, 1, 2)):
            yield Sample(
                "x".join(map(str, shape)), cls(), (rng(f"pack_conv{shape}").standard_normal(shape, np.float32),)
            )


class PackConvStem(Injective, name="pack_conv_stem"):
    """weight[O, I, KH, KW] -> [ceil(O/16), I, KH, KW, 16 (o)] for inputs of few channels, read unblocked."""

    def infer(self, *types: TensorType) -> TensorType:
        o, i, kh, kw = types[0].static_shape()
        return types[0].with_shape((blocks(o), i, kh, kw, BLOCK))

    def reference(self, *inputs: Array) -> Array:
        weight = _pad_axis(inputs[0], 0)
        o, i, kh, kw = weight.shape
        return np.ascontiguousarray(weight.reshape(o // BLOCK, BLOCK, i, kh, kw).transpose(0, 2, 3, 4, 1))

    def host(self, *names: str) -> str:
        return f"pack_conv_stem({names[0]})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        block, column, y, x, lane = index
        row = block * BLOCK + lane
        inside = row < types[0].static_shape()[0]
        return s.guarded(inside, inputs[0](row, column, y, x), s.const(0.0, types[0].dtype))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((16, 3, 3, 3), (5, 1, 2, 1)):
            yield Sample(
                "x".join(map(str, shape)), cls(), (rng(f"pack_conv_stem{shape}").standard_normal(shape, np.float32),)
            )


class PackDepthwise(Injective, name="pack_depthwise"):
    """weight[C, G, KH, KW] -> [ceil(C/16), KH, KW, G, 16], zero-padded; G channels form a group."""

    def infer(self, *types: TensorType) -> TensorType:
        c, g, kh, kw = types[0].static_shape()
        return types[0].with_shape((blocks(c), kh, kw, g, BLOCK))

    def reference(self, *inputs: Array) -> Array:
        weight = _pad_axis(inputs[0], 0)
        c, g, kh, kw = weight.shape
        return np.ascontiguousarray(weight.reshape(c // BLOCK, BLOCK, g, kh, kw).transpose(0, 3, 4, 2, 1))

    def host(self, *names: str) -> str:
        return f"pack_depthwise({names[0]})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        block, y, x, column, lane = index
        row = block * BLOCK + lane
        inside = row < types[0].static_shape()[0]
        return s.guarded(inside, inputs[0](row, column, y, x), s.const(0.0, types[0].dtype))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((16, 1, 3, 3), (17, 1, 1, 2), (24, 4, 3, 2)):
            yield Sample(
                "x".join(map(str, shape)), cls(), (rng(f"pack_depthwise{shape}").standard_normal(shape, np.float32),)
            )


class LinearPacked(Opaque, name="linear_packed"):
    """(x[..., K], weight[ceil(N/16), K, 16][, bias[N]]) -> [..., N]: x @ W.T + bias of a packed W[N, K]."""

    features: int

    def infer(self, *types: TensorType) -> TensorType:
        require_float32(self, types)
        x, weight = types[0], types[1].static_shape()
        if weight != (blocks(self.features), x.shape[-1], BLOCK):
            raise OpError(f"linear_packed: weight {types[1]} does not fit x {x} and {self.features} features")
        if len(types) == 3 and types[2].shape != (self.features,):
            raise OpError(f"linear_packed: bias[{self.features}] expected, got {types[2]}")
        return x.with_shape((*x.shape[:-1], self.features))

    def reference(self, *inputs: Array) -> Array:
        x, packed, *bias = inputs
        weight = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[: self.features]
        y: Array = np.matmul(x, weight.T)
        return y + bias[0] if bias else y

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        pack = PackMatmul()
        for shape, n in (
            ((1, 5), 7),
            ((3, 64), 48),
            ((1, 3), 20),
            ((1, 130), 100),
            ((1, 100), 300),
            ((1, 192), 300),
            ((67, 128), 96),
            ((2, 9, 48), 65),
            ((130, 33), 33),
        ):
            label = f"{'x'.join(map(str, shape))}_{n}"
            g = rng(label)
            weight = pack.reference(g.standard_normal((n, shape[-1]), np.float32) / np.float32(shape[-1] ** 0.5))
            x = g.standard_normal(shape, np.float32)
            yield Sample(label, cls(n), (x, weight))
            yield Sample(f"{label}_bias", cls(n), (x, weight, g.standard_normal(n, np.float32)))
