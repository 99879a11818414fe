"""Whether what runs on the device is right: kernels against float64 in poisoned memory, packages by their own tests and
fresh inputs, replays, two streams at once, NVIDIA's checker of memory and races."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conformance.compare import check
from tests.cuda.gpu.calls import Calls
from tests.cuda.gpu.cases import ODD, odd
from tests.cuda.gpu.results import Part
from tests.models.support import Built, assert_equal_to_pytorch, convert, fresh, load
from transpiler.loading import load_package
from transpiler.testing import run_generated_tests

REPLAYS = 100
TOOLS = ("memcheck", "racecheck")
# Of the largest value of a model in lower precision, against float64: its weights and activations are rounded.
ROUNDINGS = {"float16": 2.0**-7, "bfloat16": 2.0**-4, "tf32": 2.0**-7}


def checks(work: Path, parts: Sequence[str], end: float, only: str, sanitizer: str | None) -> list[str]:
    """What is wrong, by name. Parts: kernels, suites, sanitizer."""
    wrong = []
    for name in parts:
        part = Part(work, f"check.{name}", end, only)
        part.run(_items(work, name, sanitizer))
        wrong += [f"{name} {key}" for key in part.failed]
    return wrong


def _items(work: Path, name: str, sanitizer: str | None) -> Iterator[tuple[str, Callable[[], Any]]]:
    if name == "suites":
        for folder in _folders(work / "suites"):
            yield folder.name, lambda folder=folder: {"problems": suite(folder)}
        return
    for folder in _folders(work / "kernels"):
        if name == "kernels":
            yield folder.name, lambda folder=folder: {"problems": family(folder)}
            continue
        for tool in TOOLS:
            yield (
                f"{tool} {folder.name}",
                lambda folder=folder, tool=tool: sanitized(work, sanitizer, tool, folder.name),
            )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def family(folder: Path, turns: int = REPLAYS) -> list[str]:
    """Every sample's results against float64, the second and the hundredth replay."""
    arrays = np.load(folder / "cases.npz")
    calls = Calls(folder)
    problems = []
    for name in calls.names:
        inputs, singles, doubles = (_numbered(arrays, f"{name}.{kind}.") for kind in ("input", "single", "double"))
        found = calls.run(name, inputs, singles, max(turns, 2))
        for data, first, again, single, double in zip(found[0], found[1], found[-1], singles, doubles, strict=True):
            got = np.frombuffer(data, single.dtype).reshape(single.shape)
            problems += check(name, got, single, double)
            if not data == first == again:
                problems.append(f"{name}: the second or the hundredth replay gives other bits")
    return problems


def _numbered(arrays: Any, prefix: str) -> list[Any]:
    keys = sorted((key for key in arrays.files if key.startswith(prefix)), key=lambda key: int(key.rpartition(".")[2]))
    return [arrays[key] for key in keys]


def suite(folder: Path) -> list[str]:
    """The generated tests; fresh inputs against float64; replays; two streams at once."""
    name = folder.name
    built = odd() if name in ODD else load(name)
    tests = run_generated_tests(folder)
    problems = [] if tests.ok else [tests.output[-1500:]]
    with load_package(folder, name).Model() as runner:
        if ODD.get(name, "float32") == "float32":
            assert_equal_to_pytorch(runner, built, seed=2)
        else:
            problems += _in_lower_precision(runner, built, ODD[name])
        flat = [array.numpy() for array in _tensors(built)]
        first = [array.tobytes() for array in runner.infer(*flat)]
        for turn in range(2, REPLAYS + 1):
            if [array.tobytes() for array in runner.infer(*flat)] != first:
                problems.append(f"replay {turn} gives other bits")
                break
        if torch.cuda.is_available():
            problems += _on_two_streams(runner, built, first)
    return problems


def _tensors(built: Built) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    convert((built[1], built[2]), found.append)
    return found


def _in_lower_precision(runner: Any, built: Built, precision: str) -> list[str]:
    module, args, _ = built
    inputs = fresh(args, torch.Generator().manual_seed(7))
    with torch.no_grad():
        exact = module.double()(*[item.double() for item in inputs]).numpy()
    module.float()
    got = np.asarray(runner(*[item.numpy() for item in inputs]), np.float64)
    error, limit = np.abs(got - exact).max(), ROUNDINGS[precision] * np.abs(exact).max()
    return [] if error <= limit else [f"off by {error:.3g} of fresh inputs, {limit:.3g} allowed"]


def _on_two_streams(runner: Any, built: Built, first: Sequence[bytes]) -> list[str]:
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    tensors = [item.cuda() for item in _tensors(built)]
    torch.cuda.synchronize()
    results = [runner.infer(*tensors, stream=streams[turn % 2]) for turn in range(REPLAYS)]
    torch.cuda.synchronize()
    same = all([output.numpy().tobytes() for output in outputs] == list(first) for outputs in results)
    return [] if same else ["two streams at once give other bits"]


def sanitized(work: Path, sanitizer: str | None, tool: str, name: str) -> dict[str, Any]:
    """One run of a family's kernels under a tool of compute-sanitizer."""
    if sanitizer is None:
        return {"left_out": "there is no compute-sanitizer"}
    command = [sanitizer, "--tool", tool, "--error-exitcode", "7", sys.executable, "-m", "tests.cuda.on_gpu", "family"]
    done = subprocess.run(
        [*command, "--work", str(work), "--only", name], capture_output=True, text=True, check=False, timeout=300
    )
    text = done.stdout[-1500:] + done.stderr[-500:]
    if "Device not supported" in text:
        return {"left_out": "compute-sanitizer does not support this device"}
    return {"problems": [] if done.returncode == 0 else [text]}
