"""Whole programs, rewritten and compiled: all kernels of many programs in one library, run call by call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tests.conformance.kernels import KernelLibrary, op_group
from transpiler.emit import run_prepare
from transpiler.group import Lowered
from transpiler.ir import Array, Graph, Input, Output, Program, Role, verify
from transpiler.lower import LoweredProgram, lower
from transpiler.ops.base import Op
from transpiler.ops.dtypes import numpy_dtype
from transpiler.passes import PIPELINE, run_passes
from transpiler.plan import View
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
        self._plans: dict[str, tuple[LoweredProgram, dict[str, Array]]] = {}
        self._names: dict[tuple[str, str], str] = {}
        kernels: list[Lowered] = []
        for id_, program in programs.items():
            rewritten = run_passes(program, PIPELINE)
            lowered = lower(rewritten, target)
            self._plans[id_] = lowered, run_prepare(lowered.plan, rewritten.constants, {})
            for item in lowered.kernels:
                name = f"k{len(kernels)}"
                self._names[id_, item.kernel.name] = name
                function = item.function.with_attr("global_symbol", name)
                kernels.append(replace(item, kernel=replace(item.kernel, name=name), function=function))
        self._library = KernelLibrary(kernels, target) if kernels else None

    def run(self, id_: str, *inputs: Array) -> list[Array]:
        """The outputs; raises IndexError if a kernel reported an index out of bounds."""
        lowered, prepared = self._plans[id_]
        plan = lowered.plan
        env: dict[str, Array] = dict(prepared)
        env |= {item.value.name: array for item, array in zip(plan.inputs, inputs, strict=True)}
        for step in plan.steps:
            if isinstance(step, View):
                env[step.output.name] = env[step.input.name].reshape(step.output.type.static_shape())
                continue
            assert self._library is not None
            name = self._names[id_, step.kernel]
            results = self._library.run(name, *(env[value.name] for value in step.inputs))
            env.update({value.name: result for value, result in zip(step.outputs, results, strict=True)})
        outputs = []
        for value in plan.outputs:
            array = env[value.name]
            dtype = numpy_dtype(value.dtype)
            outputs.append(array if array.dtype == dtype else array.view(dtype))
        return outputs
