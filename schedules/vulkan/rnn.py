"""Recurrent scans: a workgroup for each row of the batch walks over the steps.

The state h lies in shared memory, where every thread reads all of it; a thread has every `threads`-th unit, their cell
states are its own. Two barriers per step: one before the state is replaced, one after. Limited by reading the recurrent
weight once per row and step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ops.dtypes import numpy_dtype
from transpiler.target import Target

from ..fuse import lowered
from ..gpu.recurrent import GATES, advanced, weights_of
from ..gpu.workgroup import barrier, private, shared, workgroups
from ..halves import computed, operand
from ..sizes import ceil_div, count, extent, is_empty
from ..tir import Buffer, KernelBuilder
from ..vectors import held

Expr = Any
THREADS = 64


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or len(computed(group)) != 1 or node.op.name not in GATES:
        return None
    dtype, shape = node.outputs[0].dtype, node.outputs[0].type.shape
    units = shape[-1]
    if dtype not in ("float32", "float64") or not isinstance(units, int):
        return None
    if units * numpy_dtype(dtype).itemsize > target.gpu.shared_bytes:
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [value.type for value in node.outputs])
    scan = _Scan(node.op, shape, units, dtype)
    with builder:
        if not is_empty(shape[1:]):
            scan.emit(builder, [operand(group, builder, value) for value in node.inputs])
    return lowered(group, builder, flops=2 * count(shape) * GATES[node.op.name] * units)


class _Scan:
    """One scan: T steps, N rows, H units."""

    def __init__(self, op: Any, shape: Sequence[Dim], units: int, dtype: str) -> None:
        self.op, self.dtype, self.units = op, dtype, units
        self.gates = GATES[op.name]
        self.steps, self.rows = extent(shape[0]), extent(shape[1])
        self.threads = min(THREADS, ceil_div(units, 8) * 8)
        self.turns = ceil_div(units, self.threads)  # units of one thread

    def emit(self, builder: KernelBuilder, inputs: list[Buffer]) -> None:
        self.x, h0, *_ = inputs
        self.weight = inputs[3 if self.op.name == "lstm_scan" else 2]
        self.bias = inputs[3] if self.op.name == "gru_scan" else None
        self.y, *finals = builder.outputs
        with workgroups(self.rows, self.threads) as (row, thread):
            self.row, self.thread = row, thread
            self.h = shared(self.units, self.dtype)
            self.own_h, self.c = private(self.turns, self.dtype), private(self.turns, self.dtype)
            with T.serial(0, self.turns) as turn:
                place = held(row * self.units + self.unit(turn))
                self.own_h.store(turn, h0[place])
                if self.op.name == "lstm_scan":
                    self.c.store(turn, inputs[2][place])
            self.publish()
            with T.serial(0, self.steps) as turn_of_time:
                step = held(self.steps - 1 - turn_of_time if self.op.reverse else turn_of_time)
                with T.serial(0, self.turns) as turn:
                    self.advance(step, turn)
                barrier()
                self.publish()
            with T.serial(0, self.turns) as turn:
                place = held(row * self.units + self.unit(turn))
                finals[0].store(place, self.own_h[turn])
                if self.op.name == "lstm_scan":
                    finals[1].store(place, self.c[turn])

    def unit(self, turn: Expr) -> Expr:
        """The unit of this thread's turn. Threads without one compute the last unit too, and write the same."""
        unit = turn * self.threads + self.thread
        return unit if self.units % self.threads == 0 else T.min(unit, self.units - 1)

    def publish(self) -> None:
        """Every thread's units of the state become the state."""
        with T.serial(0, self.turns) as turn:
            self.h.store(self.unit(turn), self.own_h[turn])
        barrier()

    def advance(self, step: Expr, turn: Expr) -> None:
        """One unit of one step."""
        unit = held(self.unit(turn))
        sums = [private(1, self.dtype) for _ in range(self.gates)]
        for total in sums:
            total.store(0, tirx.const(0.0, self.dtype))
        starts = []
        for gate in range(self.gates):
            start, pitch = weights_of(self.op, self.units, gate, unit)
            starts.append(held(start))
        with T.serial(0, self.units) as k:
            state = held(self.h[k])
            for total, start in zip(sums, starts, strict=True):
                total.store(0, total[0] + state * self.weight[start + k * pitch])
        base = held((step * self.rows + self.row) * (self.gates * self.units) + unit)
        x = [held(self.x[base + gate * self.units]) for gate in range(self.gates)]
        bias = self.bias
        result, cell = advanced(
            self.op, self.dtype, x, [held(total[0]) for total in sums],
            lambda gate: 0 if bias is None else bias[gate * self.units + unit], self.own_h[turn], self.c[turn],
        )  # fmt: skip
        if self.op.name == "lstm_scan":
            self.c.store(turn, cell)
        self.own_h.store(turn, result)
        self.y.store((step * self.rows + self.row) * self.units + unit, result)
