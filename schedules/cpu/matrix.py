"""Shared by the kernels of linear algebra: matrices in flat buffers, scalars that change, one matrix per parallel task.

The factorisations are textbook loops over one matrix, scalar code except where LLVM vectorises an innermost loop over
contiguous columns; batches are dealt to the threads. They are limited by the latency of dependent operations for small
matrices and by the missing cache blocking for large ones (beyond some hundreds of rows).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ir import TensorType

from ..fuse import lowered
from ..scalar import Tir
from ..sizes import is_large
from ..tir import STATUS_SINGULAR, Buffer, KernelBuilder, local, loop

Expr = Any


class Matrix:
    """Rows of `columns` elements in `buffer`, from offset `base`."""

    def __init__(self, buffer: Buffer, base: Expr, columns: int) -> None:
        self.buffer, self.base, self.columns = buffer, base, columns

    def __getitem__(self, index: tuple[Expr, Expr]) -> Expr:
        return self.buffer[self.base + index[0] * self.columns + index[1]]

    def __setitem__(self, index: tuple[Expr, Expr], value: Expr) -> None:
        self.buffer.store(self.base + index[0] * self.columns + index[1], value)


class Variable:
    """A scalar that the kernel assigns to."""

    def __init__(self, dtype: str, value: Expr) -> None:
        self._buffer = local(1, dtype)
        self.set(value)

    def get(self) -> Expr:
        return self._buffer[0]

    def set(self, value: Expr) -> None:
        self._buffer.store(0, value)


class Task:
    """One matrix of a batch: its inputs and outputs as matrices, and what the arithmetic needs."""

    def __init__(self, op: Any, builder: KernelBuilder, inputs: list[Matrix], outputs: list[Matrix],
                 types: list[TensorType], scratch: Matrix | None) -> None:  # fmt: skip
        self.op, self.inputs, self.outputs, self.types, self.scratch = op, inputs, outputs, types, scratch
        self.dtype = types[0].dtype
        self.s = Tir()
        self.status = builder.status

    def shape(self, number: int = 0) -> tuple[int, int]:
        """Rows and columns of input `number`."""
        *_, rows, columns = self.types[number].static_shape()
        return rows, columns

    def number(self, value: float) -> Expr:
        return tirx.const(value, self.dtype)

    def report_singular(self, info: Expr) -> None:
        """For ops with `check`: anything but 0 in `info` fails the call."""
        if self.op.check:
            assert self.status is not None
            with T.If(info != 0), T.Then():
                self.status.store(0, tirx.const(STATUS_SINGULAR, "int32"))

    def report_nonfinite(self, element: Expr) -> None:
        """NaN and infinities fail the call."""
        assert self.status is not None
        bad = self.s.logical_or(self.s.call("isnan", element), self.s.call("isinf", element))
        with T.If(bad), T.Then():
            self.status.store(0, tirx.const(STATUS_SINGULAR, "int32"))


Emit = Callable[[Task], None]
# Deals the matrices of a batch (their number) to tasks (theirs): a context that gives the numbers of both.
Deal = Callable[[int, int], AbstractContextManager[tuple[Expr, Expr]]]
# Elements of float64 workspace per task, from the shape of the first input.
Scratch = Callable[[tuple[int, ...]], int]
TASKS = 16
MOST_WORKSPACE = 1 << 30  # bytes, of tasks that have one each


@contextmanager
def _to_threads(batch: int, tasks: int) -> Iterator[tuple[Expr, Expr]]:
    """Neighbouring matrices to a thread."""
    with loop(tasks, parallel=tasks > 1) as task, T.serial(0, batch // tasks) as item:
        yield task * (batch // tasks) + item, task


def per_matrix(
    group: Group, name: str, kernels: Mapping[str, Emit], ranks: Mapping[str, tuple[int, ...]], scratch: Scratch,
    deal: Deal | None = None,
) -> Lowered | None:  # fmt: skip
    """The kernel that runs `kernels[op]` on every matrix of a batch; None if the group is something else.

    `ranks` gives the ranks of the op's inputs and outputs without the batch dims, which all of them have. `deal`: every
    matrix is a task of its own; None if they would need too large a workspace.
    """
    node = group.nodes[0]
    op: Any = node.op
    types = [value.type for value in node.inputs]
    if len(group.nodes) != 1 or op.name not in kernels:
        return None
    if any(not isinstance(dim, int) for type_ in types for dim in type_.shape):
        return None
    own = ranks[op.name]
    results = [value.type for value in node.outputs]
    shapes = [type_.static_shape() for type_ in (*types, *results)]
    sizes = [shape[len(shape) - rank :] for shape, rank in zip(shapes, own, strict=True)]
    batch = math.prod(shapes[0][: len(shapes[0]) - own[0]])
    work = batch * max(sizes[0], default=1) ** 3
    needed = scratch(sizes[0])
    tasks = batch if deal is not None else math.gcd(batch, TASKS) if is_large(work) else 1
    if deal is not None and needed * tasks * 8 > MOST_WORKSPACE:
        return None
    builder = KernelBuilder(
        name,
        [value.type for value in group.inputs],
        results,
        workspace=needed * tasks,
        workspace_dtype="float64",
        checks_index=op.checks_index,
    )
    with builder:
        if batch and any(math.prod(size) for size in sizes[len(types) :]):
            inputs = [builder.inputs[group.input_index(value)] for value in node.inputs]
            spare = builder.scratch(needed * tasks) if needed else None
            with (deal or _to_threads)(batch, tasks) as (place, task):
                matrices = [
                    Matrix(buffer, place * math.prod(size), size[-1] if size else 1)
                    for buffer, size in zip((*inputs, *builder.outputs), sizes, strict=True)
                ]
                room = Matrix(spare, task * needed, sizes[0][-1]) if spare is not None else None
                cut = len(inputs)
                kernels[op.name](Task(op, builder, matrices[:cut], matrices[cut:], types, room))
    return lowered(group, builder, flops=work, workspace=needed * tasks * 8)


def copy(source: Matrix, target: Matrix, rows: int, columns: int) -> None:
    with T.serial(0, rows) as i, T.serial(0, columns) as j:
        target[i, j] = source[i, j]
