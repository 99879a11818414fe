"""Recurrent scans (LSTM, GRU, tanh/ReLU RNN): the sequential part of a recurrent layer.

The time loop is outside and serial. Inside a step, a panel is one vector of hidden units; for it the products
of h[t-1] with all gates' weight columns are accumulated in registers, `rows` batch rows at a time (a small
GEMM without packing of h), and the gate functions are computed on the spot, so that no gate is ever written
to memory. With few rows, even and odd k go to different accumulators, which hides the latency of the
multiply-add.

Weights come as [gates][H/16][H][16] (`packed`; otherwise they are packed once per call), are read once per step, and
should stay in L2 between the steps: 4 * gates * H^2 bytes. L2 (or L3) bandwidth limits batch 1; multiply-adds
limit larger batches. h is kept twice, because all panels read the old one while the new one is written.
Panels are split over the threads only if a step has at least STEP_FLOPS operations, since every step starts
and ends the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim, dim_max
from transpiler.group import Group, Lowered
from transpiler.ir import fixed_size
from transpiler.target import Target

from ..fuse import lowered
from ..halves import computed, operand
from ..sizes import extent, is_fixed
from ..tir import Buffer, KernelBuilder, own_turns
from ..vectors import Registers, Vectors, accumulators, held
from .rows import lane_loop

Expr = Any

EPILOGUE = False
PROLOGUE = False
GATES = {"lstm_scan": 4, "gru_scan": 3, "rnn_scan": 1}
STEP_FLOPS = 1 << 17
# Multiply-adds in flight that hide the latency of one.
IN_FLIGHT = 8


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or len(computed(group)) != 1 or node.op.name not in GATES:
        return None
    if node.inputs[0].dtype not in ("float32", "float64"):
        return None
    if not is_fixed(node.outputs[0].shape[2]):
        return None
    scan = Scan(node.op, node.outputs[0].shape, node.inputs[0].dtype, target)
    builder = KernelBuilder(
        name,
        [value.type for value in group.inputs],
        [value.type for value in group.outputs],
        workspace=scan.workspace,
        workspace_dtype=scan.dtype,
    )
    with builder:
        # The same tensor may stand for several inputs.
        scan.emit(builder, [operand(group, builder, value) for value in node.inputs])
    return lowered(group, builder, flops=scan.flops, reread=scan.reread, workspace=scan.workspace * scan.width)


class Scan:
    """One scan: T steps, N rows, H units."""

    def __init__(self, op: Any, shape: Sequence[Dim], dtype: str, target: Target) -> None:
        self.op, self.dtype = op, dtype
        self.gates = GATES[op.name]
        steps, rows, units = shape
        self.steps, self.rows, self.units = extent(steps), extent(rows), fixed_size(units)
        self.v = Vectors(dtype)
        self.panels = self.v.blocks(self.units)
        self.padded = self.panels * self.v.lanes
        self.step_flops = 2 * rows * self.gates * self.units**2
        self.flops = steps * self.step_flops
        self.width = 8 if dtype == "float64" else 4
        # Every step reads all weights, for a tile of rows at a time; what the first one reads is an input's.
        self.reread = (dim_max(steps, 1) - 1) * self.gates * self.units**2 * self.width
        self.packed: bool = getattr(op, "packed", False)
        limit = accumulators(target, self.v)
        most = max(1, limit // self.gates)
        # Of a symbolic number of rows, a power of two: what is left over is made of smaller ones.
        self.tile = max(1, min(self.rows, most)) if is_fixed(self.rows) else 1 << (min(most, 8).bit_length() - 1)
        self.split = 1
        while self.gates * self.tile * self.split < IN_FLIGHT and self.gates * self.tile * self.split * 2 <= limit:
            self.split *= 2
        self._weight_size = 0 if self.packed else self.gates * self.padded * self.units
        self._state_dim = rows * self.padded
        self._state_size = extent(self._state_dim)
        self.workspace = 0 if self._state_dim == 0 else self._weight_size + 3 * self._state_dim + 48

    def emit(self, builder: KernelBuilder, inputs: list[Buffer]) -> None:
        if self.workspace == 0:
            return
        self.begin(builder, inputs)
        with T.serial(0, self.steps) as count:
            self.step(count)
        self.end(builder)

    def begin(self, builder: KernelBuilder, inputs: list[Buffer]) -> None:
        """What is done before the first step."""
        gates, h0, *_ = inputs
        self.x, self.y = gates, builder.outputs[0]
        self.bias = inputs[3] if self.op.name == "gru_scan" else None
        weight = inputs[{"lstm_scan": 3, "gru_scan": 2, "rnn_scan": 2}[self.op.name]]
        self.h = builder.scratch(2 * self._state_dim)
        self.c = builder.scratch(self._state_dim)
        self.weight = weight if self.packed else builder.scratch(self._weight_size)
        if not self.packed:
            self._pack(weight)
        self._copy(h0, 0, self.units, self.h, 0, self.padded)
        if self.op.name == "lstm_scan":
            self._copy(inputs[2], 0, self.units, self.c, 0, self.padded)

    def step(self, count: Expr) -> None:
        """The step that is computed after `count` others."""
        v = self.v
        step = self.steps - 1 - count if self.op.reverse else count
        old = held(tirx.floormod(count, 2) * self._state_size)
        full = self.units // v.lanes
        if full:
            # A thread goes back and forth over its panels, so that a step begins with what L2 still holds.
            with (
                own_turns(full, parallel=full > 1 and self.is_split()) as (first, number),
                T.serial(0, number) as turn,
            ):
                place = tirx.Select(tirx.EQ(old, 0), turn, number - 1 - turn)
                self._panel(step, old, held(first + place), None)
        if self.units % v.lanes:
            self._panel(step, old, full, self.units % v.lanes)

    def end(self, builder: KernelBuilder) -> None:
        """The last states."""
        self._copy(self.h, self.steps % 2 * self._state_size, self.padded, builder.outputs[1], 0, self.units)
        if self.op.name == "lstm_scan":
            self._copy(self.c, 0, self.padded, builder.outputs[2], 0, self.units)

    def is_split(self) -> bool:
        return not isinstance(self.step_flops, int) or self.step_flops >= STEP_FLOPS

    def _copy(self, source: Buffer, start: Expr, pitch: int, target: Buffer, offset: Expr, target_pitch: int) -> None:
        """A state of [rows][units] between buffers of different row pitch."""
        with T.serial(0, self.rows) as row:
            lane_loop(
                self.units,
                lambda at: target.store(offset + row * target_pitch + at, source[start + row * pitch + at]),
            )

    def _pack(self, weight: Buffer) -> None:
        """weight_hh[gates * H, H] -> [gates][panels][H][lanes], zero beyond H."""
        v = self.v

        def panel(gate: Expr, number: Expr, valid: int) -> None:
            row = gate * self.units + number * v.lanes
            base = (gate * self.panels + number) * (self.units * v.lanes)
            v.transpose(
                lambda lane, column: (weight, (row + lane) * self.units + column),
                lambda column: (self.weight, base + column * v.lanes),
                rows=valid,
                columns=self.units,
            )

        full = self.units // v.lanes
        with T.serial(0, self.gates) as gate:
            if full:
                with T.serial(0, full) as number:
                    panel(gate, number, v.lanes)
            if self.units % v.lanes:
                panel(gate, full, self.units % v.lanes)

    def _panel(self, step: Expr, old: Expr, panel: Expr, valid: int | None) -> None:
        """One vector of units for all rows; `valid` units of it exist."""
        full = self.rows // self.tile
        if not is_fixed(full):
            with T.serial(0, full) as block:
                self._tile(step, old, panel, valid, block * self.tile, self.tile)
            rows = self.tile // 2
            while rows:
                left = self.rows % (2 * rows)
                with T.If(left >= rows), T.Then():
                    self._tile(step, old, panel, valid, self.rows - left, rows)
                rows //= 2
            return
        if full > 1:
            with T.serial(0, full) as block:
                self._tile(step, old, panel, valid, block * self.tile, self.tile)
        elif full:
            self._tile(step, old, panel, valid, 0, self.tile)
        if self.rows % self.tile:
            self._tile(step, old, panel, valid, full * self.tile, self.rows % self.tile)

    def _tile(self, step: Expr, old: Expr, panel: Expr, valid: int | None, first: Expr, rows: int) -> None:
        v, gates = self.v, self.gates
        sums = Registers(v, rows * gates * self.split)
        sums.fill(0.0)
        # As panels are, so is each of them read from its end in every other step: L1 still holds that.
        forward = tirx.EQ(old, 0)

        def multiply(k: Expr, part: int) -> None:
            states = [v.splat(self.h[old + (first + row) * self.padded + k]) for row in range(rows)]
            for gate in range(gates):
                column = ((gate * self.panels + panel) * self.units + k) * v.lanes
                weight = held(v.load(self.weight, column)) if rows > 1 else v.load(self.weight, column)
                for row in range(rows):
                    register = (part * rows + row) * gates + gate
                    sums[register] = sums[register] + states[row] * weight

        groups = self.units // self.split
        start, direction = held(tirx.Select(forward, 0, groups - 1)), held(tirx.Select(forward, 1, -1))

        def add(count: Expr) -> None:
            k = start + direction * count
            for part in range(self.split):
                multiply(k * self.split + part, part)

        self.sum_up(panel, groups, add)
        for rest in range(self.units // self.split * self.split, self.units):
            multiply(rest, 0)
        for row in range(rows):
            recurrent = []
            for gate in range(gates):
                parts = [sums[(part * rows + row) * gates + gate] for part in range(self.split)]
                while len(parts) > 1:
                    parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
                recurrent.append(held(parts[0]))
            self._finish(step, old, panel, valid, first + row, recurrent)

    def sum_up(self, panel: Expr, groups: int, add: Callable[[Expr], None]) -> None:
        """The sums of a tile: `add` for each of 0..groups."""
        with T.serial(0, groups) as count:
            add(count)

    def inputs_of(self, step: Expr, row: Expr, panel: Expr, valid: int | None) -> list[Expr]:
        """What comes from the inputs, per gate: vectors of `valid` units."""
        base = (step * self.rows + row) * (self.gates * self.units) + panel * self.v.lanes
        return [self.v.load(self.x, base + gate * self.units, valid) for gate in range(self.gates)]

    def _finish(self, step: Expr, old: Expr, panel: Expr, valid: int | None, row: Expr, recurrent: list[Expr]) -> None:
        """The gate functions of one row and panel."""
        v, s = self.v, self.v.s
        unit = panel * v.lanes
        x = self.inputs_of(step, row, panel, valid)
        state = row * self.padded + unit
        match self.op.name:
            case "lstm_scan":
                i, f, g, o = (held(a + b) for a, b in zip(x, recurrent, strict=True))
                kept = held(s.call("sigmoid", f) * v.load(self.c, state))
                c = held(kept + held(s.call("sigmoid", i)) * s.call("tanh", g))
                v.store(self.c, state, c)
                h = held(s.call("sigmoid", o)) * s.call("tanh", c)
            case "gru_scan":
                assert self.bias is not None
                bias = [v.load(self.bias, gate * self.units + unit, valid) for gate in range(3)]
                hr, hz, hn = (a + b for a, b in zip(recurrent, bias, strict=True))
                reset = held(s.call("sigmoid", held(x[0] + hr)))
                update = held(s.call("sigmoid", held(x[1] + hz)))
                new = held(s.call("tanh", held(x[2] + reset * hn)))
                h = (v.const(1.0) - update) * new + update * v.load(self.h, old + state)
            case _:
                total = held(x[0] + recurrent[0])
                if self.op.nonlinearity == "tanh":
                    h = s.call("tanh", total)
                else:
                    h = s.select(total < v.const(0.0), v.const(0.0), total)
        h = held(h)
        v.store(self.h, self._state_size - old + state, h)
        v.store(self.y, (step * self.rows + row) * self.units + unit, h, valid)
