"""Common to softmax and the norms: rows, the values that a fused prologue gives, the pass that writes the
output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group
from transpiler.ops.dtypes import numpy_dtype

from ..anchored import Anchored
from ..fuse import Inline, Probe, needs_status, probe
from ..scalar import Tir
from ..sizes import Extent, is_fixed
from ..tir import LANES, Buffer, KernelBuilder, vector_loop

Expr = Any


class RowGroup(Anchored):
    """An anchored group, row by row.

    `source(builder)` is the buffer that the anchor reads: the input itself, or `rows` after `fill` wrote the
    prologue's values to it. `rows` holds values between passes: the output itself, or workspace if the
    output's dtype differs.
    """

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self.has_prologue = any(value.name == self.x.name for node in group.prologue for value in node.outputs)
        self.workspace: Dim = self.size if self.output.dtype != self.dtype else 0

    def builder(self, name: str) -> KernelBuilder:
        return KernelBuilder(
            name,
            [value.type for value in self.group.inputs],
            [self.output.type],
            workspace=self.workspace,
            workspace_dtype=self.dtype,
            checks_index=needs_status(self.group),
        )

    def begin(self, builder: KernelBuilder) -> None:
        """Inside the builder, before any loop."""
        self.kernel = builder
        self.rows: Buffer = builder.scratch(self.size) if self.workspace else builder.outputs[0]
        self.source = self.rows if self.has_prologue else builder.inputs[self.group.input_index(self.x)]
        self._prologue = probe(self.group, builder, self.x) if self.has_prologue else Probe()
        self._epilogue = probe(self.group, builder, self.output, self.result)

    @property
    def workspace_bytes(self) -> Dim:
        return self.workspace * numpy_dtype(self.dtype).itemsize

    def parameter(self, position: int) -> Buffer | None:
        """The buffer of the anchor's input `position`, if it has that many."""
        if position >= len(self.anchor.inputs):
            return None
        return self.kernel.inputs[self.group.input_index(self.anchor.inputs[position])]

    def fill(self, extent: Extent, index: Callable[[Expr], Sequence[Expr]], offset: Callable[[Expr], Expr]) -> None:
        """Write the prologue's values of a row to `rows`; nothing to do without a prologue."""
        if not self.has_prologue:
            return

        def body(position: Expr) -> None:
            s = Tir(status=self.kernel.status)
            value = Inline(self.group, self.kernel, s).value(self.x, index(position))
            self.rows.store(offset(position), value)

        lane_loop(extent, body, self._prologue)

    def finish(
        self,
        extent: Extent,
        index: Callable[[Expr], Sequence[Expr]],
        offset: Callable[[Expr], Expr],
        element: Callable[[Expr], Expr],
    ) -> None:
        """Write a row of the output: `element(position)` is the anchor's result, the epilogue is computed on
        it.
        """

        def body(position: Expr) -> None:
            s = Tir(status=self.kernel.status)
            result = s.bind(element(position)) if self.group.epilogue else element(position)
            anchored: dict[str, Callable[[Sequence[Expr]], Expr]] = {self.result.name: lambda _index: result}
            self.kernel.outputs[0].store(
                offset(position),
                Inline(self.group, self.kernel, s, anchored).value(self.output, index(position)),
            )

        lane_loop(extent, body, self._epilogue)


def lane_loop(extent: Extent, body: Callable[[Expr], None], needs: Probe | None = None) -> None:
    """`body(position)` for 0..extent, LANES positions at a time if what it `needs` can stand in a vector loop."""
    main = 0 if needs is not None and needs.scalar_only else extent // LANES * LANES
    if not is_fixed(main) or main:
        with T.serial(0, main // LANES) as step, vector_loop(LANES, needs.binds if needs else ()) as lane:
            body(step * LANES + lane)
    if not is_fixed(extent - main) or extent - main:
        with T.serial(0, extent - main) as rest:
            body(main + rest)
