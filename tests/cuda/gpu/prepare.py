"""Everything that needs the transpiler and no GPU: kernels and packages in a folder that is carried to one. Packages of
large models are without their weights, which are drawn there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.conformance.kernels import op_group
from tests.conformance.selection import OWN
from tests.conformance.test_ops_on_targets import double_reference, reference
from tests.cuda.gpu.calls import FACTS
from tests.cuda.gpu.cases import ODD, Case, Convolution, Gemm, ModelCase, kernel_cases, model_cases, odd
from tests.cuda.gpu.results import Part
from tests.cuda.test_ops import samples
from tests.models.support import FILES, Built, load
from transpiler import transpile
from transpiler.errors import TranspileError, TranspileErrors
from transpiler.gpu.cuda import compile_kernels, cuda_source
from transpiler.gpu.launch_list import render_launches
from transpiler.group import Group, Lowered, make_group
from transpiler.ir import Node, TensorType, Value
from transpiler.ops.attention import Attention
from transpiler.ops.base import Op
from transpiler.ops.conv import Conv
from transpiler.ops.linalg import Linear, Matmul
from transpiler.request import Precision
from transpiler.schedule import import_schedule, schedule
from transpiler.target import Target, load_targets
from transpiler.tuning import plan_of_calls

TINY_FAMILIES, TINY_FILES = ("rounding",), ("mlp",)
CANDIDATES = 6  # tiles of a product that are measured, best first by the rule
TOGETHER = 10  # sizes in one file of machine code
KINDS = ("bfloat16", "float32", "tf32")


def prepare(work: Path, parts: Sequence[str], archs: Sequence[str], only: str, *, tiny: bool) -> list[str]:
    """Fill `work`; what failed, by name."""
    steps: Mapping[str, Callable[[], list[str]]] = {
        "kernels": lambda: _families(work, archs, only, tiny),
        "suites": lambda: _suites(work, archs, only, tiny),
        "timed": lambda: _timed(work, archs, only, tiny),
        "models": lambda: _models(work, archs, only, tiny),
        "tiles": lambda: _tiles(work, archs, only, tiny),
    }
    return [name for part in parts for name in steps[part]()]


def library(
    folder: Path,
    groups: Mapping[str, Group],
    archs: Sequence[str],
    answers: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, str]:
    """Kernels for some groups in a folder; the reasons of those that are refused."""
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
        name: {"call": number, "dtypes": [value.dtype for value in groups[name].inputs]}
        for number, name in enumerate(fitting)
    }
    facts = {"variants": list(compiled), "calls": calls, "refused": refused}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    return refused


def _without_text(items: Mapping[str, Lowered], target: Target) -> dict[str, str]:
    try:
        cuda_source(list(items.values()), target.tvm_target())
    except TranspileErrors as error:
        return {name: problem.message for name in items for problem in error.problems if f"{name!r}" in problem.message}
    return {}


def single(op: Op, shapes: Sequence[tuple[int, ...]], dtype: str) -> Group:
    """A group of one op."""
    values = tuple(Value(f"x{number}", TensorType(dtype, shape)) for number, shape in enumerate(shapes))
    (type_,) = op.infer_types([value.type for value in values])
    result = Value("y", type_)
    return make_group((Node(op, values, (result,)),), (result,))


def group_of(case: Case, dtype: str) -> Group:
    if isinstance(case, Gemm):
        return single(Linear(), case.shapes, dtype)
    if isinstance(case, Convolution):
        stride, padding = (case.stride,) * 2, (case.padding,) * 2
        return single(Conv(stride, padding, (1, 1)), case.shapes, dtype)
    return single(Attention(causal=case.causal), case.shapes, dtype)


# --- parts


def _run(work: Path, name: str, only: str, todo: Mapping[str, Callable[[], object]]) -> list[str]:
    part = Part(work, f"prepare.{name}", only=only)
    part.run([(key, lambda make=make: {"refused": make() or {}}) for key, make in todo.items()])
    return part.failed


def _families(work: Path, archs: Sequence[str], only: str, tiny: bool) -> list[str]:
    def family(name: str) -> dict[str, str]:
        chosen = {f"k{number}": sample for number, sample in enumerate(samples(name))}
        groups = {key: op_group(sample.op, sample.inputs) for key, sample in chosen.items()}
        refused = library(work / "kernels" / name, groups, archs)
        arrays = {}
        for key, sample in chosen.items():
            if key in refused:
                continue
            for kind, found in (
                ("input", sample.inputs), ("single", reference(sample)), ("double", double_reference(sample)),
            ):  # fmt: skip
                arrays |= {f"{key}.{kind}.{number}": array for number, array in enumerate(found)}
        np.savez_compressed(work / "kernels" / name / "cases.npz", **arrays)
        return refused

    names = TINY_FAMILIES if tiny else OWN
    return _run(work, "kernels", only, {name: lambda name=name: family(name) for name in names})


def _suites(work: Path, archs: Sequence[str], only: str, tiny: bool) -> list[str]:
    """Packages with their generated tests and their weights."""

    def suite(name: str, built: Built, precision: Precision) -> None:
        _package(work / "suites", name, built, archs, precision)

    todo: dict[str, Callable[[], object]] = {}
    for name in TINY_FILES if tiny else FILES:
        todo[name] = lambda name=name: suite(name, load(name), "float32")
    if not tiny:
        for name, precision in ODD.items():
            todo[name] = lambda name=name, precision=precision: suite(name, odd(), precision)
    return _run(work, "suites", only, todo)


def _package(folder: Path, name: str, built: Built, archs: Sequence[str], precision: Precision) -> Path:
    module, args, kwargs = built
    folder.mkdir(parents=True, exist_ok=True)
    return transpile(
        module, args=args, kwargs=kwargs, target="cuda", arch=list(archs), name=name, out=folder,
        precision=precision,
    ).path  # fmt: skip


def _timed(work: Path, archs: Sequence[str], only: str, tiny: bool) -> list[str]:
    def part(name: str, cases: Mapping[str, Case]) -> dict[str, str]:
        return library(work / "timed" / name, {key: group_of(case, "bfloat16") for key, case in cases.items()}, archs)

    todo = {name: lambda name=name, cases=cases: part(name, cases) for name, cases in kernel_cases(tiny).items()}
    return _run(work, "timed", only, todo)


def _models(work: Path, archs: Sequence[str], only: str, tiny: bool) -> list[str]:
    def model(case: ModelCase) -> None:
        path = _package(work / "models", case.key, case.build(), archs, case.precision)
        manifest = json.loads((path / "src" / case.key / "manifest.json").read_text())
        (path / "src" / case.key / manifest["weights"]["file"]).unlink()
        shutil.rmtree(path / "tests")

    return _run(work, "models", only, {case.key: lambda case=case: model(case) for case in model_cases(tiny)})


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
    if batches == 1:
        return single(Linear(precision=precision), ((rows, inner), (columns, inner)), dtype)
    return single(Matmul(True, precision=precision), ((batches, rows, inner), (batches, columns, inner)), dtype)
