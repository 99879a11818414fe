"""Everything that needs the transpiler and no GPU: kernels and packages in a folder that is carried to one. Packages of
large models are without their weights, which are drawn there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cuda.gpu.calls import FACTS
from tests.cuda.gpu.cases import ODD, Case, Convolution, Gemm, kernel_cases, model_cases, odd
from tests.cuda.gpu.families import Member, families, single
from tests.cuda.gpu.kernels import KEPT, keep
from tests.cuda.gpu.packages import fresh_cases, tested, untested
from tests.cuda.gpu.results import PREPARED, Part
from tests.models import precise
from tests.models.redraw import redraw
from tests.models.support import FILES, Built, load
from transpiler.errors import TranspileError, TranspileErrors
from transpiler.gpu.cuda import compile_kernels, cuda_source
from transpiler.gpu.launch_list import render_launches
from transpiler.group import Group, Lowered
from transpiler.ir import TensorType
from transpiler.ops.attention import Attention
from transpiler.ops.conv import Conv
from transpiler.ops.linalg import Linear, Matmul
from transpiler.request import PRECISIONS, Precision
from transpiler.schedule import import_schedule, schedule
from transpiler.target import Target, load_targets
from transpiler.tuning import plan_of_calls

TINY_FILES = ("mlp",)
CANDIDATES = 6  # tiles of a product that are measured, best first by the rule
TOGETHER = 10  # sizes in one file of machine code
KINDS = ("bfloat16", "float32", "tf32")
# What the text of a kernel says of the units that it uses: the report counts kernels that were checked by it.
UNITS = {
    "wgmma": "wgmma_", "mma.sync": "mma_", "cp.async": "copies_", "TMA": "CUtensorMap", "mbarrier": "barrier_",
    "shuffles": "__shfl", "shared memory": "__shared__", "clusters": "cluster",
}  # fmt: skip
# What is carried at a time, with everything else of this repository, on machines that are lent.
CARRIED = 64 << 20


def prepare(work: Path, parts: Sequence[str], archs: Sequence[str], only: str, *, tiny: bool) -> list[str]:
    """Fill `work`; what failed, by name."""
    steps: Mapping[str, Callable[[], list[str]]] = {
        "kernels": lambda: _kernels(work, archs, only, tiny),
        "suites": lambda: _suites(work, archs, only, tiny),
        "timed": lambda: _timed(work, archs, only, tiny),
        "models": lambda: _models(work, archs, only, tiny),
        "tiles": lambda: _tiles(work, archs, only, tiny),
    }
    failed = [name for part in parts for name in steps[part]()]
    for part in steps:
        size = sum(path.stat().st_size for path in (work / part).rglob("*") if path.is_file())
        print(f"{part}: {size / 1e6:.1f} MB{', more than is carried at a time' if size > CARRIED else ''}", flush=True)
    return failed


def library(
    folder: Path,
    groups: Mapping[str, Group],
    archs: Sequence[str],
    answers: Mapping[str, Mapping[str, str]] | None = None,
    said: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, str]:
    """Kernels for some groups in a folder; the reasons of those that are refused. `said`: more facts of each."""
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
    fitting = [name for name in groups if name not in refused]
    kernels = {variant: [found[name] for name in fitting] for variant, found in items.items()}
    compiled = compile_kernels(kernels, targets)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for variant, item in compiled.items():
        plan = plan_of_calls([(groups[name], items[variant][name]) for name in fitting])
        (folder / item.list_file).write_bytes(render_launches([plan], item))
        for file, data in item.files.items():
            (folder / file).write_bytes(data)
    calls = {
        name: {"call": number, "dtypes": [value.dtype for value in groups[name].inputs], **(said or {}).get(name, {})}
        for number, name in enumerate(fitting)
    }
    texts = [data.decode() for item in compiled.values() for file, data in item.files.items() if file.endswith(".cu")]
    facts = {"variants": list(compiled), "calls": calls, "refused": refused, "units": _units("".join(texts))}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    return refused


def _without_text(items: Mapping[str, Lowered], target: Target) -> dict[str, str]:
    try:
        cuda_source(list(items.values()), target.tvm_target())
    except TranspileErrors as error:
        return {name: problem.message for name in items for problem in error.problems if f"{name!r}" in problem.message}
    return {}


def _units(text: str) -> dict[str, int]:
    """How many kernels of a text use what."""
    bodies = [body for body in text.split('extern "C"') if "{" in body][1:]
    return {name: sum(word in body for body in bodies) for name, word in UNITS.items()}


def group_of(case: Case, dtype: str) -> Group:
    """A product that is timed."""
    types = [TensorType(dtype, shape) for shape in case.shapes]
    if isinstance(case, Gemm):
        return single(Linear(), types)
    if isinstance(case, Convolution):
        stride, padding = (case.stride,) * 2, (case.padding,) * 2
        return single(Conv(stride, padding, (1, 1)), types)
    return single(Attention(causal=case.causal), types)


# --- parts


def _run(work: Path, name: str, only: str, todo: Mapping[str, Callable[[], object]]) -> list[str]:
    part = Part(work / PREPARED, name, only=only)
    part.run([(key, lambda make=make: {"refused": make() or {}}) for key, make in todo.items()])
    return part.failed


def _kernels(work: Path, archs: Sequence[str], only: str, tiny: bool) -> list[str]:
    def family(name: str, made: Mapping[str, Member]) -> dict[str, str]:
        folder = work / "kernels" / name
        refused = library(
            folder,
            {key: item.group for key, item in made.items()},
            archs,
            {key: item.answers for key, item in made.items() if item.answers},
            {key: item.facts for key, item in made.items()},
        )
        keep(folder / KEPT, {key: item.kept for key, item in made.items() if key not in refused})
        return refused

    todo = families(load_targets("cuda", archs)[0], tiny=tiny)
    return _run(
        work, "kernels", only, {name: lambda name=name, make=make: family(name, make()) for name, make in todo.items()}
    )


def _suites(work: Path, archs: Sequence[str], only: str, tiny: bool) -> list[str]:
    """Packages with their generated tests, their weights, and fresh inputs with what they have to give."""

    def suite(name: str, built: Built, precision: Precision) -> None:
        path = tested(work / "suites", name, built, archs, precision)
        fresh_cases(path / KEPT, built, precision)

    todo: dict[str, Callable[[], object]] = {}
    for name in TINY_FILES if tiny else FILES:
        todo[name] = lambda name=name: suite(name, load(name), "float32")
    for name, precision in {} if tiny else ODD.items():
        todo[name] = lambda name=name, precision=precision: suite(name, odd(), precision)
    for name, build in {} if tiny else precise.MODELS.items():
        for precision in PRECISIONS[1:]:
            key = f"{name}_{precision}"
            todo[key] = lambda key=key, build=build, precision=precision: suite(key, _redrawn(build()), precision)
    return _run(work, "suites", only, todo)


def _redrawn(built: Built) -> Built:
    module, args, kwargs = built
    return redraw(module, 1), args, kwargs


def _timed(work: Path, archs: Sequence[str], only: str, tiny: bool) -> list[str]:
    def part(name: str, cases: Mapping[str, Case]) -> dict[str, str]:
        return library(work / "timed" / name, {key: group_of(case, "bfloat16") for key, case in cases.items()}, archs)

    todo = {name: lambda name=name, cases=cases: part(name, cases) for name, cases in kernel_cases(tiny).items()}
    return _run(work, "timed", only, todo)


def _models(work: Path, archs: Sequence[str], only: str, tiny: bool) -> list[str]:
    todo = {
        case.key: lambda case=case: untested(work / "models", case.key, case.build(), archs, case.precision) and None
        for case in model_cases(tiny)
    }
    return _run(work, "models", only, todo)


def _tiles(work: Path, archs: Sequence[str], only: str, tiny: bool) -> list[str]:
    """The best tiles by the rule for every size of the table."""
    table = import_schedule("cuda.table").table()
    todo: dict[str, Callable[[], object]] = {}
    for target in load_targets("cuda", archs):
        arch = target.gpu.arch
        for kind in KINDS:
            sizes = ["1x24x48x8"] if tiny else list(table[arch][kind])
            for start in range(0, len(sizes), TOGETHER):
                key = f"{arch}.{kind}.{start // TOGETHER}"
                chosen = sizes[start : start + TOGETHER]
                todo[key] = lambda key=key, kind=kind, chosen=chosen, target=target: _candidates(
                    work / "tiles" / key, kind, chosen, target
                )
    return _run(work, "tiles", only, todo)


def _candidates(folder: Path, kind: str, sizes: Sequence[str], target: Target) -> dict[str, str]:
    groups, answers, tiles = {}, {}, {}
    for number, text in enumerate(sizes):
        group = _product(kind, import_schedule("cuda.table").parse_sizes(text))
        points = schedule(group, target, "probe").points
        for index, tile in enumerate(points[0].candidates[:CANDIDATES] if points else ()):
            name = f"s{number}_{index}"
            groups[name], answers[name], tiles[name] = group, {"tile": tile}, [text, tile]
    refused = library(folder, groups, [target.gpu.arch], answers)
    (folder / "tiles.json").write_text(json.dumps(tiles, indent=1) + "\n")
    return refused


def _product(kind: str, sizes: tuple[int, ...]) -> Group:
    batches, rows, columns, chunks = sizes
    precision, dtype = ("tf32", "float32") if kind == "tf32" else ("", kind)
    inner = chunks * (8 if kind in ("float16", "bfloat16") else 4)
    shapes: list[tuple[int, ...]] = [(rows, inner), (columns, inner)]
    if batches == 1:
        return single(Linear(precision=precision), [TensorType(dtype, shape) for shape in shapes])
    types = [TensorType(dtype, (batches, *shape)) for shape in shapes]
    return single(Matmul(True, precision=precision), types)
