"""Sampling a map at given positions, and the pixel and channel shuffles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transpiler.dims import Dim
from transpiler.ir import Array, TensorType, Value
from transpiler.ops import compose
from transpiler.ops.base import Expr, ImportContext, Injective, Load, OpError, Sample, Scalar, aten, rng
from transpiler.ops.linalg import same_dtype
from transpiler.ops.resize import cubic_taps, cubic_weights
from transpiler.ops.wide import narrow, narrow_expr, widen, widen_expr

_MODES = ("bilinear", "nearest", "bicubic")
_PADDING_MODES = ("zeros", "border", "reflection")


class GridSample(Injective, name="grid_sample"):
    """(x[N, C, *S], grid[N, *P, D]) -> [N, C, *P] for D = 2 or 3 spatial dims.

    grid[..., 0] is the position along the last spatial axis, in [-1, 1] from the first to the last pixel:
    their centres with `align_corners`, else their outer edges. Outside positions read 0, the border, or are
    reflected. Source: aten/src/ATen/native/GridSampler.h (Jaderberg et al., arXiv:1506.02025).
    """

    moves = False
    mode: str = "bilinear"
    padding_mode: str = "zeros"
    align_corners: bool = False

    def infer(self, *types: TensorType) -> TensorType:
        x, grid = types
        if self.mode not in _MODES or self.padding_mode not in _PADDING_MODES:
            raise OpError(f"grid_sample: unknown mode {self.mode!r} or padding mode {self.padding_mode!r}")
        dims = x.rank - 2
        if dims not in (2, 3) or grid.rank != x.rank or grid.shape[-1] != dims or grid.shape[0] != x.shape[0]:
            raise OpError(f"grid_sample: x[N, C, *S] and grid[N, *P, {dims}] expected, got {x} and {grid}")
        if self.mode == "bicubic" and dims != 2:
            raise OpError("grid_sample: bicubic needs 2 spatial dims")
        return TensorType(same_dtype(self, types), (*x.shape[:2], *grid.shape[1:-1]))

    def reference(self, *inputs: Array) -> Array:
        """The element's formula on whole arrays."""
        x, grid = map(widen, inputs)
        sizes = x.shape[2:]
        t = x.dtype.type
        taps: list[list[tuple[Array, Array]]] = []
        for axis, size in enumerate(sizes):
            position = grid[..., len(sizes) - 1 - axis]
            position = ((position + 1) / 2 * t(size - 1)) if self.align_corners else ((position + 1) * t(size) - 1) / 2
            if self.mode != "bicubic":
                position = self._inside(position, size)
            with np.errstate(invalid="ignore"):
                base = np.rint(position) if self.mode == "nearest" else np.floor(position)
            fraction = position - base
            if self.mode == "bicubic":
                pairs = [(base + n - 1, w) for n, w in enumerate(cubic_taps(fraction))]
                taps.append([(self._inside(place, size), w) for place, w in pairs])
            else:
                taps.append([(base, 1 - fraction), (base + 1, fraction)][: 1 if self.mode == "nearest" else 2])
        total = np.zeros((*x.shape[:2], *grid.shape[1:-1]), x.dtype)
        batch = np.arange(x.shape[0]).reshape(-1, *(1,) * len(sizes))
        for combination in itertools.product(*taps):
            valid = np.ones(grid.shape[:-1], bool)
            places = []
            for (place, _), size in zip(combination, sizes, strict=True):
                valid &= (place >= 0) & (place < size)
                places.append(np.where((place >= 0) & (place < size), place, 0).astype(np.int64))
            read: Any = (batch, slice(None), *places)
            picked = np.where(valid[:, None], np.moveaxis(x[read], -1, 1), 0)
            weight = np.ones((), x.dtype)
            for _, w in combination:
                weight = weight * w
            total += picked if self.mode == "nearest" else picked * weight[:, None]
        return narrow(total, inputs[0])

    def _inside(self, position: Array, size: int) -> Array:
        """Border: clamped; reflection: mirrored at the edges, then clamped; zeros: unchanged."""
        if self.padding_mode == "zeros":
            return position
        if self.padding_mode == "reflection":
            low, span = self._mirror(size)
            if span == 0:
                return np.zeros_like(position)
            offset = np.abs(position - position.dtype.type(low))
            turns, rest = np.floor(offset / span), np.fmod(offset, position.dtype.type(span))
            position = np.where(turns % 2 == 0, rest + low, span - rest + low).astype(position.dtype)
        return np.clip(position, 0, size - 1)

    def _mirror(self, size: Any) -> tuple[float, Any]:
        """Where the first mirror stands and the distance to the second."""
        return (0.0, size - 1) if self.align_corners else (-0.5, size)

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        x, _ = types
        sizes = x.shape[2:]
        taps = [
            self._taps(s, size, widen_expr(s, inputs[1](index[0], *index[2:], len(sizes) - 1 - axis)))
            for axis, size in enumerate(sizes)
        ]
        total: Expr = None
        for combination in itertools.product(*taps):
            inside: Expr = None
            for place, _ in combination:
                within = place >= s.const(0, "int32")
                inside = within if inside is None else s.logical_and(inside, within)
            places = [s.maximum(place, s.const(0, "int32")) for place, _ in combination]
            zero = s.const(0, x.dtype)
            term = widen_expr(s, s.guarded(inside, inputs[0](*index[:2], *places), zero))
            for _, weight in combination:
                term = term if weight is None else term * weight
            total = term if total is None else total + term
        return narrow_expr(s, total, x.dtype)

    def _taps(self, s: Scalar, size: Dim, position: Expr) -> list[tuple[Expr, Expr | None]]:
        """(index, weight) of each element that is read along an axis; the index of one outside is -1."""
        dtype = s.dtype(position)

        def c(value: float) -> Expr:
            return s.const(value, dtype)

        length = s.cast(s.size(size), dtype)
        if self.align_corners:
            position = (position + c(1)) * c(0.5) * (length - c(1))
        else:
            position = ((position + c(1)) * length - c(1)) * c(0.5)
        if self.mode != "bicubic":
            position = self._inside_expr(s, position, length)
        if self.mode == "nearest":
            return [(self._place(s, s.call("round", position), length), None)]
        position = s.bind(position)
        base = s.bind(s.call("floor", position))
        fraction = s.bind(position - base)
        if self.mode == "bilinear":
            places, weights = [base, base + c(1)], [c(1) - fraction, fraction]
        else:
            places = [self._inside_expr(s, base + c(n - 1), length) for n in range(4)]
            weights = [s.bind(weight) for weight in cubic_weights(s, fraction, dtype)]
        return [(self._place(s, place, length), weight) for place, weight in zip(places, weights, strict=True)]

    def _place(self, s: Scalar, position: Expr, length: Expr) -> Expr:
        """A whole position as an index, -1 outside. Compared as floats: NaN is outside, and no cast overflows."""
        position = s.bind(position)
        within = s.logical_and(position >= s.const(0, s.dtype(position)), position < length)
        return s.bind(s.cast(s.select(within, position, s.const(-1, s.dtype(position))), "int32"))

    def _inside_expr(self, s: Scalar, position: Expr, length: Expr) -> Expr:
        dtype = s.dtype(position)

        def c(value: float) -> Expr:
            return s.const(value, dtype)

        if self.padding_mode == "zeros":
            return position
        if self.padding_mode == "reflection":
            low = c(0.0 if self.align_corners else -0.5)
            # A single pixel with corners aligned has mirrors at distance 0: any span will do.
            span = s.maximum(length - c(1), c(1)) if self.align_corners else length
            offset = s.bind(s.call("abs", position - low))
            turns, rest = s.call("floor", s.divide_rounded(offset, span)), s.call("fmod", offset, span)
            even = s.eq(s.call("fmod", turns, c(2)), c(0))
            position = s.select(even, rest + low, span - rest + low)
        return s.minimum(s.maximum(position, c(0)), length - c(1))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        g = rng("grid_sample")
        x, volume = (
            g.standard_normal((2, 3, 5, 7), np.float32),
            g.standard_normal((1, 2, 3, 4, 5), np.float32),
        )
        grid = g.uniform(-1.6, 1.6, (2, 4, 9, 2)).astype(np.float32)
        volume_grid = g.uniform(-1.4, 1.4, (1, 2, 3, 5, 3)).astype(np.float32)
        pixel = g.standard_normal((2, 3, 1, 1), np.float32)
        for mode, padding, align in itertools.product(_MODES, _PADDING_MODES, (False, True)):
            label = f"{mode}_{padding}{'_corners' if align else ''}"
            yield Sample(label, cls(mode, padding, align), (x, grid))
            if padding != "reflection":
                yield Sample(f"{label}_pixel", cls(mode, padding, align), (pixel, grid))
            if mode != "bicubic":
                yield Sample(f"{label}_3d", cls(mode, padding, align), (volume, volume_grid))


