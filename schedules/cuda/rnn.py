"""Recurrent scans of float32 by the warps of a block, which keep weights near them.

A warp has the gates of 16 units and a part of the state: a lane sums, for one unit and all its gates, over half of that
part. Of its weights as many as fit lie in its registers (KEPT) for the whole scan, and as many of the others in shared
memory; the rest is read at every step, neighbouring units by neighbouring lanes, four elements of the state at a time.
The parts of a sum meet in shared memory; then a thread has a unit, computes its gate functions, and keeps its cell
state. A block takes several rows of the batch where there are many, all of which meet the same weights. The state is
there twice, so that two barriers are enough for a step. The order of every sum is fixed.

On compute capability 9.0 up to eight blocks are a cluster: they run at the same time, each has some of the units and
writes their new state into the shared memory of all, and the second barrier of a step is the cluster's.

Limited by the latency of a step where the weights fit (LSTM: up to 256 units on compute capability 9.0, 96 before),
else by reading the rest from L2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ops.packed import BLOCK
from transpiler.target import Target

from ..fuse import lowered
from ..gpu.recurrent import GATES, advanced, weights_of
from ..gpu.workgroup import barrier, private, workgroups
from ..halves import computed, operand
from ..sizes import Extent, ceil_div, count, extent, is_empty, is_fixed
from ..tir import Buffer, KernelBuilder, when
from ..vectors import held
from . import bulk, ptx
from .tiles import CARDS

Expr = Any
WARPS = 16  # of a block
KEPT = 64  # weights of a lane, in registers
MOST_ROWS = 4  # of a block
HALVES = 32 // BLOCK  # parts of the state in a warp: 32 lanes have 16 units
FLOAT = 4  # bytes
# Shared memory of a block, on all cards that run the code of an architecture.
SHARED = {"sm_80": 101376, "sm_90a": 232448}
CLUSTERS = {"sm_80": (1,), "sm_90a": (1, 2, 4, 8)}  # blocks that may share a state


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or len(computed(group)) != 1 or node.op.name not in GATES:
        return None
    shape = node.outputs[0].type.shape
    units = shape[-1]
    if node.outputs[0].dtype != "float32" or not isinstance(units, int) or is_empty(shape[1:]):
        return None
    plan = _plan(GATES[node.op.name], units, extent(shape[1]), target.gpu.arch)
    if plan.shared_bytes > SHARED[target.gpu.arch]:
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [value.type for value in node.outputs])
    with builder:
        _Scan(node.op, shape, plan).emit(builder, [operand(group, builder, value) for value in node.inputs])
    return lowered(group, builder, flops=2 * count(shape) * plan.gates * units)


@dataclass(frozen=True)
class _Plan:
    """How a scan is spread: each block of a `cluster` has `panels` of 16 units, which are summed in `slices` of the
    state; a lane has `length` elements of a slice, and keeps the weights of the first `kept`, then of `near` ones in
    shared memory. A cluster has so many `rows`."""

    gates: int
    units: int
    cluster: int
    panels: int
    slices: int
    length: int
    rows: int
    kept: int = 0
    near: int = 0

    @property
    def tasks(self) -> int:
        return self.panels * self.slices

    @property
    def warps(self) -> int:
        return min(WARPS, self.tasks)

    @property
    def state(self) -> int:
        """Elements of a row's state, with zeros behind."""
        return HALVES * self.slices * self.length

    @property
    def filled(self) -> int:
        """Units of a block."""
        return self.panels * BLOCK

    @property
    def sums_at(self) -> int:
        """Where the sums begin in shared memory, behind two states."""
        return 2 * self.rows * self.state * FLOAT

    @property
    def near_at(self) -> int:
        """Where the weights begin in shared memory."""
        return self.sums_at + self.slices * self.rows * self.gates * self.filled * FLOAT

    @property
    def line(self) -> int:
        """Bytes of all weights that meet one element of each part of the state."""
        return self.tasks * self.gates * 32 * FLOAT

    @property
    def shared_bytes(self) -> int:
        return self.near_at + self.near * self.line


def _plan(gates: int, units: int, rows: Extent, arch: str) -> _Plan:
    """With the smallest cluster whose registers hold all weights, else the largest one."""
    plans = [_clustered(gates, units, rows, arch, cluster) for cluster in CLUSTERS[arch]]
    return next((plan for plan in plans if plan.kept == plan.length), plans[-1])


