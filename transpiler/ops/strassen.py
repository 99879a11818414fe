"""Linear layers by Strassen's algorithm: seven products of half-sized matrices instead of eight.

Strassen, "Gaussian Elimination is not Optimal" (1969), one level of it, on x @ W.T of many rows. The sums of W's parts
are made when weights are loaded. Rows of x and columns of W.T are scaled by powers of two first, so that a result is as
exact as its own row and column are large, whatever else is in the matrices (Ballard, Benson, Druinsky, Lipshitz and
Schwartz, "Improving the Numerical Stability of Fast Matrix Multiplication", 2016: outside scaling).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from transpiler.ir import Array, TensorType, fixed_size
from transpiler.ops.base import Expr, Injective, Load, Opaque, OpError, Reduce, Reduction, Sample, Scalar, rng
from transpiler.ops.packed import BLOCK, require_float32

# Every product as what it multiplies and where it counts. A's and B's parts, and C's, are 11, 12, 21, 22 in this order.
LEFT = ((1, 0, 0, 1), (0, 0, 1, 1), (1, 0, 0, 0), (0, 0, 0, 1), (1, 1, 0, 0), (-1, 0, 1, 0), (0, 1, 0, -1))
RIGHT = ((1, 0, 0, 1), (1, 0, 0, 0), (0, 1, 0, -1), (-1, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0), (0, 0, 1, 1))
RESULT = ((1, 0, 0, 1), (0, 0, 1, -1), (0, 1, 0, 1), (1, 0, 1, 0), (-1, 1, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0))
PRODUCTS = len(RESULT)
Factors = Sequence[Sequence[int]]
# A part of B from the right factors: product -> factor.
RECOVERED: tuple[dict[int, int], ...] = ({1: 1}, {2: 1, 4: 1}, {3: 1, 1: 1}, {4: 1})

# Scales lie between these, so that none and no product of two leaves float32's range.
SMALLEST, LARGEST = 2.0**-60, 2.0**60


def half_panels(features: int) -> int:
    """Panels of half of the columns."""
    return -(-features // (2 * BLOCK))


class RowScales(Reduce, name="row_scales"):
    """weight[N, K] -> [N]: the power of two at or below the row's largest magnitude, within 2^-60..2^60; NaN where the
    row is not finite."""

    def infer(self, weight: TensorType) -> TensorType:
        require_float32(self, [weight])
        if weight.rank != 2 or weight.shape[1] == 0:
            raise OpError(f"row_scales: a matrix expected, got {weight}")
        return weight.with_shape(weight.shape[:1])

    def reference(self, weight: Array) -> Array:
        largest = np.max(np.abs(weight), axis=1)
        scale = np.exp2(np.frexp(np.clip(largest, SMALLEST, LARGEST))[1] - 1.0)
        return np.where(np.isfinite(largest), scale, np.nan).astype(weight.dtype)

    def host(self, *names: str) -> str:
        return f"row_scales({names[0]})"

    def reduction(
        self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
    ) -> Reduction:
        dtype = types[0].dtype

        def finish(state: tuple[Expr, ...]) -> Expr:
            largest = s.bind(state[0])
            clamped = s.minimum(s.maximum(largest, s.const(SMALLEST, dtype)), s.const(LARGEST, dtype))
            nan = s.const(float("nan"), dtype)
            scale = s.call("exp2", s.call("logb", clamped))
            return s.select(s.logical_or(s.call("isnan", largest), s.call("isinf", largest)), nan, scale)

        return Reduction(
            extents=(types[0].shape[1],),
            init=(s.const(0.0, dtype),),
            body=lambda r: (s.call("abs", inputs[0](index[0], r[0])),),
            combine=lambda a, b: (s.maximum(a[0], b[0]),),
            finish=finish,
        )

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        w = rng("row_scales").standard_normal((21, 37), np.float32)
        w[3], w[4, 5], w[5, 6], w[6], w[7, 1] = 0, np.inf, np.nan, w[6] * np.float32(1e-30), 1e25
        yield Sample("21x37", cls(), (w,), exact=True)
        yield Sample("1x1", cls(), (np.full((1, 1), 4.0, np.float32),), exact=True)


def right_factors(parts: Array, right: Factors) -> list[Array]:
    """The right factors of the products from B's parts 11, 12, 21, 22, with `right` as signs of parts by product."""
    signed = [[parts[at] * parts.dtype.type(sign) for at, sign in enumerate(signs) if sign] for signs in right]
    return [functools.reduce(np.add, terms) for terms in signed]


def right_factor(s: Scalar, dtype: str, right: Factors, product: Expr, part: Callable[[int], Expr]) -> Expr:
    """An element of the right factor of `product`, from those of B's parts."""
    zero = s.const(0.0, dtype)
    total = zero
    for at in range(4):
        sign = zero
        for number, signs in enumerate(right):
            sign = s.select(s.eq(product, number), s.const(float(signs[at]), dtype), sign)
        total = total + sign * part(at)
    return total


