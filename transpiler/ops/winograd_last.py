"""Winograd convolution on maps with their channels last."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from transpiler.ir import Array, TensorType
from transpiler.ops.base import Opaque, OpError, Sample
from transpiler.ops.channels_last import Ints, first_axes, last_axes
from transpiler.ops.planes import WinogradPlanes


class WinogradLast(Opaque, name="winograd_last"):
    """(x[N, H, W, I], weight[ceil(O/16), (M+2)^2, ceil(I/16), 16, 16][, bias[O]]) -> [N, H', W', O]: `winograd_planes`
    with channels last."""

    channels: int
    padding: Ints
    tile: int  # M

    def planes(self) -> WinogradPlanes:
        return WinogradPlanes(self.channels, self.padding, self.tile)

    def infer(self, *types: TensorType) -> TensorType:
        x, *others = types
        if x.rank != 4:
            raise OpError(f"winograd_last: a map [N, H, W, C] expected, got {x}")
        result = self.planes().infer(x.with_shape(tuple(x.shape[axis] for axis in first_axes(4))), *others)
        return result.with_shape(tuple(result.shape[axis] for axis in last_axes(4)))

    def reference(self, *inputs: Array) -> Array:
        y = self.planes().reference(inputs[0].transpose(first_axes(4)), *inputs[1:])
        return np.ascontiguousarray(y.transpose(last_axes(4)))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for sample in WinogradPlanes.samples():
            planes, (x, *others) = sample.op, sample.inputs
            assert isinstance(planes, WinogradPlanes)
            last = cls(planes.channels, planes.padding, planes.tile)
            yield Sample(sample.id, last, (np.ascontiguousarray(x.transpose(last_axes(4))), *others))
