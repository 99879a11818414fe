"""`--check`: what a model is made of, and the reasons against it that a failed import did not come to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transpiler.ir import Role
from transpiler.plan import KernelPlan, output_names

if TYPE_CHECKING:
    from transpiler.frontend import Model
    from transpiler.lower import LoweredProgram


@dataclass(frozen=True)
class Built:
    """What a target would have: its variants, kernels, calls of them, and bytes of weights in its layout."""

    variants: tuple[str, ...]
    kernels: int
    calls: int
    weight_bytes: int


@dataclass(frozen=True)
class Checked:
    """What a model that can be transpiled is made of.

    `inputs` and `outputs` are (name, type) in flat order, `operators` counts the imported graph's ops by name,
    `parameters` and `buffers` count elements.
    """

    name: str
    targets: Mapping[str, Built]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    operators: Mapping[str, int]
    parameters: int
    buffers: int
    dtypes: tuple[str, ...]


def checked(name: str, model: Model, lowered: Mapping[str, Mapping[str, LoweredProgram]]) -> Checked:
    """`lowered` is the program for every target and each of its variants."""
    plans = next(iter(next(iter(lowered.values())).values())).plans
    graphs = model.program.functions.values()

    def elements(*roles: Role) -> int:
        tensors = {item.key: item.value.type for graph in graphs for item in graph.inputs if item.role in roles}
        return sum(math.prod(type_.static_shape()) for type_ in tensors.values())

    def label(plan: KernelPlan, name: str) -> str:
        return name if len(plans) == 1 else f"{plan.function}.{name}"

    return Checked(
        name=name,
        targets={target: _built(variants) for target, variants in lowered.items()},
        inputs=tuple((label(plan, item.key), str(item.value.type)) for plan in plans for item in plan.user_inputs),
        outputs=tuple(
            (label(plan, output), str(value.type))
            for plan in plans
            for output, value in zip(output_names(plan), plan.outputs, strict=True)
        ),
        operators=Counter(node.op.name for graph in graphs for node in graph.nodes),
        parameters=elements(Role.PARAMETER),
        buffers=elements(Role.BUFFER, Role.STATE),
        dtypes=tuple(sorted({value.dtype for graph in graphs for value in graph.values()})),
    )


def _built(variants: Mapping[str, LoweredProgram]) -> Built:
    plans = next(iter(variants.values())).plans
    calls = sum(len(plan.calls()) for plan in plans)
    # Between its tensors may lie those of other targets.
    nbytes = [value.type.bytes for value in plans[0].weights]
    return Built(tuple(variants), len(plans[0].kernels), calls, sum(size for size in nbytes if isinstance(size, int)))


def summary(result: Checked) -> list[str]:
    """The lines that `transpile --check` prints."""
    counts = sorted(result.operators.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{count} {name}" for name, count in counts[:8])
    more = f" and {sum(count for _, count in counts[8:])} others" if len(counts) > 8 else ""
    buffers = f", {result.buffers:,} in buffers" if result.buffers else ""
    total = sum(result.operators.values())
    several = len(result.targets) > 1
    targets = ", ".join(f"{name} ({', '.join(built.variants)})" for name, built in result.targets.items())
    kernels = [
        f"{f'{name} ' * several}{built.kernels}, called {built.calls} times" for name, built in result.targets.items()
    ]
    packed = [f"{_size(built.weight_bytes)}{f' ({name})' * several}" for name, built in result.targets.items()]
    return [
        f"{result.name} can be transpiled for {targets}",
        f"  inputs      {_types(result.inputs)}",
        f"  outputs     {_types(result.outputs)}",
        f"  operators   {total}: {shown}{more}" if total else "  operators   none",
        f"  kernels     {'; '.join(kernels)}",
        f"  parameters  {result.parameters:,}{buffers}; {' and '.join(packed)} when packed",
        f"  dtypes      {', '.join(result.dtypes)}",
    ]


def _types(items: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name}: {type_}" for name, type_ in items) or "none"


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
