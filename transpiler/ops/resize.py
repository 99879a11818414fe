"""Resampling of maps to a given size: nearest, linear, cubic, with PyTorch's source positions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transpiler.dims import Dim
from transpiler.ir import Array, TensorType, Value
from transpiler.ops.base import Expr, ImportContext, Injective, Load, OpError, Sample, Scalar, aten, rng
from transpiler.ops.dtypes import category, static
from transpiler.ops.linalg import Matmul
from transpiler.ops.wide import narrow, narrow_expr, wide_dtype, widen, widen_expr

_MODES = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "bicubic")
# The parameter of the cubic kernel that is not antialiased (that one uses -0.5, as PIL does).
_CUBIC = -0.75
# A float that int32 holds, and behind every tensor's last element.
_FAR = 2.0**31 - 128


class Resize(Injective, name="resize"):
    """x[N, C, *S] -> [N, C, *size].

    Output position i reads at `i * step` with `align_corners` (step = (S - 1) / (size - 1)), else at
    `(i + 0.5) * step - 0.5`, step being 1 / scale where a scale is given and S / size otherwise; nearest
    reads at floor(i * step), nearest-exact at floor((i + 0.5) * step). Source:
    aten/src/ATen/native/UpSample.h.
    """

    moves = False
    size: tuple[Dim, ...]
    mode: str
    align_corners: bool
    scales: tuple[float | None, ...]

    def infer(self, *types: TensorType) -> TensorType:
        (x,) = types
        if self.mode not in _MODES:
            raise OpError(f"resize: mode is one of {', '.join(_MODES)}, got {self.mode!r}")
        if x.rank != len(self.size) + 2 or len(self.scales) != len(self.size):
            raise OpError(f"resize: a size and scales of {x.rank - 2} spatial dims expected, got {self.size}")
        return x.with_shape((*x.shape[:2], *self.size))

    def reference(self, *inputs: Array) -> Array:
        """Axis by axis: the taps of an output position are independent of the other axes."""
        y = inputs[0] if self._nearest else widen(inputs[0])
        step_type = np.float64 if y.dtype == np.float64 else np.float32
        for axis, (count, scale) in enumerate(zip(static(self.size), self.scales, strict=True), start=2):
            size = y.shape[axis]
            i: Any = np.arange(count).astype(step_type)
            if self._nearest:
                y = y.take(self._nearest_index(i, size, count, scale), axis)
                continue
            step = self._step(size, count, scale, step_type)
            position = i * step if self.align_corners else (i + step_type(0.5)) * step - step_type(0.5)
            if self.mode != "bicubic":
                position = np.maximum(position, 0)
            base = np.floor(position)
            fraction = (position - base).astype(y.dtype).reshape(-1, *(1,) * (y.ndim - axis - 1))
            weights, first = (cubic_taps(fraction), -1) if self.mode == "bicubic" else ([1 - fraction, fraction], 0)
            places = [np.clip(base.astype(np.int64) + first + n, 0, size - 1) for n in range(len(weights))]
            y = sum((w * y.take(p, axis) for w, p in zip(weights, places, strict=True)), start=y.dtype.type(0))
        return narrow(y, inputs[0])

    @property
    def _nearest(self) -> bool:
        return self.mode.startswith("nearest")

    def _step(self, size: int, count: int, scale: float | None, t: Any) -> Any:
        if self.align_corners:
            return t(size - 1) / t(count - 1) if count > 1 else t(0)
        return t(1 / scale) if scale else t(size) / t(count)

    def _nearest_index(self, i: Array, size: int, count: int, scale: float | None) -> Array:
        step = np.float32(1 / scale) if scale else np.float32(size) / np.float32(count)
        i = i.astype(np.float32)
        position = np.floor((i + np.float32(0.5)) * step if self.mode == "nearest-exact" else i * step)
        return np.minimum(position.astype(np.int64), size - 1)

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        (x,) = types
        dtype = x.dtype if self._nearest else wide_dtype(x.dtype)
        taps = [self._taps(s, x.shape[2 + axis], axis, index[2 + axis], dtype) for axis in range(len(self.size))]
        if self._nearest:
            return inputs[0](*index[:2], *(place for ((place, _),) in taps))
        total: Expr = None
        # The last axis innermost, so that a row is blended before rows are.
        for combination in itertools.product(*taps):
            term = widen_expr(s, inputs[0](*index[:2], *(place for place, _ in combination)))
            for _, weight in combination:
                term = term * weight
            total = term if total is None else total + term
        return narrow_expr(s, total, x.dtype)

    def _taps(self, s: Scalar, size: Dim, axis: int, i: Expr, dtype: str) -> list[tuple[Expr, Expr]]:
        """(source position, weight) of each input element that output position `i` reads along `axis`."""
        real = "float64" if dtype == "float64" and not self._nearest else "float32"
        last, zero = s.cast(s.size(size - 1), "int32"), s.const(0, "int32")
        at, half = s.cast(i, real), s.const(0.5, real)
        step = self._step_expr(s, size, axis, real)
        if self._nearest:
            position = (at + half) * step if self.mode == "nearest-exact" else at * step
            return [(s.minimum(self._whole(s, size, axis, s.call("floor", position)), last), None)]
        position = at * step if self.align_corners else (at + half) * step - half
        if self.mode != "bicubic":
            # Exactly the maximum with 0, without a test for NaN, which a position never is.
            position = (position + s.call("abs", position)) * half
        base = s.call("floor", position)
        fraction, first = s.cast(position - base, dtype), self._whole(s, size, axis, base)
        if self.mode == "bicubic":
            weights, offset = cubic_weights(s, fraction, dtype), -1
        else:
            weights, offset = [s.const(1, dtype) - fraction, fraction], 0
        return [(s.minimum(s.maximum(first + (offset + n), zero), last), weight) for n, weight in enumerate(weights)]

    def _whole(self, s: Scalar, size: Dim, axis: int, position: Expr) -> Expr:
        """int32 of a whole position; any that is beyond the last element where a given scale leads far beyond it."""
        count, real = self.size[axis], s.dtype(position)
        if not (isinstance(size, int) and isinstance(count, int)) or self._far(size, count, self.scales[axis]):
            far = s.const(_FAR, real)
            position = s.select(position < far, position, far)
        return s.cast(position, "int32")

    def _far(self, size: int, count: int, scale: float | None) -> bool:
        scale = None if self._align else scale
        return max(size, count * (1 / scale if scale else size / max(count, 1))) >= _FAR / 2

    def _step_expr(self, s: Scalar, size: Dim, axis: int, real: str) -> Expr:
        count, scale = self.size[axis], self.scales[axis]
        if isinstance(size, int) and isinstance(count, int):
            t = np.float64 if real == "float64" else np.float32
            return s.const(float(self._step(size, count, None if self._align else scale, t)), real)
        if self.align_corners:
            return s.divide(
                s.cast(s.size(size - 1), real), s.maximum(s.cast(s.size(count - 1), real), s.const(1, real))
            )
        if scale:
            return s.const(1 / scale, real)
        divide = s.divide_rounded if self._nearest else s.divide
        return divide(s.cast(s.size(size), real), s.cast(s.size(count), real))

    @property
    def _align(self) -> bool:
        return self.align_corners and not self._nearest

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        # (id, x, size, scales)
        maps: list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[float | None, ...]]] = [
            ("double", (1, 3, 7, 9), (14, 18), (2.0, 2.0)),
            ("odd", (2, 5, 7, 9), (11, 5), (None, None)),
            ("down", (1, 17, 13, 16), (4, 7), (None, None)),
            ("fractional", (1, 2, 5, 6), (8, 9), (1.6, 1.5)),
            ("same", (1, 3, 7, 9), (7, 9), (None, None)),
            ("to_one", (1, 2, 5, 5), (1, 1), (None, None)),
            ("from_one", (1, 2, 1, 1), (3, 5), (None, None)),
            ("channels", (1, 32, 8, 8), (16, 16), (None, None)),
        ]  # fmt: skip
        for label, shape, size, scales in maps:
            x = rng("resize" + label).standard_normal(shape, np.float32)
            for mode in ("nearest", "nearest-exact", "bilinear", "bicubic"):
                yield Sample(f"{label}_{mode}", cls(size, mode, False, scales), (x,), exact=mode.startswith("nearest"))
            for mode in ("bilinear", "bicubic"):
                yield Sample(f"{label}_{mode}_corners", cls(size, mode, True, scales), (x,))
        g = rng("resize_other_ranks")
        line, volume = (
            g.standard_normal((2, 3, 11), np.float32),
            g.standard_normal((1, 2, 3, 5, 4), np.float32),
        )
        for align in (False, True):
            yield Sample(f"1d_linear_{align}", cls((17,), "linear", align, (None,)), (line,))
            yield Sample(f"3d_trilinear_{align}", cls((5, 7, 3), "trilinear", align, (None,) * 3), (volume,))
        yield Sample("1d_nearest", cls((22,), "nearest", False, (2.0,)), (line,), exact=True)
        yield Sample("3d_nearest", cls((6, 7, 4), "nearest", False, (None,) * 3), (volume,), exact=True)
        yield Sample(
            "uint8_nearest",
            cls((5,), "nearest", False, (None,)),
            (np.arange(9, dtype=np.uint8)[None, None],),
            exact=True,
        )
        # A scale that has little to do with the sizes leads beyond what int32 holds.
        for mode in ("nearest", "linear"):
            yield Sample(f"far_{mode}", cls((4,), mode, False, (1e-10,)), (line,), exact=True)
        yield Sample("float64", cls((9,), "linear", False, (None,)), (line.astype(np.float64),))


def cubic_taps(t: Array) -> list[Array]:
    """Weights of the 4 taps around a position with fraction `t` (Keys, IEEE ASSP 29(6), 1981)."""
    a = t.dtype.type(_CUBIC)
    outer = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (t + 1, 2 - t)]
    inner = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    return [outer[0], inner[0], inner[1], outer[1]]


def cubic_weights(s: Scalar, t: Expr, dtype: str) -> list[Expr]:
    """`cubic_taps` on target expressions."""

    def c(value: float) -> Expr:
        return s.const(value, dtype)

    a = _CUBIC
    outer = [((c(a) * d - c(5 * a)) * d + c(8 * a)) * d - c(4 * a) for d in (t + c(1), c(2) - t)]
    inner = [(c(a + 2) * d - c(a + 3)) * d * d + c(1) for d in (t, c(1) - t)]
    return [outer[0], inner[0], inner[1], outer[1]]


# --- importing from ATen ---------------------------------------------------------------------------------


def _emit(context: ImportContext, x: Value, mode: str, align_corners: bool, scales: Sequence[float | None]) -> Any:
    """PyTorch's 2-d nearest kernel alone ignores a scale where the size stays or doubles exactly."""
    _check_dtype(context, x, mode)
    size = context.out_types()[0].shape[2:]
    if mode == "nearest" and len(size) == 2:
        zipped = zip(size, x.shape[2:], scales, strict=True)
        scales = [None if count in (dim, dim * 2) else scale for count, dim, scale in zipped]
    return context.emit(Resize(size, mode, align_corners, tuple(scales)), x)


