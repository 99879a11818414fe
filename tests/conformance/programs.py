"""Whole programs, rewritten and compiled: the kernels of many programs in one library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.conformance.databases.plans import KernelPool, kernel_library, run_plan
from tests.conformance.kernels import op_group
from tests.conformance.targets import make_library
from transpiler.errors import TranspileErrors
from transpiler.ir import Array, Graph, Input, Output, Program, Role, verify
from transpiler.lower import lower
from transpiler.ops.base import Op
from transpiler.ops.dtypes import numpy_dtype
from transpiler.passes import PIPELINES, run_passes
from transpiler.plan import KernelPlan, View
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
    """Programs without weights, compiled for a target; `run(id, *arrays)` gives the flat outputs. `refused` has the
    reasons of those that the target has no kernels for."""

    def __init__(self, programs: Mapping[str, Program], target: Target) -> None:
        pool = KernelPool()
        self.target = target
        self.refused: dict[str, str] = {}
        self._plans: dict[str, tuple[KernelPlan, dict[str, str], dict[str, Array]]] = {}
        for id_, program in programs.items():
            rewritten = run_passes(program, PIPELINES[target.name].usual)
            try:
                lowered = lower(rewritten, target, scheduler=pool.schedule)
            except TranspileErrors as error:
                self.refused[id_] = "; ".join(problem.message for problem in error.problems)
                continue
            prepared = run_prepare(lowered.plan, rewritten.constants, {})
            self._plans[id_] = lowered.plan, pool.symbols(lowered.kernels), prepared
        kernels = list(pool.kernels.values())
        if not target.is_gpu:
            self._library = kernel_library(kernels, target)
            return
        self._kernels, without_code = make_library(kernels, target)
        for id_, (_, symbols, _) in self._plans.items():
            reasons = [without_code[name] for name in symbols.values() if name in without_code]
            if reasons:
                self.refused[id_] = "; ".join(reasons)

    def run(self, id_: str, *inputs: Array) -> list[Array]:
        """The outputs; raises what a kernel reported (see `raise_status`)."""
        plan, symbols, prepared = self._plans[id_]
        if not self.target.is_gpu:
            return run_plan(plan, symbols, self._library, prepared, inputs)
        values = dict(zip((item.value.name for item in plan.inputs), inputs, strict=True))
        values |= prepared
        for step in plan.steps:
            if isinstance(step, View):
                values[step.output.name] = values[step.input.name].reshape(step.output.type.static_shape())
                continue
            assert step.into is None, "a program without state has no kernel in place"
            results = self._kernels.run(symbols[step.kernel], *(values[value.name] for value in step.inputs))
            values |= {value.name: array for value, array in zip(step.outputs, results, strict=True)}
        # Constants in half precision are kept as their bits.
        return [values[value.name].view(numpy_dtype(value.dtype)) for value in plan.outputs]