# --- importing from ATen ---------------------------------------------------------------------------------


@aten("grid_sampler.default", "grid_sampler_2d.default", "grid_sampler_3d.default")
def _grid_sampler(
    context: ImportContext,
    x: Value,
    grid: Value,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
) -> Any:
    op = GridSample(("bilinear", "nearest", "bicubic")[interpolation_mode], _PADDING_MODES[padding_mode], align_corners)
    return context.emit(op, x, grid)


@aten("pixel_shuffle.default")
def _pixel_shuffle(context: ImportContext, x: Value, upscale_factor: int) -> Any:
    """[..., C*r*r, H, W] -> [..., C, H*r, W*r] (Shi et al., arXiv:1609.05158)."""
    r = upscale_factor
    *lead, channels, height, width = x.shape
    rank = len(lead)
    split = compose.reshape(context, x, (*lead, channels // (r * r), r, r, height, width))
    order = (*range(rank), rank, rank + 3, rank + 1, rank + 4, rank + 2)
    mixed = compose.transpose(context, split, order)
    return compose.reshape(context, mixed, (*lead, channels // (r * r), height * r, width * r))


@aten("pixel_unshuffle.default")
def _pixel_unshuffle(context: ImportContext, x: Value, downscale_factor: int) -> Any:
    """[..., C, H*r, W*r] -> [..., C*r*r, H, W]."""
    r = downscale_factor
    *lead, channels, height, width = x.shape
    rank = len(lead)
    split = compose.reshape(context, x, (*lead, channels, height // r, r, width // r, r))
    order = (*range(rank), rank, rank + 2, rank + 4, rank + 1, rank + 3)
    mixed = compose.transpose(context, split, order)
    return compose.reshape(context, mixed, (*lead, channels * r * r, height // r, width // r))


@aten("channel_shuffle.default", "native_channel_shuffle.default")
def _channel_shuffle(context: ImportContext, x: Value, groups: int) -> Any:
    """[N, groups * C, ...] -> the channels of the groups interleaved (arXiv:1707.01083)."""
    n, channels, *rest = x.shape
    split = compose.reshape(context, x, (n, groups, channels // groups, *rest))
    mixed = compose.transpose(context, split, (0, 2, 1, *range(3, len(rest) + 3)))
    return compose.reshape(context, mixed, x.shape)
