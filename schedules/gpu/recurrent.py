"""What recurrent scans are on every GPU: where weights lie, and the functions of the gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from transpiler.ops.packed import BLOCK

from ..scalar import Tir
from ..sizes import ceil_div
from ..vectors import held

Expr = Any
GATES = {"lstm_scan": 4, "gru_scan": 3, "rnn_scan": 1}


def weights_of(op: Any, units: int, gate: int, unit: Expr) -> tuple[Expr, int]:
    """Where the weights of a unit's gate begin, and how far they are apart."""
    if not op.packed:
        return (gate * units + unit) * units, 1
    panel = gate * ceil_div(units, BLOCK) + tirx.floordiv(unit, BLOCK)
    return panel * (units * BLOCK) + tirx.floormod(unit, BLOCK), BLOCK


def advanced(
    op: Any, dtype: str, x: Sequence[Expr], recurrent: Sequence[Expr], bias: Callable[[int], Expr], h: Expr, c: Expr
) -> tuple[Expr, Expr]:
    """The state of a unit, and its cell state, after a step: `x` and `recurrent` are its gates' sums over the inputs
    and over the state `h`; `bias` of a gate's recurrent part is the GRU's, `c` is the LSTM's."""
    s = Tir()

    def sigmoid(value: Expr) -> Expr:
        return held(s.call("sigmoid", held(value)))

    match op.name:
        case "lstm_scan":
            i, f, g, o = (held(a + b) for a, b in zip(x, recurrent, strict=True))
            cell = held(sigmoid(f) * c + sigmoid(i) * held(s.call("tanh", g)))
            return held(sigmoid(o) * s.call("tanh", cell)), cell
        case "gru_scan":
            hr, hz, hn = (held(a + bias(gate)) for gate, a in enumerate(recurrent))
            reset, update = sigmoid(x[0] + hr), sigmoid(x[1] + hz)
            new = held(s.call("tanh", held(x[2] + reset * hn)))
            return held((tirx.const(1.0, dtype) - update) * new + update * h), c
        case _:
            total = held(x[0] + recurrent[0])
            if op.nonlinearity == "tanh":
                return held(s.call("tanh", total)), c
            zero = tirx.const(0.0, dtype)
            return held(s.select(total < zero, zero, total)), c