def _check_dtype(context: ImportContext, x: Value, mode: str) -> None:
    """PyTorch interpolates uint8 with fixed-point weights, whose width depends on the CPU."""
    if not mode.startswith("nearest") and category(x.dtype) != 2:
        raise context.unsupported(f"{mode} resizing of {x.dtype}; cast it to floats first")


def _register(overload: str, dims: int, mode: str, aligns: bool) -> None:
    """`.vec` takes (x, size, [align_corners,] factors); `.default` one scale per dim at the end."""
    names = ("scales",) if dims == 1 else ("scales_d", "scales_h", "scales_w")[3 - dims :]

    def split(rest: Sequence[Any], named: dict[str, Any]) -> tuple[bool, list[Any]]:
        positional = list(rest)
        align = bool(positional.pop(0) if positional else named["align_corners"]) if aligns else False
        return align, positional

    def vec(context: ImportContext, x: Value, output_size: Any, *rest: Any, **named: Any) -> Any:
        align, factors = split(rest, named)
        scales = factors[0] if factors else named.get("scale_factors")
        return _emit(context, x, mode, align, scales or (None,) * dims)

    def default(context: ImportContext, x: Value, output_size: Any, *rest: Any, **named: Any) -> Any:
        align, given = split(rest, named)
        return _emit(context, x, mode, align, [*given, *(named.get(name) for name in names[len(given) :])])

    aten(f"{overload}.vec")(vec)
    aten(f"{overload}.default")(default)


