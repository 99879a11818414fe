"""The threads of a block that work on one matrix: all of them run the same steps, and share the turns of its loops.

What is computed from the same elements is the same in all threads, so that they take the same branches. Who reads what
others wrote waits for them first (`meet`), and so does who writes what others may still read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx

from transpiler.group import Group, Lowered

from ..cpu.matrix import Matrix, Scratch, Task, per_matrix
from ..gpu.lines import Walk
from ..gpu.workgroup import barrier, combined, workgroups
from ..tir import when
from ..vectors import held
from . import ptx

Expr = Any
THREADS, WARP = 256, 32
Emit = Callable[[Task, "Team"], None]


class Team:
    """This thread is number `thread`, and number `lane` of its warp."""

    def __init__(self, thread: Expr) -> None:
        self.thread = held(thread)
        self.warp, self.lane = held(tirx.floordiv(thread, WARP)), held(tirx.floormod(thread, WARP))

    def each(self, count: Any) -> Any:
        """A loop whose turns are dealt to the threads."""
        return Walk(self.thread, THREADS).over(count)

    def by_warp(self, count: Any) -> Any:
        """A loop whose turns are dealt to the warps."""
        return Walk(self.warp, THREADS // WARP).over(count)

    def by_lane(self, count: Any) -> Any:
        """Within a warp's turn, a loop whose turns are dealt to its lanes."""
        return Walk(self.lane, WARP).over(count)

    @contextmanager
    def grid(self, rows: Any, columns: Any) -> Iterator[tuple[Expr, Expr]]:
        """Rows and columns of neighbouring elements; a line that is short has no warp to itself."""
        if isinstance(columns, int) and 0 < columns < WARP:
            with self.each(rows * columns) as position:
                yield held(tirx.floordiv(position, columns)), held(tirx.floormod(position, columns))
        else:
            with self.by_warp(rows) as row, self.by_lane(columns) as column:
                yield row, column

    def copy(self, source: Matrix, target: Matrix, rows: int, columns: int) -> None:
        """An element from a thread; `meet` before others read it."""
        with self.grid(rows, columns) as (i, j):
            target[i, j] = source[i, j]

    def alone(self) -> Any:
        """What one thread does for all."""
        return when(self.thread == 0)

    def alone_in_warp(self) -> Any:
        return when(self.lane == 0)

    @staticmethod
    def meet() -> None:
        """All threads are here; what they wrote is seen."""
        barrier()

    @staticmethod
    def warp_meets() -> None:
        ptx.sync_warp()

    def joined(self, values: Sequence[Expr], dtypes: Sequence[str], join: Any) -> list[Expr]:
        """What the values of all threads combine to, in every thread. They must meet before it is done again."""
        return combined(THREADS, self.thread, values, dtypes, join)

    def joined_in_warp(self, values: Sequence[Expr], dtypes: Sequence[str], join: Any) -> list[Expr]:
        return combined(WARP, self.lane, values, dtypes, join)


def added(left: Sequence[Expr], right: Sequence[Expr]) -> list[Expr]:
    """For `joined`: sums."""
    return [a + b for a, b in zip(left, right, strict=True)]


def by_blocks(
    group: Group, name: str, kernels: Mapping[str, Emit], ranks: Mapping[str, tuple[int, ...]], scratch: Scratch
) -> Lowered | None:
    """As `per_matrix`, a block for each matrix."""
    if group.nodes[0].op.name not in kernels:
        return None
    teams = []

    @contextmanager
    def deal(batch: int, tasks: int) -> Iterator[tuple[Expr, Expr]]:
        with workgroups(batch, THREADS) as (block, thread):
            teams.append(Team(thread))
            number = held(block)
            yield number, number

    def emit(op: str) -> Callable[[Task], None]:
        return lambda task: kernels[op](task, teams[-1])

    return per_matrix(group, name, {op: emit(op) for op in kernels}, ranks, scratch, deal)
