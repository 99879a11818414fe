"""Recurrent scans over time: the part of an LSTM, GRU or plain RNN layer that is sequential.

The projection of the inputs is one `linear` over the whole sequence and comes in as `gates`; a scan adds the
recurrent projection step by step. `reverse` runs from the last step to the first; outputs stay at their step.
T steps, N rows of the batch, H units.

With `packed`, weight_hh comes as panels of 16 columns, [gates * ceil(H/16), H, 16]: that of every gate padded with
zeros and packed as `pack_matmul` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from transpiler.ir import Array, TensorType
from transpiler.ops.base import Opaque, OpError, Sample, rng
from transpiler.ops.linalg import same_dtype
from transpiler.ops.packed import BLOCK, PackMatmul, blocks
from transpiler.ops.wide import narrow, widen

_SIZES = [(1, 1, 1), (3, 2, 5), (7, 1, 17), (5, 3, 16), (9, 2, 64), (1, 17, 8)]
_PACKED_SIZES = [(7, 1, 17), (5, 3, 16)]


class LstmScan(Opaque, name="lstm_scan"):
    """(gates[T, N, 4H], h0[N, H], c0[N, H], weight_hh[4H, H]) -> (y[T, N, H], h[N, H], c[N, H]).

    i, f, g, o = split(gates[t] + h @ weight_hh.T); c = sigmoid(f) * c + sigmoid(i) * tanh(g);
    h = sigmoid(o) * tanh(c) (Hochreiter, Schmidhuber, 1997, with forget gates; PyTorch's order of gates).
    """

    reverse: bool = False
    packed: bool = False

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        y, h = _infer(self, types, gates=4, states=2)
        return y, h, h

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        gates, h, c, weight = map(widen, inputs)
        weight = _unpacked(self, weight, 4)

        def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            h, c = state
            i, f, g, o = np.split(x + h @ weight.T, 4, axis=-1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            return _sigmoid(o) * np.tanh(c), c

        return _scan(step, gates, (h, c), self.reverse, inputs[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for label, reverse, (t, n, h) in _variants():
            yield Sample(label, cls(reverse), _draw(label, (t, n, 4 * h), (n, h), (n, h), (4 * h, h)))
        for t, n, h in _PACKED_SIZES:
            *inputs, weight = _draw("packed", (t, n, 4 * h), (n, h), (n, h), (4 * h, h))
            yield Sample(f"packed_{t}x{n}x{h}", cls(packed=True), (*inputs, _packed(weight, 4)))


class GruScan(Opaque, name="gru_scan"):
    """(gates[T, N, 3H], h0[N, H], weight_hh[3H, H], bias_hh[3H]) -> (y[T, N, H], h[N, H]).

    r = sigmoid(xr + hr); z = sigmoid(xz + hz); n = tanh(xn + r * hn); h = (1 - z) * n + z * h, where
    hr, hz, hn = split(h @ weight_hh.T + bias_hh) (Cho et al., arXiv:1406.1078, in PyTorch's variant).
    """

    reverse: bool = False
    packed: bool = False

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        if len(types) != 4 or types[3].shape != types[0].shape[2:]:
            raise OpError("gru_scan: gates, h0, weight_hh and bias_hh expected")
        return _infer(self, types[:3], gates=3, states=1)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        gates, h, weight, bias = map(widen, inputs)
        weight = _unpacked(self, weight, 3)

        def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            (h,) = state
            xr, xz, xn = np.split(x, 3, axis=-1)
            hr, hz, hn = np.split(h @ weight.T + bias, 3, axis=-1)
            z = _sigmoid(xz + hz)
            return ((1 - z) * np.tanh(xn + _sigmoid(xr + hr) * hn) + z * h,)

        return _scan(step, gates, (h,), self.reverse, inputs[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for label, reverse, (t, n, h) in _variants():
            yield Sample(label, cls(reverse), _draw(label, (t, n, 3 * h), (n, h), (3 * h, h), (3 * h,)))
        for t, n, h in _PACKED_SIZES:
            *inputs, weight, bias = _draw("packed", (t, n, 3 * h), (n, h), (3 * h, h), (3 * h,))
            yield Sample(f"packed_{t}x{n}x{h}", cls(packed=True), (*inputs, _packed(weight, 3), bias))


class RnnScan(Opaque, name="rnn_scan"):
    """(gates[T, N, H], h0[N, H], weight_hh[H, H]) -> (y[T, N, H], h[N, H]).

    h = f(gates[t] + h @ weight_hh.T), f the nonlinearity.
    """

    reverse: bool = False
    nonlinearity: str = "tanh"
    packed: bool = False

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        if self.nonlinearity not in ("tanh", "relu"):
            raise OpError(f"rnn_scan: nonlinearity is 'tanh' or 'relu', got {self.nonlinearity!r}")
        return _infer(self, types, gates=1, states=1)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        gates, h, weight = map(widen, inputs)
        weight = _unpacked(self, weight, 1)

        def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            total = x + state[0] @ weight.T
            return (np.tanh(total) if self.nonlinearity == "tanh" else np.where(total < 0, 0, total),)

        return _scan(step, gates, (h,), self.reverse, inputs[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for nonlinearity in ("tanh", "relu"):
            for label, reverse, (t, n, h) in _variants():
                inputs = _draw(label, (t, n, h), (n, h), (h, h))
                yield Sample(f"{label}_{nonlinearity}", cls(reverse, nonlinearity), inputs)
        for t, n, h in _PACKED_SIZES:
            x, state, weight = _draw("packed", (t, n, h), (n, h), (h, h))
            yield Sample(f"packed_{t}x{n}x{h}", cls(packed=True), (x, state, _packed(weight, 1)))


def _infer(op: Opaque, types: tuple[TensorType, ...], gates: int, states: int) -> tuple[TensorType, TensorType]:
    """The types of y and of the last state."""
    if len(types) != states + 2:
        raise OpError(f"{op.name}: {states + 2} inputs expected, got {len(types)}")
    x, *initial, weight = types
    if getattr(op, "packed", False):
        weight = _unpacked_type(op, weight, gates)
    if x.rank != 3 or weight.rank != 2:
        raise OpError(f"{op.name}: gates[T, N, {gates}H] and weight_hh[{gates}H, H] expected, got {x} and {weight}")
    steps, rows, width = x.shape
    units = weight.shape[1]
    if width != weight.shape[0] or width != units * gates or any(t.shape != (rows, units) for t in initial):
        raise OpError(f"{op.name}: sizes do not fit: {', '.join(map(str, types))}")
    dtype = same_dtype(op, types)
    return TensorType(dtype, (steps, rows, units)), TensorType(dtype, (rows, units))


def _unpacked_type(op: Opaque, packed: TensorType, gates: int) -> TensorType:
    """weight_hh[gates * H, H] of its packed form."""
    if packed.rank == 3 and packed.dtype == "float32":
        panels, units, lanes = packed.static_shape()
        if lanes == BLOCK and panels == gates * blocks(units):
            return packed.with_shape((gates * units, units))
    raise OpError(f"{op.name}: packed float32 weight_hh[{gates} * ceil(H/{BLOCK}), H, {BLOCK}] expected, got {packed}")


def _unpacked(op: Any, weight: Array, gates: int) -> Array:
    """weight_hh[gates * H, H]."""
    if not op.packed:
        return weight
    units = weight.shape[1]
    columns = weight.reshape(gates, -1, units, BLOCK).transpose(0, 1, 3, 2).reshape(gates, -1, units)
    return np.ascontiguousarray(columns[:, :units]).reshape(gates * units, units)


def _packed(weight: Array, gates: int) -> Array:
    """The packed form of weight_hh[gates * H, H]."""
    return np.concatenate([PackMatmul().reference(part) for part in np.split(weight, gates)])


def _scan(
    step: Callable[[Array, tuple[Array, ...]], tuple[Array, ...]],
    gates: Array, state: tuple[Array, ...], reverse: bool, like: Array,
) -> tuple[Array, ...]:  # fmt: skip
    """(y, *last states); `step` maps one step's gates and the states (h first) to the new states."""
    y = np.empty((*gates.shape[:2], state[0].shape[1]), gates.dtype)
    for t in reversed(range(len(gates))) if reverse else range(len(gates)):
        state = step(gates[t], state)
        y[t] = state[0]
    return tuple(narrow(item, like) for item in (y, *state))


def _sigmoid(x: Array) -> Array:
    return np.asarray(x.dtype.type(1) / (x.dtype.type(1) + np.exp(-x)))


def _variants() -> Iterator[tuple[str, bool, tuple[int, int, int]]]:
    for sizes in _SIZES:
        for reverse in (False, True):
            yield f"{'x'.join(map(str, sizes))}{'_reverse' if reverse else ''}", reverse, sizes


def _draw(label: str, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
    """Of order 1; weights (the input of shape [gates * H, H]) scaled by 1/sqrt(H)."""
    g = rng("rnn" + label)
    units = shapes[1][-1]
    scales: list[Any] = [1 / units**0.5 if shape[-1] == units and i >= 2 else 1 for i, shape in enumerate(shapes)]
    return tuple((g.standard_normal(shape) * k).astype(np.float32) for shape, k in zip(shapes, scales, strict=True))
