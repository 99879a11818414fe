"""Transposed convolution as one ordinary convolution: every output phase is a group of channels.

With stride s, output s * q + r depends on the taps k = R + s * t, R = (r + padding) mod s, of the inputs q + c - t,
c = (r + padding) // s. So phase r is a convolution at unit stride, and all phases read the same window of the input
(Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from transpiler.ir import Array, TensorType
from transpiler.ops.base import Expr, Injective, Load, Sample, Scalar, rng
from transpiler.ops.packed import BLOCK, blocks

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """Inputs q + first ... q + last that the outputs s * q ... s * q + s - 1 of a dim depend on."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1


def window(kernel: int, stride: int, padding: int) -> Window:
    """The window of one dim."""
    starts, ends = [], []
    for phase in range(stride):
        shift, tap = divmod(phase + padding, stride)
        taps = -(-(kernel - tap) // stride)
        if taps > 0:
            starts.append(shift - taps + 1)
            ends.append(shift)
    return Window(min(starts), max(ends))


class PhaseFilters(Injective, name="phase_filters"):
    """weight[I, O, KH, KW] of a transposed convolution -> [SH*SW*16*ceil(O/16), I, WH, WW]: a filter per phase."""

    stride: Ints
    padding: Ints

    def _windows(self, kernel: Sequence[int]) -> list[Window]:
        return [window(k, s, p) for k, s, p in zip(kernel, self.stride, self.padding, strict=True)]

    def infer(self, *types: TensorType) -> TensorType:
        i, o, *kernel = types[0].static_shape()
        sizes = [item.size for item in self._windows(kernel)]
        return types[0].with_shape((self.stride[0] * self.stride[1] * blocks(o) * BLOCK, i, *sizes))

    def reference(self, *inputs: Array) -> Array:
        i, o, *kernel = inputs[0].shape
        rows, columns = self._windows(kernel)
        (sh, sw), (ph, pw) = self.stride, self.padding
        result = np.zeros((sh, sw, blocks(o) * BLOCK, i, rows.size, columns.size), inputs[0].dtype)
        for y, x in np.ndindex(*kernel):
            ry, rx = (y - ph) % sh, (x - pw) % sw
            v, u = (ry + ph - y) // sh - rows.first, (rx + pw - x) // sw - columns.first
            result[ry, rx, :o, :, v, u] = inputs[0][:, :, y, x].T
        return result.reshape(-1, i, rows.size, columns.size)

    def host(self, *names: str) -> str:
        return f"phase_filters({names[0]}, {self.stride}, {self.padding})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        _, o, *kernel = types[0].static_shape()
        channel, column, *place = index
        width = blocks(o) * BLOCK
        phase, channel = s.floordiv(channel, width), s.floormod(channel, width)
        phases = [s.floordiv(phase, self.stride[1]), s.floormod(phase, self.stride[1])]
        inside: Expr = channel < o
        taps = []
        for axis, item in enumerate(self._windows(kernel)):
            tap = phases[axis] + self.padding[axis] - (place[axis] + item.first) * self.stride[axis]
            inside = s.logical_and(inside, s.logical_and(tap >= 0, tap < kernel[axis]))
            taps.append(tap)
        return s.guarded(inside, inputs[0](column, channel, *taps), s.const(0.0, types[0].dtype))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape, stride, padding in (
            ((3, 5, 2, 2), (2, 2), (0, 0)),
            ((4, 17, 4, 3), (2, 1), (1, 1)),
            ((2, 3, 3, 5), (3, 2), (0, 2)),
            ((2, 3, 1, 2), (2, 3), (0, 0)),
        ):
            label = "x".join(map(str, (*shape, *stride, *padding)))
            yield Sample(label, cls(stride, padding), (rng(label).standard_normal(shape, np.float32),), exact=True)
