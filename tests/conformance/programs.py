"""Whole programs, rewritten and compiled: the kernels of many programs in one library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.conformance.databases.plans import KernelPool, kernel_library, run_plan
from tests.conformance.kernels import op_group
from transpiler.ir import Array, Graph, Input, Output, Program, Role, verify
from transpiler.lower import lower
from transpiler.ops.base import Op
from transpiler.passes import run_passes
from transpiler.plan import KernelPlan
from transpiler.prepared import run_prepare
from transpiler.target import Target


def op_program(op: Op, inputs: Sequence[Array]) -> Program:
    """A program of one node."""
    (node,) = op_group(op, inputs).nodes
    graph = Graph(
        "forward",
        tuple(Input(value, Role.USER, value.name) for value in node.inputs),
        (node,),
        tuple(Output(value) for value in node.outputs),
    )
    verify(graph)
    return Program({"forward": graph})


class Programs:
    """Programs without weights, compiled for a target; `run(id, *arrays)` gives the flat outputs."""

    def __init__(self, programs: Mapping[str, Program], target: Target) -> None:
        pool = KernelPool()
        self._plans: dict[str, tuple[KernelPlan, dict[str, str], dict[str, Array]]] = {}
        for id_, program in programs.items():
            rewritten = run_passes(program)
            lowered = lower(rewritten, target, scheduler=pool.schedule)
            prepared = run_prepare(lowered.plan, rewritten.constants, {})
            self._plans[id_] = lowered.plan, pool.symbols(lowered.kernels), prepared
        self._library = kernel_library(list(pool.kernels.values()), target)

    def run(self, id_: str, *inputs: Array) -> list[Array]:
        """The outputs; raises what a kernel reported (see `raise_status`)."""
        plan, symbols, prepared = self._plans[id_]
        return run_plan(plan, symbols, self._library, prepared, inputs)
