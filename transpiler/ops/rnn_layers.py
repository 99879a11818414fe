"""ATen's recurrent layers and cells: input projections by `linear`, then a scan per direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transpiler.ir import Value
from transpiler.ops import compose
from transpiler.ops.activation import Relu, Sigmoid, Tanh
from transpiler.ops.base import ImportContext, aten
from transpiler.ops.linalg import Linear, Matmul
from transpiler.ops.rnn import GruScan, LstmScan, RnnScan

# (context, projected gates, the initial states, the direction's parameters, reverse) -> (y, *last states)
Scan = Callable[[ImportContext, Value, Sequence[Value], Sequence[Value], bool], Sequence[Value]]


def _layers(
    scan: Scan, project: Callable[[ImportContext, Value, Sequence[Value]], Value], context: ImportContext,
    x: Value, states: Sequence[Value], params: Sequence[Value], has_biases: bool, layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Value, ...]:  # fmt: skip
    """Stacked layers. `params` holds (weight_ih, weight_hh[, bias_ih, bias_hh]) per layer and direction."""
    if train and dropout:
        raise context.unsupported("dropout between layers draws random numbers; call model.eval() first")
    directions = 2 if bidirectional else 1
    per_direction = len(params) // (layers * directions)
    y = compose.transpose(context, x, (1, 0, 2)) if batch_first else x
    last: list[Sequence[Value]] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            own = params[index * per_direction : (index + 1) * per_direction]
            weights, projection = own[: 4 if has_biases else 2], own[4 if has_biases else 2 :]
            initial = [compose.select(context, state, 0, index) for state in states]
            gates = project(context, y, weights)
            if projection:
                out, *final = _projected_lstm(context, gates, initial, weights[1], projection[0], direction == 1)
            else:
                out, *final = scan(context, gates, initial, weights, direction == 1)
            outputs.append(out)
            last.append(final)
        y = compose.concat(context, outputs, 2)
    y = compose.transpose(context, y, (1, 0, 2)) if batch_first else y
    return (y, *(compose.stack(context, [item[n] for item in last], 0) for n in range(len(states))))


def _project_all(context: ImportContext, x: Value, params: Sequence[Value]) -> Value:
    """x @ weight_ih.T + (bias_ih + bias_hh)."""
    biases = [compose.add(context, params[2], params[3])] if len(params) == 4 else []
    result: Value = context.emit(Linear(), x, params[0], *biases)
    return result


def _project_inputs(context: ImportContext, x: Value, params: Sequence[Value]) -> Value:
    """x @ weight_ih.T + bias_ih."""
    result: Value = context.emit(Linear(), x, params[0], *params[2:3])
    return result


def _scan_lstm(
    context: ImportContext, gates: Value, states: Sequence[Value], params: Sequence[Value], reverse: bool
) -> Sequence[Value]:
    result: Sequence[Value] = context.emit(LstmScan(reverse), gates, *states, params[1])
    return result


def _projected_lstm(
    context: ImportContext, gates: Value, states: Sequence[Value], weight: Value, projection: Value, reverse: bool
) -> Sequence[Value]:
    """An LSTM whose output is `projection` @ h (proj_size; Sak et al., arXiv:1402.1128).

    The recurrence runs over the h before the projection, with `weight` @ `projection`; what the first state, which is
    given projected, adds to the gates is added before.
    """
    h, c = states
    steps = gates.shape[0]
    first = compose.reshape(context, context.emit(Linear(), h, weight), (1, *gates.shape[1:]))
    if steps == 1:
        gates = compose.add(context, gates, first)
    elif reverse:
        last = compose.add(context, compose.slice_axis(context, gates, 0, steps - 1, steps), first)
        gates = compose.concat(context, [compose.slice_axis(context, gates, 0, 0, steps - 1), last], 0)
    else:
        start = compose.add(context, compose.slice_axis(context, gates, 0, 0, 1), first)
        gates = compose.concat(context, [start, compose.slice_axis(context, gates, 0, 1, steps)], 0)
    zero = compose.full(context, 0.0, c.shape, c.dtype)
    y, h, c = context.emit(LstmScan(reverse), gates, zero, c, context.emit(Matmul(), weight, projection))
    return context.emit(Linear(), y, projection), context.emit(Linear(), h, projection), c


def _scan_gru(
    context: ImportContext, gates: Value, states: Sequence[Value], params: Sequence[Value], reverse: bool
) -> Sequence[Value]:
    bias = params[3] if len(params) == 4 else compose.full(context, 0.0, params[1].shape[:1], gates.dtype)
    result: Sequence[Value] = context.emit(GruScan(reverse), gates, *states, params[1], bias)
    return result


def _scan_rnn(nonlinearity: str) -> Scan:
    def scan(
        context: ImportContext, gates: Value, states: Sequence[Value], params: Sequence[Value], reverse: bool
    ) -> Sequence[Value]:
        result: Sequence[Value] = context.emit(RnnScan(reverse, nonlinearity), gates, *states, params[1])
        return result

    return scan


@aten("lstm.input")
def _lstm(context: ImportContext, x: Value, hx: Sequence[Value], params: Sequence[Value], *options: Any) -> Any:
    return _layers(_scan_lstm, _project_all, context, x, hx, params, *options)


@aten("gru.input")
def _gru(context: ImportContext, x: Value, hx: Value, params: Sequence[Value], *options: Any) -> Any:
    return _layers(_scan_gru, _project_inputs, context, x, [hx], params, *options)


@aten("rnn_tanh.input")
def _rnn_tanh(context: ImportContext, x: Value, hx: Value, params: Sequence[Value], *options: Any) -> Any:
    return _layers(_scan_rnn("tanh"), _project_all, context, x, [hx], params, *options)


@aten("rnn_relu.input")
def _rnn_relu(context: ImportContext, x: Value, hx: Value, params: Sequence[Value], *options: Any) -> Any:
    return _layers(_scan_rnn("relu"), _project_all, context, x, [hx], params, *options)


@aten("lstm.data", "gru.data", "rnn_tanh.data", "rnn_relu.data")
def _packed(context: ImportContext, *_: Any, **__: Any) -> Any:
    raise context.unsupported("packed sequences are not implemented; pass a padded batch")


# --- cells --------------------------------------------------------------------------------------------------


def _linear(context: ImportContext, x: Value, weight: Value, bias: Value | None) -> Value:
    result: Value = context.emit(Linear(), x, weight, *([] if bias is None else [bias]))
    return result


def _chunks(context: ImportContext, x: Value, count: int) -> list[Value]:
    size = x.shape[-1] // count
    return [compose.slice_axis(context, x, -1, size * i, size * (i + 1)) for i in range(count)]


@aten("lstm_cell.default")
def _lstm_cell(
    context: ImportContext, x: Value, hx: Sequence[Value], w_ih: Value, w_hh: Value,
    b_ih: Value | None = None, b_hh: Value | None = None,
) -> Any:  # fmt: skip
    h, c = hx
    gates = compose.add(context, _linear(context, x, w_ih, b_ih), _linear(context, h, w_hh, b_hh))
    i, f, g, o = _chunks(context, gates, 4)
    kept = compose.mul(context, context.emit(Sigmoid(), f), c)
    added = compose.mul(context, context.emit(Sigmoid(), i), context.emit(Tanh(), g))
    c = compose.add(context, kept, added)
    return compose.mul(context, context.emit(Sigmoid(), o), context.emit(Tanh(), c)), c


@aten("gru_cell.default")
def _gru_cell(
    context: ImportContext, x: Value, hx: Value, w_ih: Value, w_hh: Value, b_ih: Value | None = None,
    b_hh: Value | None = None,
) -> Any:  # fmt: skip
    xr, xz, xn = _chunks(context, _linear(context, x, w_ih, b_ih), 3)
    hr, hz, hn = _chunks(context, _linear(context, hx, w_hh, b_hh), 3)
    r = context.emit(Sigmoid(), compose.add(context, xr, hr))
    z = context.emit(Sigmoid(), compose.add(context, xz, hz))
    n = context.emit(Tanh(), compose.add(context, xn, compose.mul(context, r, hn)))
    return compose.add(context, n, compose.mul(context, z, compose.sub(context, hx, n)))


@aten("rnn_tanh_cell.default")
def _rnn_tanh_cell(
    context: ImportContext, x: Value, hx: Value, w_ih: Value, w_hh: Value, b_ih: Value | None = None,
    b_hh: Value | None = None,
) -> Any:  # fmt: skip
    total = compose.add(context, _linear(context, x, w_ih, b_ih), _linear(context, hx, w_hh, b_hh))
    return context.emit(Tanh(), total)


@aten("rnn_relu_cell.default")
def _rnn_relu_cell(
    context: ImportContext, x: Value, hx: Value, w_ih: Value, w_hh: Value, b_ih: Value | None = None,
    b_hh: Value | None = None,
) -> Any:  # fmt: skip
    total = compose.add(context, _linear(context, x, w_ih, b_ih), _linear(context, hx, w_hh, b_hh))
    return context.emit(Relu(), total)
