"""Winograd convolution on maps with their channels last."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from transpiler.ir import Array, TensorType
from transpiler.ops.base import Opaque, OpError, Sample, rng
from transpiler.ops.channels_last import Ints, first_axes, last_axes
from transpiler.ops.planes import WinogradPlanes
from transpiler.ops.winograd import POINTS, PackWinograd


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
        # (images, H, W, channels in, channels out, padding)
        cases = (
            (2, 5, 7, 16, 16, (1, 1)),
            (1, 9, 8, 17, 33, (0, 0)),
            (2, 6, 13, 5, 7, (2, 2)),
            (3, 9, 10, 8, 16, (0, 1)),
        )
        for tile, (n, h, w, c, o, p) in ((tile, case) for tile in POINTS for case in cases):
            label = f"f{tile}_{n}x{h}x{w}_{c}to{o}_p{p[0]}{p[1]}"
            g = rng(f"last {label}")
            x = g.standard_normal((n, h, w, c), np.float32)
            filters = g.standard_normal((o, c, 3, 3), np.float32) * np.float32((9 * c) ** -0.5)
            op, weight = cls(o, p, tile), PackWinograd(tile).reference(filters)
            yield Sample(label, op, (x, weight))
            bias = g.standard_normal(o, np.float32)
            yield Sample(f"{label}_bias", op, (x, weight, bias))
            for value in (np.nan, np.inf, 1e38) if c == 5 else ():
                odd = x.copy()
                odd[0, h // 2, w // 3, 0] = value
                yield Sample(f"{label}_{value:g}", op, (odd, weight, bias))
