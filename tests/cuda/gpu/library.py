"""Kernels as files in a folder, with the facts that `calls` reads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cuda.gpu.calls import FACTS
from transpiler.errors import TranspileError, TranspileErrors
from transpiler.gpu.cuda import compile_kernels, cuda_source
from transpiler.gpu.launch_list import render_launches
from transpiler.group import Group, Lowered
from transpiler.ir import Graph, Value
from transpiler.plan import Call, KernelPlan, Storage
from transpiler.schedule import schedule
from transpiler.target import Target, load_targets

# What the text of a kernel says of the units that it uses: the report counts kernels that were checked by it.
UNITS = {
    "wgmma": r"\bwgmma_", "mma.sync": r"\bmma_", "cp.async": r"\bcopies_", "TMA": r"\bCUtensorMap\b",
    "mbarrier": r"\bbarrier_", "clusters": r"cluster", "shared memory": r"\b__shared__\b", "shuffles": r"\b__shfl_",
}  # fmt: skip
Kernels = Mapping[str, Mapping[str, Lowered]]


def library(
    folder: Path,
    groups: Mapping[str, Group],
    archs: Sequence[str],
    answers: Mapping[str, Mapping[str, str]] | None = None,
    said: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, str]:
    """Kernels for some groups in a folder; the reasons of those that are refused.

    Args:
        answers: to choices of their schedules.
        said: more facts of each, for the machine with the GPU.
    """
    refused: dict[str, str] = {}
    targets = load_targets("cuda", archs)
    items: dict[str, dict[str, Lowered]] = {target.variant.name: {} for target in targets}
    for target in targets:
        for name, group in groups.items():
            try:
                items[target.variant.name][name] = schedule(group, target, name, (answers or {}).get(name))
            except (LookupError, TranspileError, TranspileErrors) as error:
                refused[name] = str(error)
        refused |= _without_text(items[target.variant.name], target)
    fitting = {name for name in groups if name not in refused}
    kept = {variant: {name: found[name] for name in found if name in fitting} for variant, found in items.items()}
    write(folder, kept, targets, said or {}, refused)
    return refused


def write(
    folder: Path, kernels: Kernels, targets: Sequence[Target], said: Mapping[str, Mapping[str, Any]],
    refused: Mapping[str, str],
) -> None:  # fmt: skip
    """The machine code of kernels, by variant and name, their lists of launches, and facts. Raises TranspileErrors."""
    compiled = compile_kernels({variant: list(found.values()) for variant, found in kernels.items()}, targets)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for variant, item in compiled.items():
        (folder / item.list_file).write_bytes(render_launches([_plan(kernels[variant])], item))
        for file, data in item.files.items():
            (folder / file).write_bytes(data)
    calls = {
        name: {"call": number, "dtypes": [type_.dtype for type_ in item.kernel.inputs], **said.get(name, {})}
        for number, (name, item) in enumerate(kernels[targets[0].variant.name].items())
    }
    texts = [data.decode() for item in compiled.values() for file, data in item.files.items() if file.endswith(".cu")]
    facts = {"variants": list(compiled), "calls": calls, "refused": dict(refused), "units": _units("".join(texts))}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")


def _plan(kernels: Mapping[str, Lowered]) -> KernelPlan:
    """A function that calls every kernel once; it is never run as a whole."""
    calls = []
    for name, item in kernels.items():
        values = {
            word: tuple(Value(f"{name}_{word}{number}", type_) for number, type_ in enumerate(types))
            for word, types in (("x", item.kernel.inputs), ("y", item.kernel.outputs))
        }
        calls.append(Call(item.kernel.name, values["x"], values["y"]))
    return KernelPlan(
        function="calls",
        kernels=tuple(item.kernel for item in kernels.values()),
        steps=tuple(calls),
        inputs=(),
        outputs=(),
        weights=(),
        prepare=Graph("prepare", (), (), ()),
        storage={value.name: Storage("arena") for call in calls for value in (*call.inputs, *call.outputs)},
        arena_bytes=0,
        weight_bytes=0,
    )


def _without_text(items: Mapping[str, Lowered], target: Target) -> dict[str, str]:
    try:
        cuda_source(list(items.values()), target.tvm_target())
    except TranspileErrors as error:
        return {name: problem.message for name in items for problem in error.problems if f"{name!r}" in problem.message}
    return {}


def _units(text: str) -> dict[str, int]:
    """How many kernels of a text use what."""
    bodies = [body for body in text.split('extern "C"') if "{" in body][1:]
    return {name: sum(re.search(word, body) is not None for body in bodies) for name, word in UNITS.items()}
