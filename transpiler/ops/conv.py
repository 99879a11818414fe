"""Convolution and transposed convolution in 1 to 3 spatial dimensions, channels first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transpiler.dims import Dim
from transpiler.ir import Array, TensorType, Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, OpError, Product, Sample, aten, rng
from transpiler.ops.linalg import same_dtype
from transpiler.ops.wide import narrow, widen

Ints = tuple[int, ...]


class Conv(Product, name="conv"):
    """(x[N, C, *S], weight[O, C/groups, *K][, bias[O]]) -> [N, O, *S'], a cross-correlation.

    S' = (S + 2 * padding - dilation * (K - 1) - 1) // stride + 1, per spatial dim.
    """

    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int = 1
    precision: str = ""

    def infer(self, *types: TensorType) -> TensorType:
        x, weight = _check(self, types, len(self.stride), self.padding, self.dilation)
        if x.shape[1] != weight.shape[1] * self.groups or weight.static_shape()[0] % self.groups:
            raise OpError(f"conv: {x} and weight {weight} do not fit {self.groups} groups")
        _check_bias(self, types, weight.shape[0])
        zipped = zip(x.shape[2:], weight.static_shape()[2:], self.stride, self.padding, self.dilation, strict=True)
        spatial = [window_count(size, k, s, p, d) for size, k, s, p, d in zipped]
        return TensorType(same_dtype(self, types), (x.shape[0], weight.shape[0], *spatial))

    def reference(self, *inputs: Array) -> Array:
        """im2col: all windows as a view, one product per group."""
        x, weight, *bias = map(widen, inputs)
        n, dims = x.shape[0], len(self.stride)
        padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in self.padding)])
        extent = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], self.dilation, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, 2 + dims)))
        steps = tuple(slice(None, None, step) for step in (*self.stride, *self.dilation))
        windows = windows[(slice(None), slice(None), *steps)]
        spatial = windows.shape[2 : 2 + dims]
        parts = []
        for x_group, w_group in zip(
            np.split(windows, self.groups, axis=1), np.split(weight, self.groups, axis=0), strict=True
        ):
            reduced = (1, *range(2 + dims, 2 + 2 * dims))
            parts.append(np.tensordot(x_group, w_group, axes=(reduced, tuple(range(1, 2 + dims)))))
        y = np.moveaxis(np.concatenate(parts, axis=-1), -1, 1).reshape(n, weight.shape[0], *spatial)
        return narrow(y + bias[0].reshape(-1, *(1,) * dims) if bias else y, inputs[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        # (id, x, weight, stride, padding, dilation, groups)
        cases: list[tuple[str, Ints, Ints, Ints, Ints, Ints, int]] = [
            ("1x1", (2, 5, 7, 9), (3, 5, 1, 1), (1, 1), (0, 0), (1, 1), 1),
            ("1x1_stride2", (1, 16, 9, 9), (17, 16, 1, 1), (2, 2), (0, 0), (1, 1), 1),
            ("3x3", (1, 3, 7, 9), (5, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
            ("3x3_valid", (2, 17, 7, 9), (3, 17, 3, 3), (1, 1), (0, 0), (1, 1), 1),
            ("3x3_stride2", (1, 5, 9, 7), (17, 5, 3, 3), (2, 2), (1, 1), (1, 1), 1),
            ("3x3_dilated", (1, 3, 9, 11), (5, 3, 3, 3), (1, 1), (2, 2), (2, 2), 1),
            ("3x5_mixed", (2, 3, 11, 13), (4, 3, 3, 5), (2, 1), (1, 3), (1, 2), 1),
            ("groups", (1, 6, 7, 9), (9, 2, 3, 3), (1, 1), (1, 1), (1, 1), 3),
            ("depthwise", (1, 17, 7, 9), (17, 1, 3, 3), (1, 1), (1, 1), (1, 1), 17),
            ("depthwise_stride2", (2, 16, 9, 9), (16, 1, 5, 5), (2, 2), (2, 2), (1, 1), 16),
            ("depthwise_multiplier", (1, 5, 7, 7), (10, 1, 3, 3), (1, 1), (1, 1), (1, 1), 5),
            ("kernel_covers_map", (1, 3, 5, 5), (7, 3, 5, 5), (1, 1), (0, 0), (1, 1), 1),
            ("one_pixel", (1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1),
            ("padding_beyond_kernel", (1, 2, 3, 3), (2, 2, 1, 1), (1, 1), (2, 2), (1, 1), 1),
            ("stem7x7", (1, 3, 33, 33), (16, 3, 7, 7), (2, 2), (3, 3), (1, 1), 1),
            ("patches", (1, 3, 16, 16), (32, 3, 8, 8), (8, 8), (0, 0), (1, 1), 1),
            ("tiles_3x3", (1, 32, 14, 14), (64, 32, 3, 3), (1, 1), (1, 1), (1, 1), 1),
            ("tiles_1x1", (1, 64, 14, 15), (32, 64, 1, 1), (1, 1), (0, 0), (1, 1), 1),
            ("1d", (2, 5, 17), (7, 5, 3), (1,), (1,), (1,), 1),
            ("1d_dilated_groups", (1, 6, 19), (4, 3, 3), (2,), (4,), (3,), 2),
            ("1d_depthwise_causal", (1, 16, 9), (16, 1, 4), (1,), (3,), (1,), 16),
            ("3d", (1, 3, 5, 7, 6), (5, 3, 3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1),
            ("3d_stride", (2, 4, 5, 7, 6), (6, 2, 1, 3, 2), (1, 2, 2), (0, 1, 1), (1, 1, 2), 2),
        ]  # fmt: skip
        for label, x, weight, stride, padding, dilation, groups in cases:
            op = cls(stride, padding, dilation, groups)
            yield from _draw(op, f"conv_{label}", label, x, weight, weight[0])


class ConvTranspose(Product, name="conv_transpose"):
    """(x[N, I, *S], weight[I, O/groups, *K][, bias[O]]) -> [N, O, *S'], the gradient of `Conv` by its input.

    S' = (S - 1) * stride - 2 * padding + dilation * (K - 1) + output_padding + 1, per spatial dim.
    """

    stride: Ints
    padding: Ints
    output_padding: Ints
    dilation: Ints
    groups: int = 1
    precision: str = ""

    def infer(self, *types: TensorType) -> TensorType:
        x, weight = _check(self, types, len(self.stride), self.padding, self.dilation, self.output_padding)
        if x.shape[1] != weight.shape[0] or weight.static_shape()[0] % self.groups:
            raise OpError(f"conv_transpose: {x} and weight {weight} do not fit {self.groups} groups")
        channels = weight.static_shape()[1] * self.groups
        _check_bias(self, types, channels)
        spatial = [
            (size - 1) * s - 2 * p + d * (k - 1) + extra + 1
            for size, k, s, p, extra, d in zip(
                x.shape[2:], weight.static_shape()[2:], self.stride, self.padding, self.output_padding,
                self.dilation, strict=True,
            )
        ]  # fmt: skip
        return TensorType(same_dtype(self, types), (x.shape[0], channels, *spatial))

    def reference(self, *inputs: Array) -> Array:
        """Every kernel position adds a strided copy of the input to an uncropped output."""
        x, weight, *bias = map(widen, inputs)
        out = self.infer(*(TensorType(str(item.dtype), item.shape) for item in (x, weight))).static_shape()
        # Output padding extends the end; it can exceed what the positions cover, and is zero there.
        full = np.zeros((*out[:2], *(o + 2 * p for o, p in zip(out[2:], self.padding, strict=True))), x.dtype)
        x_groups = x.reshape(x.shape[0], self.groups, -1, *x.shape[2:])
        w_groups = weight.reshape(self.groups, -1, *weight.shape[1:])
        for position in np.ndindex(*weight.shape[2:]):
            product = np.einsum("ngi...,gio->ngo...", x_groups, w_groups[(..., *position)])
            target = tuple(
                slice(k * d, k * d + (size - 1) * s + 1, s)
                for k, d, s, size in zip(position, self.dilation, self.stride, x.shape[2:], strict=True)
            )
            full[(slice(None), slice(None), *target)] += product.reshape(*out[:2], *x.shape[2:])
        crop = tuple(slice(p, p + o) for p, o in zip(self.padding, out[2:], strict=True))
        y = full[(slice(None), slice(None), *crop)]
        return narrow(y + bias[0].reshape(-1, *(1,) * len(crop)) if bias else y, inputs[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        # (id, x, weight, stride, padding, output_padding, dilation, groups)
        cases: list[tuple[str, Ints, Ints, Ints, Ints, Ints, Ints, int]] = [
            ("2x2_stride2", (1, 5, 7, 9), (5, 3, 2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 1),
            ("3x3", (2, 3, 5, 7), (3, 17, 3, 3), (1, 1), (1, 1), (0, 0), (1, 1), 1),
            ("3x3_stride2", (1, 17, 5, 7), (17, 5, 3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1),
            ("4x4_stride2", (1, 16, 7, 7), (16, 32, 4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1),
            ("dilated", (1, 3, 5, 4), (3, 2, 3, 2), (3, 1), (2, 0), (2, 0), (2, 1), 1),
            ("groups", (2, 6, 3, 4), (6, 2, 3, 3), (2, 2), (0, 1), (1, 0), (1, 1), 3),
            ("depthwise", (1, 5, 4, 4), (5, 1, 3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 5),
            ("one_pixel", (1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0), (0, 0), (1, 1), 1),
            ("gap", (1, 2, 3, 3), (2, 3, 1, 1), (3, 2), (0, 0), (1, 0), (1, 1), 1),
            ("1d", (2, 5, 9), (5, 3, 4), (2,), (1,), (0,), (1,), 1),
            ("1d_vocoder", (1, 16, 11), (16, 8, 16), (8,), (4,), (0,), (1,), 1),
            ("3d", (1, 3, 3, 4, 2), (3, 4, 2, 3, 3), (2, 1, 2), (0, 1, 1), (1, 0, 1), (1, 1, 1), 1),
        ]  # fmt: skip
        for label, x, weight, stride, padding, extra, dilation, groups in cases:
            op = cls(stride, padding, extra, dilation, groups)
            yield from _draw(op, f"conv_transpose_{label}", label, x, weight, weight[1] * op.groups)


def window_count(size: Dim, kernel: int, stride: int, padding: int, dilation: int) -> Dim:
    """How many windows of a kernel fit into a padded dim."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _check(op: Product, types: Sequence[TensorType], dims: int, *attributes: Ints) -> tuple[TensorType, TensorType]:
    if len(types) not in (2, 3):
        raise OpError(f"{op.name}: 2 or 3 inputs expected, got {len(types)}")
    if any(len(values) != dims for values in attributes) or any(t.rank != dims + 2 for t in types[:2]):
        raise OpError(f"{op.name}: attributes and inputs of {dims} spatial dims expected, got {types[0]}, {types[1]}")
    return types[0], types[1]


def _check_bias(op: Product, types: Sequence[TensorType], channels: Dim) -> None:
    if len(types) == 3 and types[2].shape != (channels,):
        raise OpError(f"{op.name}: bias[{channels}] expected, got {types[2]}")


def _draw(op: Product, seed: str, label: str, x: Ints, weight: Ints, channels: int) -> Iterator[Sample]:
    """With and without bias; weights scaled so that outputs are of order 1."""
    g = rng(seed)
    fan_in = np.float32(np.prod(weight[1:]) ** 0.5)
    inputs = (g.standard_normal(x, np.float32), g.standard_normal(weight, np.float32) / fan_in)
    yield Sample(label, op, inputs)
    yield Sample(f"{label}_bias", op, (*inputs, g.standard_normal(channels, np.float32)))


# --- importing from ATen ---------------------------------------------------------------------------------


def per_dim(values: int | Sequence[int], dims: int) -> Ints:
    """ATen's `int[n]` arguments: one number, or a list of one, stands for every dim."""
    if isinstance(values, int):
        return (values,) * dims
    return tuple(values) * dims if len(values) == 1 else tuple(values)


def _run(context: ImportContext, op: Product, x: Value, weight: Value, bias: Value | None) -> Value:
    """Emit, adding a batch axis around the op if `x` has none."""
    batched = x.type.rank == weight.type.rank
    x = x if batched else compose.reshape(context, x, (1, *x.shape))
    y: Value = context.emit(op, x, weight) if bias is None else context.emit(op, x, weight, bias)
    return y if batched else compose.reshape(context, y, y.shape[1:])


@aten("conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding")
def _conv(
    context: ImportContext, x: Value, weight: Value, bias: Value | None = None, stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,), dilation: Sequence[int] = (1,), groups: int = 1,
) -> Any:  # fmt: skip
    dims = weight.type.rank - 2
    steps, spread = per_dim(stride, dims), per_dim(dilation, dims)
    if padding == "valid":
        padding = (0,)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(spread, weight.type.static_shape()[2:], strict=True)]
        padding = [total // 2 for total in totals]
        if any(total % 2 for total in totals):
            # PyTorch puts the odd element at the end.
            x = compose.pad_end(context, x, [total % 2 for total in totals])
    assert not isinstance(padding, str)
    return _run(context, Conv(steps, per_dim(padding, dims), spread, groups), x, weight, bias)


@aten("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def _conv_transpose(
    context: ImportContext, x: Value, weight: Value, bias: Value | None = None, stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,), output_padding: Sequence[int] = (0,), groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Any:  # fmt: skip
    dims = weight.type.rank - 2
    steps, pads, extra, spread = (per_dim(item, dims) for item in (stride, padding, output_padding, dilation))
    return _run(context, ConvTranspose(steps, pads, extra, spread, groups), x, weight, bias)


@aten("convolution.default", "_convolution.default", "_convolution.deprecated")
def _convolution(
    context: ImportContext, x: Value, weight: Value, bias: Value | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int],
    groups: int, *_backend_flags: bool,
) -> Any:  # fmt: skip
    if transposed:
        return _conv_transpose(context, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(context, x, weight, bias, stride, padding, dilation, groups)