for _dims, _linear in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
    _register(f"upsample_nearest{_dims}d", _dims, "nearest", False)
    _register(f"_upsample_nearest_exact{_dims}d", _dims, "nearest-exact", False)
    _register(f"upsample_{_linear}{_dims}d", _dims, _linear, True)
_register("upsample_bicubic2d", 2, "bicubic", True)


def _antialiased(overload: str, kernel: str) -> None:
    """Antialiased resizing is a product with a constant matrix per axis; the sizes must be fixed."""

    def run(context: ImportContext, x: Value, align: bool, scales: Sequence[float | None]) -> Any:
        _check_dtype(context, x, kernel)
        out = context.out_types()[0]
        if not all(isinstance(dim, int) for dim in (*x.shape[2:], *out.shape[2:])):
            raise context.unsupported("antialiased resizing of a symbolic size")
        (height, width), (rows, columns) = static(x.shape[2:]), static(out.shape[2:])
        exact = np.float64 if x.dtype == "float64" else np.float32
        down = antialias_matrix(height, rows, kernel, align, scales[0]).astype(exact)
        across = antialias_matrix(width, columns, kernel, align, scales[1]).astype(exact)
        left, right = (context.cast(context.array(matrix), x.dtype) for matrix in (down, across))
        return context.emit(Matmul(), left, context.emit(Matmul(True), x, right))

    def vec(context: ImportContext, x: Value, output_size: Any, align_corners: bool, scale_factors: Any = None) -> Any:
        return run(context, x, align_corners, scale_factors or (None, None))

    def default(
        context: ImportContext, x: Value, output_size: Any, align_corners: bool,
        scales_h: float | None = None, scales_w: float | None = None,
    ) -> Any:  # fmt: skip
        return run(context, x, align_corners, (scales_h, scales_w))

    aten(f"{overload}.vec")(vec)
    aten(f"{overload}.default")(default)