class PackStrassen(Injective, name="pack_strassen"):
    """(weight[N, K], scales[N]) -> [ceil(N/32), 7*K/2 + 2, 16]: panels of 16 columns of the seven right factors, one
    factor after the other, from the scaled weight; then the scales of the left half's columns and of the right half's.

    A row of NaN scale counts as zeros, so that it does not reach the columns that it shares products with.
    """

    def infer(self, *types: TensorType) -> TensorType:
        require_float32(self, types)
        n, k = types[0].static_shape()
        if k % 2 or types[1].shape != (n,):
            raise OpError(f"pack_strassen: an even number of columns and a scale per row expected, got {types}")
        return types[0].with_shape((half_panels(n), PRODUCTS * k // 2 + 2, BLOCK))

    def reference(self, *inputs: Array) -> Array:
        weight, scales = inputs
        half, depth = half_panels(len(scales)), weight.shape[1] // 2
        finite = np.isfinite(scales)[:, None]
        wide = np.zeros((2 * half * BLOCK, 2 * depth), weight.dtype)
        wide[: len(scales)] = np.where(finite, weight, 0) / np.where(finite, scales[:, None], 1)
        parts = wide.reshape(2, half, BLOCK, 2, depth).transpose(3, 0, 1, 4, 2).reshape(4, half, depth, BLOCK)
        factors = right_factors(parts, RIGHT)
        columns = np.ones(2 * half * BLOCK, weight.dtype)
        columns[: len(scales)] = scales
        tail = columns.reshape(2, half, BLOCK).transpose(1, 0, 2)
        return np.ascontiguousarray(np.concatenate([*factors, tail], axis=1))

    def host(self, *names: str) -> str:
        return f"pack_strassen({names[0]}, {names[1]})"

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        n, k = types[0].static_shape()
        half, depth, dtype = half_panels(n), k // 2, types[0].dtype
        panel, row, lane = index
        one, zero = s.const(1.0, dtype), s.const(0.0, dtype)

        def column(side: Expr) -> Expr:
            return (side * half + panel) * BLOCK + lane

        def scale(side: Expr) -> Expr:
            return s.guarded(column(side) < n, inputs[1](column(side)), one)

        def part(at: int) -> Expr:
            side, step = at % 2, s.floormod(row, depth) + at // 2 * depth
            value = s.guarded(column(side) < n, inputs[0](column(side), step), zero)
            return s.select(s.call("isnan", scale(side)), zero, s.divide(value, scale(side)))

        total = right_factor(s, dtype, RIGHT, s.floordiv(row, depth), part)
        return s.guarded(row >= PRODUCTS * depth, scale(row - PRODUCTS * depth), total)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape in ((64, 6), (33, 2), (7, 10)):
            weight = rng(f"pack_strassen{shape}").standard_normal(shape, np.float32)
            weight[1], weight[2, 1] = weight[1] * np.float32(1e4), np.nan
            yield Sample("x".join(map(str, shape)), cls(), (weight, RowScales().reference(weight)))


class LinearStrassen(Opaque, name="linear_strassen"):
    """(x[..., K], weight[ceil(N/32), 7*K/2 + 2, 16][, bias[N]]) -> [..., N]: x @ W.T + bias with the weight of
    `pack_strassen`, by Strassen's algorithm.

    A row of x that is not finite is computed as a direct sum, so that NaN and infinities stay in their row.
    """

    features: int

    def infer(self, *types: TensorType) -> TensorType:
        require_float32(self, types)
        x, depth = types[0], fixed_size(types[0].shape[-1])
        wanted = (half_panels(self.features), PRODUCTS * (depth // 2) + 2, BLOCK)
        if depth % 2 or types[1].shape != wanted:
            raise OpError(f"linear_strassen: weight {types[1]} does not fit x {x} and {self.features} features")
        if len(types) == 3 and types[2].shape != (self.features,):
            raise OpError(f"linear_strassen: bias[{self.features}] expected, got {types[2]}")
        return x.with_shape((*x.shape[:-1], self.features))

    def reference(self, *inputs: Array) -> Array:
        """The direct product with the weight that the packed one stands for."""
        x, packed, *bias = inputs
        half, depth = packed.shape[0], (packed.shape[1] - 2) // PRODUCTS
        factors = packed[:, :-2].reshape(half, PRODUCTS, depth, BLOCK)
        parts = [sum(factors[:, at] * packed.dtype.type(sign) for at, sign in item.items()) for item in RECOVERED]
        wide = np.stack(parts).reshape(2, 2, half, depth, BLOCK)  # half of k, half of the columns, ...
        weight = wide.transpose(1, 2, 4, 0, 3).reshape(2 * half * BLOCK, 2 * depth)
        scales = packed[:, -2:].transpose(1, 0, 2).reshape(-1, 1)
        y: Array = np.matmul(x, (weight * scales)[: self.features].T)
        return y + bias[0] if bias else y

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for shape, n in (
            ((64, 32), 64),
            ((3, 6), 20),
            ((67, 130), 96),
            ((2, 65, 48), 100),
            ((1, 2), 7),
            ((128, 64), 272),
            ((17, 768), 33),
        ):
            label = f"{'x'.join(map(str, shape))}_{n}"
            g = rng(label)
            w = g.standard_normal((n, shape[-1]), np.float32) / np.float32(shape[-1] ** 0.5)
            w *= np.exp2(g.integers(-8, 8, (n, 1))).astype(np.float32)
            weight = PackStrassen().reference(w, RowScales().reference(w))
            x = g.standard_normal(shape, np.float32)
            yield Sample(label, cls(n), (x, weight))
            bias = g.standard_normal(n, np.float32)
            yield Sample(f"{label}_bias", cls(n), (x, weight, bias))
            for value in (np.nan, np.inf, -np.inf, 1e38, 1e-42):
                odd = x.copy()
                odd[..., shape[-2] // 3, 1] = value
                yield Sample(f"{label}_{value:g}", cls(n), (odd, weight, bias))