def _clustered(gates: int, units: int, rows: Extent, arch: str, cluster: int) -> _Plan:
    total = ceil_div(units, BLOCK)
    panels = ceil_div(total, cluster)
    slices = max(1, min(WARPS // panels, total))
    length = ceil_div(ceil_div(units, HALVES * slices), 4) * 4
    processors = CARDS[arch].processors
    few = [r for r in (1, 2, MOST_ROWS) if is_fixed(rows) and ceil_div(rows, r) * cluster <= processors]
    together = few[0] if few else MOST_ROWS if is_fixed(rows) else 2
    plan = _Plan(gates, units, cluster, panels, slices, length, together)
    fit = max(0, SHARED[arch] - plan.near_at) // plan.line // 4 * 4
    # What comes at every step needs registers as well; a warp with several tasks would keep the weights of all.
    most = KEPT // gates // 4 * 4
    kept = 0 if plan.tasks > WARPS else length if length <= most else most - 4
    return replace(plan, kept=kept, near=min(length - kept, fit))


class _Scan:
    """One scan: T steps, N rows, H units."""

    def __init__(self, op: Any, shape: Sequence[Dim], plan: _Plan) -> None:
        self.op, self.plan = op, plan
        self.steps, self.rows, self.units = extent(shape[0]), extent(shape[1]), plan.units
        self.threads = plan.warps * 32
        self.turns = ceil_div(plan.rows * plan.filled, self.threads)  # units of one thread, of all rows

    def emit(self, builder: KernelBuilder, inputs: list[Buffer]) -> None:
        plan = self.plan
        self.x, self.h0, *rest = inputs
        self.c0 = rest.pop(0) if self.op.name == "lstm_scan" else None
        self.weight = rest[0]
        self.bias = rest[1] if self.op.name == "gru_scan" else None
        self.y, *self.finals = builder.outputs
        blocks = ceil_div(self.rows, plan.rows) * plan.cluster
        with (
            bulk.clusters(plan.cluster),
            workgroups(blocks, self.threads) as (number, thread),
            ptx.resident(1),
        ):
            self.row, self.thread = held(tirx.floordiv(number, plan.cluster) * plan.rows), held(thread)
            self.first = held(tirx.floormod(number, plan.cluster) * plan.filled)  # of the block's units
            self.lane, self.warp = held(tirx.floormod(thread, 32)), held(tirx.floordiv(thread, 32))
            memory = T.alloc_buffer((plan.shared_bytes,), "uint8", scope="shared.dyn")
            self.memory = held(ptx.shared_address(memory))
            self._begin()
            with T.serial(0, self.steps) as turn:
                step = held(self.steps - 1 - turn if self.op.reverse else turn)
                self._step(step, held(tirx.floormod(turn, 2)))
            self._end()

    # --- places in shared memory
    def state(self, parity: Expr, row: Expr, unit: Expr) -> Expr:
        """The address of a unit's state."""
        return ptx.moved(self.memory, ((parity * self.plan.rows + row) * self.plan.state + unit) * FLOAT)

    def sum(self, part: Expr, row: Expr, gate: Expr, unit: Expr) -> Expr:
        """The address of a slice's sum for a unit of the block."""
        plan = self.plan
        place = ((part * plan.rows + row) * plan.gates + gate) * plan.filled + unit
        return ptx.moved(self.memory, place * FLOAT + plan.sums_at)

    # --- parts of the kernel
    def _begin(self) -> None:
        """Both states in shared memory, zeros behind them; the thread's own units; and the weights that are kept."""
        plan = self.plan
        size = plan.rows * plan.state
        with T.serial(0, ceil_div(2 * size, self.threads)) as turn:
            place = held(turn * self.threads + self.thread)
            row, unit = (held(i) for i in self._quotient(tirx.floormod(place, size), plan.state))
            value = private(1)
            value.store(0, tirx.const(0.0, "float32"))
            with when(self._exists(row, unit)):
                value.store(0, self.h0[(self.row + row) * self.units + unit])
            with when(place < 2 * size):
                ptx.store_shared(ptx.moved(self.memory, place * FLOAT), value[0])
        self.h, self.c = private(self.turns), private(self.turns)
        with ptx.unrolled(self.turns) as turn:
            self.h.store(turn, tirx.const(0.0, "float32"))
            self.c.store(turn, tirx.const(0.0, "float32"))
            row, unit, exists = self._own(turn)
            with when(exists):
                place = held((self.row + row) * self.units + unit)
                self.h.store(turn, self.h0[place])
                if self.c0 is not None:
                    self.c.store(turn, self.c0[place])
        self.kept = private(max(1, plan.gates * plan.kept))
        if plan.kept:
            unit, start, _ = self._task(self.warp)
            with ptx.unrolled(plan.gates) as gate, ptx.unrolled(plan.kept) as i:
                self.kept.store(gate * plan.kept + i, self._weight(gate, unit, held(start + i)))
        with self._tasks() as task, T.serial(0, plan.near) as i:
            unit, start, _ = self._task(task)
            with ptx.unrolled(plan.gates) as gate:
                weight = self._weight(gate, unit, held(start + plan.kept + i))
                place = self._near(task, tirx.floordiv(i, 4), gate)
                ptx.store_shared(ptx.moved(place, tirx.floormod(i, 4) * FLOAT), weight)
        self._meet()

    def _step(self, step: Expr, parity: Expr) -> None:
        plan = self.plan
        # Asked for before the sums, which hide the way.
        given = private(self.turns * plan.gates)
        with ptx.unrolled(self.turns) as turn:
            row, unit, exists = self._own(turn)
            start = held((step * self.rows + self.row + row) * (plan.gates * self.units) + unit)
            with ptx.unrolled(plan.gates) as gate:
                given.store(turn * plan.gates + gate, tirx.const(0.0, "float32"))
                with when(exists):
                    given.store(turn * plan.gates + gate, self.x[start + gate * self.units])
        with self._tasks() as task:
            self._sum(task, parity)
        barrier()
        with ptx.unrolled(self.turns) as turn:
            row, unit, exists = self._own(turn)
            with when(exists):
                self._advance(turn, row, unit, step, parity, given)
        self._meet()

    def _sum(self, task: Expr, parity: Expr) -> None:
        """The sums of a warp's 16 units over a slice of the state."""
        plan = self.plan
        unit, start, part = self._task(task)
        sums = private(plan.rows * plan.gates)
        with ptx.unrolled(plan.rows * plan.gates) as i:
            sums.store(i, tirx.const(0.0, "float32"))
        with ptx.unrolled(plan.kept // 4) as chunk:
            self._multiply(sums, parity, start + chunk * 4, lambda gate, e: self.kept[gate * plan.kept + chunk * 4 + e])
        weights = private(4 * plan.gates)
        if plan.near:
            with T.serial(0, plan.near // 4) as chunk:
                with ptx.unrolled(plan.gates) as gate:
                    ptx.load_shared_chunk(weights, gate * 4, self._near(task, chunk, gate))
                k = held(start + plan.kept + chunk * 4)
                self._multiply(sums, parity, k, lambda gate, e: weights[gate * 4 + e])
        far = plan.length - plan.kept - plan.near
        if far:
            with T.serial(0, far // 4) as chunk:
                k = held(start + plan.kept + plan.near + chunk * 4)
                with ptx.unrolled(plan.gates) as gate, ptx.unrolled(4) as e:
                    weights.store(gate * 4 + e, self._weight(gate, unit, held(k + e)))
                self._multiply(sums, parity, k, lambda gate, e: weights[gate * 4 + e])
        with ptx.unrolled(plan.rows) as row, ptx.unrolled(plan.gates) as gate:
            at = row * plan.gates + gate
            total = held(sums[at] + ptx.shuffle_xor(sums[at], BLOCK))
            with when(self.lane < BLOCK):
                ptx.store_shared(self.sum(part, row, gate, unit - self.first), total)

    def _multiply(self, sums: Buffer, parity: Expr, k: Expr, weight: Callable[[Expr, Expr], Expr]) -> None:
        """Adds products of four elements of each row's state, from `k` on, and the weights."""
        plan = self.plan
        values = private(4)
        with ptx.unrolled(plan.rows) as row:
            ptx.load_shared_chunk(values, 0, self.state(parity, row, k))
            with ptx.unrolled(4) as e, ptx.unrolled(plan.gates) as gate:
                at = row * plan.gates + gate
                sums.store(at, sums[at] + values[e] * weight(gate, e))

    def _advance(self, turn: Expr, row: Expr, unit: Expr, step: Expr, parity: Expr, given: Buffer) -> None:
        """A unit's new state: to the output, and to where the next step reads it."""
        plan = self.plan
        recurrent = []
        for gate in range(plan.gates):
            total = private(1)
            total.store(0, ptx.load_shared(self.sum(0, row, gate, unit - self.first)))
            with ptx.unrolled(plan.slices - 1) as part:
                total.store(0, total[0] + ptx.load_shared(self.sum(part + 1, row, gate, unit - self.first)))
            recurrent.append(held(total[0]))
        x = [held(given[turn * plan.gates + gate]) for gate in range(plan.gates)]
        bias = self.bias
        h, c = advanced(
            self.op, "float32", x, recurrent,
            lambda gate: 0 if bias is None else bias[gate * self.units + unit], self.h[turn], self.c[turn],
        )  # fmt: skip
        self.h.store(turn, h)
        self.c.store(turn, c)
        self.y.store((step * self.rows + self.row + row) * self.units + unit, h)
        there = held(self.state(1 - parity, row, unit))
        if plan.cluster == 1:
            ptx.store_shared(there, h)
        else:
            for rank in range(plan.cluster):
                bulk.store_shared_at(there, rank, h)

    def _end(self) -> None:
        with ptx.unrolled(self.turns) as turn:
            row, unit, exists = self._own(turn)
            with when(exists):
                place = held((self.row + row) * self.units + unit)
                self.finals[0].store(place, self.h[turn])
                if self.c0 is not None:
                    self.finals[1].store(place, self.c[turn])

    def _meet(self) -> None:
        """All that share the state."""
        if self.plan.cluster == 1:
            barrier()
        else:
            bulk.cluster_meets()

    # --- who has what
    def _own(self, turn: Expr) -> tuple[Expr, Expr, Expr]:
        """Row and unit of a thread's turn, and whether they exist."""
        plan = self.plan
        row, inside = (held(i) for i in self._quotient(turn * self.threads + self.thread, plan.filled))
        unit = held(self.first + inside)
        return row, unit, self._exists(row, unit)

    def _exists(self, row: Expr, unit: Expr) -> Expr:
        """Whether a row that this block may have, and a unit, are there."""
        there = tirx.And(row < self.plan.rows, self.row + row < self.rows)
        return tirx.And(there, unit < self.units)

    @contextmanager
    def _tasks(self) -> Iterator[Expr]:
        """A loop over the tasks of a warp."""
        plan = self.plan
        with ptx.rolled(ceil_div(plan.tasks, plan.warps)) as turn:
            task = held(turn * plan.warps + self.warp)
            with when(None if plan.tasks % plan.warps == 0 else task < plan.tasks):
                yield task

    def _near(self, task: Expr, chunk: Expr, gate: Expr) -> Expr:
        """The address of four weights of this lane: those of all lanes lie side by side."""
        place = ((task * (self.plan.near // 4) + chunk) * self.plan.gates + gate) * 32 + self.lane
        return ptx.moved(self.memory, place * (4 * FLOAT) + self.plan.near_at)

    def _task(self, task: Expr) -> tuple[Expr, Expr, Expr]:
        """The unit of a lane, where in the state it begins to sum, and the slice."""
        part, panel = (held(i) for i in self._quotient(task, self.plan.panels))
        unit = held(self.first + panel * BLOCK + tirx.floormod(self.lane, BLOCK))
        half = held(part * HALVES + tirx.floordiv(self.lane, BLOCK))
        return unit, held(half * self.plan.length), part

    def _weight(self, gate: Expr, unit: Expr, k: Expr) -> Expr:
        """A weight; 0 where there is none."""
        value = private(1)
        value.store(0, tirx.const(0.0, "float32"))
        start, pitch = weights_of(self.op, self.units, gate, unit)
        whole = self.plan.state == self.plan.filled * self.plan.cluster == self.units
        with when(None if whole else tirx.And(unit < self.units, k < self.units)):
            value.store(0, self.weight[start + k * pitch])
        return held(value[0])

    @staticmethod
    def _quotient(number: Expr, divisor: int) -> tuple[Expr, Expr]:
        return tirx.floordiv(number, divisor), tirx.floormod(number, divisor)
