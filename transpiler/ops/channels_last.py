"""Convolution on maps with their channels last, as units for products of matrices want them: what a product sums over
lies side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from transpiler.ir import Array, TensorType, fixed_size
from transpiler.ops.base import OpError, Product, Sample, rng
from transpiler.ops.conv import Conv

Ints = tuple[int, ...]


def last_axes(rank: int) -> Ints:
    """The permutation that brings channels last."""
    return (0, *range(2, rank), 1)


def first_axes(rank: int) -> Ints:
    """The permutation that brings them back."""
    return (0, rank - 1, *range(1, rank - 1))


class ConvLast(Product, name="conv_last"):
    """(x[N, *S, C], weight[O, *K, C/groups][, bias[O]]) -> [N, *S', O]: `conv` with channels last in all operands."""

    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int = 1
    precision: str = ""

    def plain(self) -> Conv:
        return Conv(self.stride, self.padding, self.dilation, self.groups)

    def infer(self, *types: TensorType) -> TensorType:
        x, weight, *bias = types
        if x.rank != len(self.stride) + 2 or weight.rank != x.rank:
            raise OpError(f"conv_last: {len(self.stride)} spatial dims expected, got {x} and {weight}")
        fixed_size(x.shape[-1])
        first = first_axes(x.rank)
        turned = [item.with_shape(tuple(item.shape[axis] for axis in first)) for item in (x, weight)]
        result = self.plain().infer(*turned, *bias)
        return result.with_shape(tuple(result.shape[axis] for axis in last_axes(x.rank)))

    def reference(self, *inputs: Array) -> Array:
        x, weight, *bias = inputs
        first = first_axes(x.ndim)
        y = self.plain().reference(x.transpose(first), weight.transpose(first), *bias)
        return np.ascontiguousarray(y.transpose(last_axes(x.ndim)))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        # (id, x, weight, stride, padding, dilation, groups)
        cases: list[tuple[str, Ints, Ints, Ints, Ints, Ints, int]] = [
            ("1x1", (2, 7, 9, 8), (12, 1, 1, 8), (1, 1), (0, 0), (1, 1), 1),
            ("1x1_stride2", (1, 9, 9, 16), (17, 1, 1, 16), (2, 2), (0, 0), (1, 1), 1),
            ("3x3", (2, 7, 9, 4), (5, 3, 3, 4), (1, 1), (1, 1), (1, 1), 1),
            ("3x3_odd", (1, 7, 6, 5), (3, 3, 3, 5), (1, 1), (1, 1), (1, 1), 1),
            ("3x5_mixed", (2, 11, 13, 8), (4, 3, 5, 8), (2, 1), (1, 3), (1, 2), 1),
            ("groups", (1, 7, 9, 24), (9, 3, 3, 8), (1, 1), (1, 1), (1, 1), 3),
            ("depthwise", (1, 7, 9, 17), (17, 3, 3, 1), (1, 1), (1, 1), (1, 1), 17),
            ("depthwise_stride2", (2, 9, 9, 16), (16, 5, 5, 1), (2, 2), (2, 2), (1, 1), 16),
            ("depthwise_multiplier", (1, 7, 7, 5), (10, 3, 3, 1), (1, 1), (1, 1), (1, 1), 5),
            ("one_pixel", (1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1),
            ("stem7x7", (1, 33, 33, 4), (16, 7, 7, 4), (2, 2), (3, 3), (1, 1), 1),
            ("tiles", (1, 14, 14, 32), (64, 3, 3, 32), (1, 1), (1, 1), (1, 1), 1),
            ("3d", (1, 5, 4, 6, 8), (6, 3, 3, 3, 8), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1),
        ]
        for label, x, weight, stride, padding, dilation, groups in cases:
            g = rng(f"conv_last_{label}")
            scale = np.float32(np.prod(weight[1:]) ** -0.5)
            inputs: Sequence[Array] = (g.standard_normal(x, np.float32), g.standard_normal(weight, np.float32) * scale)
            op = cls(stride, padding, dilation, groups)
            yield Sample(label, op, tuple(inputs))
            yield Sample(f"{label}_bias", op, (*inputs, g.standard_normal(weight[0], np.float32)))
