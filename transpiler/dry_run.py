"""`--check`: what a model is made of, and the reasons against it that a failed import did not come to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transpiler.frontend import Model
from transpiler.ir import Role
from transpiler.plan import KernelPlan, output_names


@dataclass(frozen=True)
class Checked:
    """What a model that can be transpiled is made of.

    `inputs` and `outputs` are (name, type) in flat order, `operators` counts the imported graph's ops by name,
    `parameters` and `buffers` count elements, `weight_bytes` is what they take in the package's layout.
    """

    name: str
    target: str
    isas: tuple[str, ...]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    operators: Mapping[str, int]
    kernels: int
    calls: int
    parameters: int
    buffers: int
    weight_bytes: int
    dtypes: tuple[str, ...]


def checked(name: str, model: Model, plans: Sequence[KernelPlan], target: str, isas: Sequence[str]) -> Checked:
    graphs = model.program.functions.values()

    def elements(*roles: Role) -> int:
        tensors = {item.key: item.value.type for graph in graphs for item in graph.inputs if item.role in roles}
        return sum(math.prod(type_.static_shape()) for type_ in tensors.values())

    def label(plan: KernelPlan, name: str) -> str:
        return name if len(plans) == 1 else f"{plan.function}.{name}"

    return Checked(
        name=name,
        target=target,
        isas=tuple(isas),
        inputs=tuple((label(plan, item.key), str(item.value.type)) for plan in plans for item in plan.user_inputs),
        outputs=tuple(
            (label(plan, output), str(value.type))
            for plan in plans
            for output, value in zip(output_names(plan), plan.outputs, strict=True)
        ),
        operators=Counter(node.op.name for graph in graphs for node in graph.nodes),
        kernels=len(plans[0].kernels),
        calls=sum(len(plan.calls()) for plan in plans),
        parameters=elements(Role.PARAMETER),
        buffers=elements(Role.BUFFER, Role.STATE),
        weight_bytes=plans[0].weight_bytes,
        dtypes=tuple(sorted({value.dtype for graph in graphs for value in graph.values()})),
    )


def summary(result: Checked) -> list[str]:
    """The lines that `transpile --check` prints."""
    counts = sorted(result.operators.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{count} {name}" for name, count in counts[:8])
    more = f" and {sum(count for _, count in counts[8:])} others" if len(counts) > 8 else ""
    buffers = f", {result.buffers:,} in buffers" if result.buffers else ""
    total = sum(result.operators.values())
    return [
        f"{result.name} can be transpiled for {result.target} ({', '.join(result.isas)})",
        f"  inputs      {_types(result.inputs)}",
        f"  outputs     {_types(result.outputs)}",
        f"  operators   {total}: {shown}{more}" if total else "  operators   none",
        f"  kernels     {result.kernels}, called {result.calls} times",
        f"  parameters  {result.parameters:,}{buffers}; {_size(result.weight_bytes)} when packed",
        f"  dtypes      {', '.join(result.dtypes)}",
    ]


def _types(items: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name}: {type_}" for name, type_ in items) or "none"


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
