"""Everything that needs the transpiler and no GPU: kernels and packages in a folder that is carried to one. Packages of
large models are without their weights, which are drawn there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.cuda.gpu.cases import ODD, Case, Convolution, Gemm, kernel_cases, model_cases, odd
from tests.cuda.gpu.emulated import Run, collected, files_with_kernels
from tests.cuda.gpu.families import Member, families, single
from tests.cuda.gpu.kernels import KEPT, keep
from tests.cuda.gpu.library import library, write
from tests.cuda.gpu.packages import fresh_cases, tested, untested
from tests.cuda.gpu.results import PREPARED, Part
from tests.models import precise
from tests.models.redraw import redraw
from tests.models.support import FILES, Built, load
from transpiler.group import Group
from transpiler.ir import TensorType
from transpiler.ops.attention import Attention
from transpiler.ops.conv import Conv
from transpiler.ops.linalg import Linear, Matmul
from transpiler.request import PRECISIONS, Precision
from transpiler.schedule import import_schedule, schedule
from transpiler.target import Target, load_targets

TINY_FILES = ("mlp",)
CANDIDATES = 6  # tiles of a product that are measured, best first by the rule
TOGETHER = 10  # sizes in one file of machine code
KINDS = ("bfloat16", "float32", "tf32")
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
    if not tiny:  # a device needs no text; the stand-in does
        for file in (file for part in ("kernels", "timed", "tiles") for file in (work / part).rglob("*.cu")):
            file.unlink()
    for part in steps:
        size = sum(path.stat().st_size for path in (work / part).rglob("*") if path.is_file())
        print(f"{part}: {size / 1e6:.1f} MB{', more than is carried at a time' if size > CARRIED else ''}", flush=True)
    return failed


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

    targets = load_targets("cuda", archs)
    todo: dict[str, Callable[[], object]] = {
        name: lambda name=name, make=make: family(name, make())
        for name, make in families(targets[0], tiny=tiny).items()
    }
    if not tiny:
        todo |= {
            name: lambda name=name, file=file: _emulated(work / "kernels", name, collected(file), targets[:1])
            for name, file in files_with_kernels().items()
        }
    return _run(work, "kernels", only, todo)


def _emulated(folder: Path, name: str, parts: Sequence[Mapping[str, Run]], targets: Sequence[Target]) -> None:
    """A folder for each part of the kernels that tests over the emulator ran, all as code of one architecture."""
    for number, part in enumerate(parts):
        kernels = {targets[0].variant.name: {key: run.lowered for key, run in part.items()}}
        own = folder / f"{name}.{number}"
        write(own, kernels, targets, {key: {"sizes": run.sizes} for key, run in part.items()}, {})
        keep(own / KEPT, {key: run.sets for key, run in part.items()})


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
