"""Products of matrices: linear, matmul, and the ATen forms that are compositions of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from transpiler.dims import Dim
from transpiler.ir import Array, TensorType, Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, Op, OpError, Product, Sample, aten, broadcast_shapes, rng
from transpiler.ops.wide import narrow, widen


def same_dtype(op: Op, types: tuple[TensorType, ...]) -> str:
    """The dtype all inputs share. Raises OpError if they do not."""
    if len({t.dtype for t in types}) != 1:
        raise OpError(f"{op.name}: inputs of one dtype expected, got {', '.join(t.dtype for t in types)}")
    return types[0].dtype


class Linear(Product, name="linear"):
    """(x[..., K], weight[N, K][, bias[N]]) -> [..., N]: x @ weight.T + bias."""

    precision: str = ""

    def infer(self, *types: TensorType) -> TensorType:
        if len(types) not in (2, 3):
            raise OpError(f"linear: 2 or 3 inputs expected, got {len(types)}")
        x, weight, *bias = types
        if x.rank < 1 or weight.rank != 2 or x.shape[-1] != weight.shape[1]:
            raise OpError(f"linear: x[..., K] and weight[N, K] expected, got {x} and {weight}")
        if bias and bias[0].shape != weight.shape[:1]:
            raise OpError(f"linear: bias[{weight.shape[0]}] expected, got {bias[0]}")
        return TensorType(same_dtype(self, types), (*x.shape[:-1], weight.shape[0]))

    def reference(self, *inputs: Array) -> Array:
        x, weight, *bias = map(widen, inputs)
        y = np.matmul(x, weight.T)
        return narrow(y + bias[0] if bias else y, inputs[0])

    def host(self, *names: str) -> str:
        product = f"{names[0]} @ {names[1]}.T"
        return f"{product} + {names[2]}" if len(names) == 3 else product

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        shapes: list[tuple[tuple[int, ...], int]] = [
            ((3, 5), 7), ((1, 1), 1), ((17,), 5), ((2, 3, 17), 33), ((0, 4), 3), ((1, 64), 130), ((67, 128),
            96), ((2, 100, 48), 64),
        ]  # fmt: skip
        for shape, n in shapes:
            for bias in (False, True):
                label = f"{'x'.join(map(str, shape))}_{n}_{'bias' if bias else 'nobias'}"
                g = rng(label)
                weight = g.standard_normal((n, shape[-1]), np.float32) / np.float32(shape[-1] ** 0.5)
                inputs = (g.standard_normal(shape, np.float32), weight)
                yield Sample(label, cls(), (*inputs, g.standard_normal(n, np.float32)) if bias else inputs)
        g = rng("linear_float64")
        yield Sample("float64", cls(), (g.standard_normal((3, 5)), g.standard_normal((4, 5))))


class Matmul(Product, name="matmul"):
    """(a[..., M, K], b[..., K, N]) -> [..., M, N], batches broadcast; with `transpose_b` b[..., N, K]."""

    transpose_b: bool = False
    precision: str = ""

    def infer(self, *types: TensorType) -> TensorType:
        if len(types) != 2:
            raise OpError(f"matmul: 2 inputs expected, got {len(types)}")
        a, b = types
        if a.rank < 2 or b.rank < 2:
            raise OpError(f"matmul: rank 2 or more expected, got {a} and {b}")
        n, k = b.shape[-2:] if self.transpose_b else b.shape[-2:][::-1]
        if a.shape[-1] != k:
            raise OpError(f"matmul: {a} and {b} do not agree on the contracted size")
        batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return TensorType(same_dtype(self, types), (*batch, a.shape[-2], n))

    def reference(self, *inputs: Array) -> Array:
        a, b = map(widen, inputs)
        return narrow(np.asarray(np.matmul(a, b.swapaxes(-1, -2) if self.transpose_b else b)), inputs[0])

    def host(self, *names: str) -> str:
        return f"np.matmul({names[0]}, {names[1]}{'.swapaxes(-1, -2)' if self.transpose_b else ''})"

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        # (batch of a, batch of b, M, K, N)
        cases: list[tuple[tuple[int, ...], tuple[int, ...], int, int, int]] = [
            ((), (), 3, 5, 7), ((), (), 1, 1, 1), ((2,), (2,), 5, 17, 3), ((2, 3), (2, 3), 7, 9, 5),
            ((2, 1), (1, 3), 4, 5, 6), ((4,), (), 9, 16, 17), ((), (3,), 1, 8, 9), ((), (), 0, 3, 4),
            ((), (), 2, 0, 3), ((), (), 67, 64, 130), ((1, 4), (1, 4), 50, 32, 50),
        ]  # fmt: skip
        for batch_a, batch_b, m, k, n in cases:
            for transpose_b in (False, True):
                sizes = [*batch_a, "by", *batch_b, "of", m, k, n]
                label = f"{'_'.join(map(str, sizes))}{'_transposed' if transpose_b else ''}"
                g = rng(label)
                a = g.standard_normal((*batch_a, m, k), np.float32) / np.float32(max(k, 1) ** 0.5)
                b = g.standard_normal((*batch_b, *((n, k) if transpose_b else (k, n))), np.float32)
                yield Sample(label, cls(transpose_b), (a, b))
        g = rng("matmul_int64")
        ints = (g.integers(-9, 9, (3, 4)), g.integers(-9, 9, (4, 5)))
        yield Sample("int64", cls(), ints, exact=True)


# --- importing from ATen ---------------------------------------------------------------------------------


@aten("linear.default")
def _linear(context: ImportContext, x: Value, weight: Value, bias: Value | None = None) -> Any:
    if weight.type.rank == 1:
        n_by_k = compose.reshape(context, weight, (1, *weight.shape))
        y = compose.reshape(context, context.emit(Linear(), x, n_by_k), x.shape[:-1])
        return y if bias is None else compose.add(context, y, bias)
    return context.emit(Linear(), x, weight) if bias is None else context.emit(Linear(), x, weight, bias)


@aten("matmul.default", "mm.default", "bmm.default", "mv.default", "dot.default", "vdot.default")
def matmul(context: ImportContext, a: Value, b: Value) -> Value:
    """torch.matmul: a vector counts as a row on the left, as a column on the right."""
    if a.type.rank >= 2 and b.type.rank >= 2:
        return _emit(context, a, b)
    row, column = a.type.rank == 1, b.type.rank == 1
    rows = compose.reshape(context, a, (1, *a.shape)) if row else a
    columns = compose.reshape(context, b, (*b.shape, 1)) if column else b
    y = _emit(context, rows, columns)
    kept: list[Dim] = list(y.shape)
    if column:
        del kept[-1]
    if row:
        del kept[-1 if column else -2]
    return compose.reshape(context, y, kept)


def _emit(context: ImportContext, a: Value, b: Value, transpose_b: bool = False) -> Value:
    result: Value = context.emit(Matmul(transpose_b), a, b)
    return result


@aten("inner.default")
def _inner(context: ImportContext, a: Value, b: Value) -> Any:
    """Contracts the last axes: [..., K], [***, K] -> [..., ***]."""
    if a.type.rank == 0 or b.type.rank == 0:
        return compose.mul(context, a, b)
    if b.type.rank <= 2:
        return matmul(context, a, b if b.type.rank == 1 else compose.swap_last(context, b))
    flat = compose.reshape(context, b, (compose.product(b.shape[:-1]), b.shape[-1]))
    rows = compose.reshape(context, a, (compose.product(a.shape[:-1]), a.shape[-1]))
    return compose.reshape(context, _emit(context, rows, flat, True), (*a.shape[:-1], *b.shape[:-1]))


@aten("outer.default", "ger.default")
def outer(context: ImportContext, a: Value, b: Value) -> Value:
    """[M], [N] -> [M, N]."""
    column = compose.reshape(context, a, (*a.shape, 1))
    dtype = context.out_types()[0].dtype
    return compose.mul(context, context.cast(column, dtype), context.cast(b, dtype))


def _blend(context: ImportContext, start: Value, product: Value, beta: float, alpha: float) -> Value:
    """beta * start + alpha * product; `start` is not read where beta is 0, so its NaNs do not spread."""
    scaled = compose.scale(context, product, alpha)
    if beta == 0:
        return compose.broadcast_to(context, scaled, context.out_types()[0].shape)
    return compose.add(context, compose.scale(context, start, beta), scaled)


@aten("addmm.default")
def _addmm(context: ImportContext, start: Value, a: Value, b: Value, *, beta: float = 1, alpha: float = 1) -> Any:
    if start.shape == b.shape[1:] and beta == 1 and alpha == 1:
        return context.emit(Linear(), a, compose.swap_last(context, b), start)
    return _blend(context, start, matmul(context, a, b), beta, alpha)


@aten("baddbmm.default", "addmv.default")
def _add_product(context: ImportContext, start: Value, a: Value, b: Value, *, beta: float = 1, alpha: float = 1) -> Any:
    return _blend(context, start, matmul(context, a, b), beta, alpha)


@aten("addbmm.default")
def _addbmm(context: ImportContext, start: Value, a: Value, b: Value, *, beta: float = 1, alpha: float = 1) -> Any:
    """The batch is summed: [B, M, K], [B, K, N] -> [M, N]."""
    product = compose.reduce_sum(context, matmul(context, a, b), (0,))
    return _blend(context, start, product, beta, alpha)


@aten("addr.default")
def _addr(context: ImportContext, start: Value, a: Value, b: Value, *, beta: float = 1, alpha: float = 1) -> Any:
    return _blend(context, start, outer(context, a, b), beta, alpha)


@aten("chain_matmul.default", "linalg_multi_dot.default")
def _chain(context: ImportContext, matrices: list[Value]) -> Any:
    """Left to right; the association PyTorch picks changes cost and rounding only."""
    result = matrices[0]
    for matrix in matrices[1:]:
        result = matmul(context, result, matrix)
    return result