_antialiased("_upsample_bilinear2d_aa", "bilinear")
_antialiased("_upsample_bicubic2d_aa", "bicubic")


def antialias_matrix(size: int, count: int, kernel: str, align_corners: bool, scale: float | None) -> Array:
    """float64 [count, size]: weights of PIL's resampling, the kernel stretched by the step when shrinking.

    Source: aten/src/ATen/native/cpu/UpSampleKernel.cpp, `compute_indices_weights_aa`.
    """
    aligned = (size - 1) / (count - 1) if count > 1 else 0.0
    step = aligned if align_corners else 1 / scale if scale else size / count
    stretch = max(step, 1.0)
    support = (2 if kernel == "bicubic" else 1) * stretch
    matrix = np.zeros((count, size))
    for i in range(count):
        center = step * (i + 0.5)
        begin, end = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size)
        distance = np.abs((np.arange(begin, end) - center + 0.5) / stretch)
        weights = _keys(distance) if kernel == "bicubic" else np.maximum(1 - distance, 0)
        matrix[i, begin:end] = weights / weights.sum()
    return matrix


def _keys(d: Array) -> Array:
    """Keys' cubic kernel at distances `d`, parameter -0.5."""
    inner = (1.5 * d - 2.5) * d * d + 1
    outer = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return np.where(d < 1, inner, np.where(d < 2, outer, 0))
