"""Scatter, its reductions, index_put and slice_write: the bits of a loop over the updates, at every call.

Updates that may meet are a sequence, whose order counts; sequences that never meet are columns (of a scatter the other
axes, of index_put the axes without indices). Two forms:

- A thread goes along a column: where there are many of them, or few updates in each.
- The updates of a column are sorted by where they go, in their order, as `sort` sorts rows. The thread with the first
  one of a place combines all that go there; an assignment is made by the one with the last.

An index out of bounds sets the status word. In place, all indices are checked by a launch before the first write.
Limited by memory, and by the longest run of updates that go to one place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ir import TensorType
from transpiler.ops.base import broadcast_shapes
from transpiler.target import Target

from ..cpu.scatter import COMBINE
from ..fuse import lowered
from ..gpu.sort import HALF_WORD, Plan, Rows, Words
from ..gpu.threads import each_thread
from ..gpu.workgroup import private
from ..scalar import Tir
from ..sizes import ceil_div, count, extent, is_empty
from ..tir import LANES, Buffer, KernelBuilder, flat_offset, unflatten, when
from ..vectors import held
from .sort import FORM

Expr = Any
THREADS = 128
MANY = 1024  # columns from which on each has a thread
FEW = 32  # updates of a column up to which a thread makes all of them
MOST_BYTES = 1 << 28  # of workspace


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if len(group.nodes) != 1 or group.nodes[0].op.name not in (*COMBINE, "index_put", "slice_write"):
        return None
    node = group.nodes[0]
    op: Any = node.op
    types = [value.type for value in node.inputs]
    form = {"slice_write": _Slice, "index_put": _Put}.get(op.name, _Scatter)
    updates: _Updates = form(op, types)
    plan = _plan(updates)
    space = 0 if plan is None else updates.rows * (_pitch(plan) + 2 * plan.space)
    builder = KernelBuilder(
        name, [value.type for value in group.inputs], [group.outputs[0].type], workspace=space,
        workspace_dtype="int64", checks_index=op.name != "slice_write",
    )  # fmt: skip
    with builder:
        if not is_empty(types[0].shape):
            # A tensor given twice is one input of the kernel; x is none if the kernel runs in place.
            updates.bind(builder, [builder.inputs[group.input_index(value)] for value in node.inputs[1:]])
            if not group.in_place:
                x = builder.inputs[group.input_index(node.inputs[0])]
                with each_thread(extent(count(types[0].shape)), THREADS) as at:
                    builder.outputs[0].store(at, x[at])
            if not is_empty((updates.columns, updates.length)):
                if group.in_place and builder.status is not None:
                    _check_all(updates)
                _Launches(updates, in_place=group.in_place).emit(plan)
    total = updates.columns * updates.length
    return lowered(group, builder, flops=total, workspace=space * 8, in_place=group.in_place)


def _plan(updates: _Updates) -> Plan | None:
    """How columns are sorted; None: a thread goes along each."""
    length, rows = updates.length, updates.rows
    if not isinstance(length, int) or length <= FEW or not isinstance(rows, int):
        return None
    plan = Plan(length, length, FORM.tile)
    fits = rows * (_pitch(plan) + 2 * plan.space) * 8 <= MOST_BYTES
    return plan if fits and (rows < MANY or updates.alike) else None


def _pitch(plan: Plan) -> int:
    """Words between sorted rows."""
    return int(ceil_div(plan.along, LANES)) * LANES


def _check_all(updates: _Updates) -> None:
    with each_thread(extent(updates.rows * updates.length), THREADS) as position:
        column, number = (held(i) for i in unflatten(position, (updates.rows, updates.length)))
        updates.slot(column, number)


class _Updates(ABC):
    """`columns` sequences of `length` updates. A slot is a number that two updates of a column share if, and only if,
    they go to one place; `alike`: that of an update is the same in all columns."""

    alike = False
    columns: Dim
    length: Dim

    def __init__(self, op: Any, types: Sequence[TensorType]) -> None:
        self.op = op
        self.x, *self.shapes = (item.shape for item in types)
        self.combine = str(op.name)  # the key of COMBINE

    def bind(self, builder: KernelBuilder, inputs: Sequence[Buffer]) -> None:
        """Within the kernel: the inputs but the first."""
        self.builder, self.inputs = builder, inputs
        self.s = Tir(status=builder.status)

    @property
    def rows(self) -> Dim:
        """Columns that have slots of their own."""
        return 1 if self.alike else self.columns

    @abstractmethod
    def slot(self, column: Expr, number: Expr) -> Expr:
        """Of an update; checks its index."""

    @abstractmethod
    def target(self, column: Expr, slot: Expr) -> Expr:
        """The offset in the output."""

    @abstractmethod
    def value(self, column: Expr, number: Expr) -> Expr:
        """What comes."""


class _Scatter(_Updates):
    """A column for every place of the axes but one."""

    def __init__(self, op: Any, types: Sequence[TensorType]) -> None:
        super().__init__(op, types)
        indices = self.shapes[0]
        self.others = (*indices[: op.axis], *indices[op.axis + 1 :])
        self.columns, self.length = count(self.others), indices[op.axis]

    def _index(self, column: Expr, along: Expr) -> list[Expr]:
        others = unflatten(column, self.others)
        return [*others[: self.op.axis], along, *others[self.op.axis :]]

    def slot(self, column: Expr, number: Expr) -> Expr:
        given = self.inputs[0][flat_offset(self._index(column, number), self.shapes[0])]
        return self.s.index(given, self.x[self.op.axis], wraps=False)

    def target(self, column: Expr, slot: Expr) -> Expr:
        return flat_offset(self._index(column, slot), self.x)

    def value(self, column: Expr, number: Expr) -> Expr:
        return self.inputs[1][flat_offset(self._index(column, number), self.shapes[1])]


class _Put(_Updates):
    """A column for every place of the axes that have no index; the sequence is the box of the indices, row-major."""

    alike = True

    def __init__(self, op: Any, types: Sequence[TensorType]) -> None:
        super().__init__(op, types)
        self.combine, axes = "scatter_add" if op.accumulate else "scatter", op.axes
        self.values, *self.picks = self.shapes
        self.box = broadcast_shapes(*self.picks)
        self.indexed = [self.x[axis] for axis in axes]
        kept = [axis for axis in range(len(self.x)) if axis not in axes]
        adjacent = list(axes) == list(range(axes[0], axes[0] + len(axes)))
        self.front = axes[0] if adjacent else 0
        self.free = [self.x[axis] for axis in kept]
        self.columns, self.length = count(self.free), count(self.box)

    def slot(self, column: Expr, number: Expr) -> Expr:
        boxed = unflatten(number, self.box)
        chosen = []
        for pick, buffer, size in zip(self.picks, self.inputs[1:], self.indexed, strict=True):
            given = buffer[flat_offset(_own(boxed, pick), pick)]
            chosen.append(held(self.s.index(given, size, self.op.wraps)))
        return flat_offset(chosen, self.indexed)

    def target(self, column: Expr, slot: Expr) -> Expr:
        chosen = dict(zip(self.op.axes, unflatten(slot, self.indexed), strict=True))
        free = iter(unflatten(column, self.free))
        return flat_offset([chosen[axis] if axis in chosen else next(free) for axis in range(len(self.x))], self.x)

    def value(self, column: Expr, number: Expr) -> Expr:
        free, boxed = unflatten(column, self.free), unflatten(number, self.box)
        index = _own([*free[: self.front], *boxed, *free[self.front :]], self.values)
        return self.inputs[0][flat_offset(index, self.values)]


class _Slice(_Updates):
    """Every update is a column of its own."""

    def __init__(self, op: Any, types: Sequence[TensorType]) -> None:
        super().__init__(op, types)
        self.combine, self.columns, self.length = "scatter", count(self.shapes[0]), 1

    def slot(self, column: Expr, number: Expr) -> Expr:
        return tirx.const(0, "int32")

    def target(self, column: Expr, slot: Expr) -> Expr:
        index = unflatten(column, self.shapes[0])
        places = [start + i * step for i, start, step in zip(index, self.op.starts, self.op.steps, strict=True)]
        return flat_offset(places, self.x)

    def value(self, column: Expr, number: Expr) -> Expr:
        return self.inputs[0][column]


def _own(index: Sequence[Expr], shape: Sequence[Dim]) -> list[Expr]:
    """The index of an operand that is broadcast."""
    return [0 if dim == 1 else i for dim, i in zip(shape, index[len(index) - len(shape) :], strict=True)]


class _Launches:
    def __init__(self, updates: _Updates, *, in_place: bool) -> None:
        self.updates, self.builder, self.s = updates, updates.builder, updates.s
        (self.output,) = self.builder.outputs
        self.combine = COMBINE[updates.combine]
        # In place nothing is written if an index is wrong.
        status = self.builder.status if in_place else None
        self.unharmed = None if status is None else lambda: status[0] == 0

    def emit(self, plan: Plan | None) -> None:
        if plan is None:
            self._columns()
            return
        rows, pitch = extent(self.updates.rows), _pitch(plan)
        ordered = self.builder.scratch(rows * pitch)
        _Order(self.updates, plan, ordered, pitch).emit(rows)
        self._runs(plan, ordered, pitch)

    def _allowed(self) -> Any:
        return when(None if self.unharmed is None else self.unharmed())

    def _columns(self) -> None:
        """A thread goes along a column."""
        updates = self.updates
        with each_thread(extent(updates.columns), THREADS) as position, self._allowed():
            column = held(position)
            with T.serial(0, extent(updates.length)) as number:
                at = held(updates.target(column, held(updates.slot(column, number))))
                self.output.store(at, self.combine(self.s, self.output[at], updates.value(column, number)))

    def _runs(self, plan: Plan, ordered: Buffer, pitch: int) -> None:
        """A thread for each place in the order, and column that has it."""
        updates, along = self.updates, plan.along
        columns = updates.columns if updates.alike else 1
        turns = (updates.rows, along, columns)
        with each_thread(extent(updates.rows * along * columns), THREADS) as position, self._allowed():
            row, place, inner = (held(i) for i in unflatten(position, turns))
            column, start = inner if updates.alike else row, held(row * pitch)

            def word(i: Expr) -> Expr:
                return ordered[start + T.max(T.min(i, along - 1), 0)]

            def slot(i: Expr) -> Expr:
                return held(T.Cast("int32", T.shift_right(word(i), tirx.const(32, "int64"))))

            def value(i: Expr) -> Expr:
                low = T.bitwise_and(word(i), tirx.const(HALF_WORD - 1, "int64"))
                return updates.value(column, held(T.Cast("int32", low)))

            own = slot(place)
            at = held(updates.target(column, own))
            if updates.combine == "scatter":
                with when(tirx.Or(place == along - 1, slot(place + 1) != own)):
                    self.output.store(at, value(place))
                return
            with when(tirx.Or(place == 0, slot(place - 1) != own)):
                total, following = private(1, self.output.dtype), private(1, "int32")
                total.store(0, self.output[at])
                following.store(0, place)
                same = private(1, "int32")
                same.store(0, tirx.const(1, "int32"))
                with T.While(same[0] != 0):
                    total.store(0, self.combine(self.s, total[0], value(following[0])))
                    following.store(0, following[0] + 1)
                    other = slot(following[0])
                    same.store(0, T.Cast("int32", tirx.And(following[0] < along, other == own)))
                self.output.store(at, total[0])


class _Order(Rows):
    """Rows of slots, each with the number of its update."""

    def __init__(self, updates: _Updates, plan: Plan, ordered: Buffer, pitch: int) -> None:
        super().__init__(updates.builder, plan, extent(updates.rows), 1, 1, FORM)
        self.updates, self.ordered, self.pitch = updates, ordered, pitch

    def element(self, row: Expr, position: Expr) -> Words:
        slot = held(T.Cast("int64", self.updates.slot(row, position)))
        return [slot * tirx.const(HALF_WORD, "int64") + T.Cast("int64", position)]

    def result(self, row: Expr, rank: Expr, words: Words) -> None:
        self.ordered.store(row * self.pitch + rank, words[0])
