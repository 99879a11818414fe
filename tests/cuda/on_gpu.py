"""What only a GPU can show. On a machine with one and the project's `dev` extra:

    python -m tests.cuda.on_gpu check [--sanitizer compute-sanitizer] [--only WORD] # numbers, replays, streams, memory
    python -m tests.cuda.on_gpu time [--json FILE] [--models mlp,mnist] # against PyTorch with CUDA

Each takes a few minutes; `--only` splits them. Exit code 1: something is wrong, in lines that begin with FAILED.
`kernels FAMILY` is what `check` runs under the sanitizer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conformance.kernels import op_group
from tests.conformance.selection import OWN
from tests.conformance.test_ops_on_targets import check, double_reference, reference
from tests.cuda.device_library import DeviceLibrary, variant_here
from tests.cuda.test_ops import samples
from tests.models.support import FILES, assert_equal_to_pytorch, load
from transpiler import transpile
from transpiler.schedule import schedule
from transpiler.target import load_target

TOOLS = ("memcheck", "racecheck")
REPLAYS, RUNS = 100, 50


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.on_gpu", description=__doc__)
    parser.add_argument("command", choices=["check", "time", "kernels"])
    parser.add_argument("family", nargs="?", help="for kernels")
    parser.add_argument("--sanitizer", default=shutil.which("compute-sanitizer"), help="its path; none: left out")
    parser.add_argument("--only", default="", help="checks whose name contains this")
    parser.add_argument("--json", type=Path, default=Path("cuda-times.json"))
    parser.add_argument("--models", default=",".join(FILES))
    options = parser.parse_args(arguments)
    if options.command == "kernels":
        return report(f"kernels {options.family}", lambda: kernels(options.family))
    if options.command == "time":
        return measure(options.models.split(","), options.json)
    failed = 0
    for name, run in checks(options.sanitizer):
        if options.only in name:
            failed += report(name, run)
    return min(failed, 1)


def report(name: str, run: Callable[[], list[str]]) -> int:
    """Runs a check, prints what is wrong; 1 if anything is."""
    try:
        problems = run()
    except Exception as error:
        problems = [f"{type(error).__name__}: {error}"]
    for problem in problems:
        print(f"FAILED {name}: {problem}", flush=True)
    if not problems:
        print(f"ok {name}", flush=True)
    return int(bool(problems))


def checks(sanitizer: str | None) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    for family in OWN:
        yield f"kernels {family}", lambda family=family: kernels(family)
    for name in FILES:
        yield f"model {name}", lambda name=name: model(name)
    if sanitizer is None:
        print("no compute-sanitizer: memory and races are not checked", flush=True)
        return
    for tool in TOOLS:
        for family in OWN:
            yield f"{tool} {family}", lambda tool=tool, family=family: sanitized(sanitizer, tool, family)


def kernels(family: str) -> list[str]:
    """Samples of every op of a family, each kernel in memory that starts as NaNs, against float64."""
    target = load_target("cuda", variant_here())
    chosen = {f"k{number}": sample for number, sample in enumerate(samples(family))}
    items = [schedule(op_group(sample.op, sample.inputs), target, key) for key, sample in chosen.items()]
    problems = []
    with DeviceLibrary(items, target) as library:
        for key, sample in chosen.items():
            results = zip(library.run(key, *sample.inputs), reference(sample), double_reference(sample), strict=True)
            for got, single, double in results:
                problems += check(f"{sample.op.name}/{sample.id}", got, single, double)
    return problems


def sanitized(sanitizer: str, tool: str, family: str) -> list[str]:
    command = [sanitizer, "--tool", tool, "--error-exitcode", "7", sys.executable, "-m", "tests.cuda.on_gpu"]
    done = subprocess.run([*command, "kernels", family], capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 else [done.stdout[-1500:] + done.stderr[-500:]]


def model(name: str) -> list[str]:
    """The generated tests, fresh inputs against float64, the second and the hundredth replay, two streams at once."""
    built = load(name)
    module, args, kwargs = built
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        package = transpile(module, args=args, kwargs=kwargs, target="cuda", name=name, out=folder)
        tests = package.test()
        if tests.failed or not tests.passed:
            problems.append(tests.output[-1500:])
        with package.load() as runner:
            assert_equal_to_pytorch(runner, built, seed=2)
            inputs = [array.numpy() for array in args]
            first = [array.tobytes() for array in runner.infer(*inputs)]
            for turn in range(2, REPLAYS + 1):
                if [array.tobytes() for array in runner.infer(*inputs)] != first:
                    problems.append(f"replay {turn} gives other bits")
                    break
            if torch.cuda.is_available():
                problems += on_two_streams(runner, args, first)
    return problems


def on_two_streams(runner: Any, args: Sequence[torch.Tensor], first: Sequence[bytes]) -> list[str]:
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    tensors = [argument.cuda() for argument in args]
    results = [runner.infer(*tensors, stream=streams[turn % 2]) for turn in range(REPLAYS)]
    torch.cuda.synchronize()
    same = all([output.numpy().tobytes() for output in outputs] == list(first) for outputs in results)
    return [] if same else ["two streams at once give other bits"]


def measure(names: Sequence[str], path: Path) -> int:
    """Medians in milliseconds by the device's events, sides alternated, inputs on the device."""
    if not torch.cuda.is_available():
        print("FAILED time: this PyTorch has no CUDA, or there is no device")
        return 1
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "models": {}}
    for name in names:
        module, args, kwargs = load(name)
        with tempfile.TemporaryDirectory() as folder:
            package = transpile(module, args=args, kwargs=kwargs, target="cuda", name=name, out=folder)
            eager = module.cuda()
            compiled = torch.compile(eager, mode="max-autotune")
            tensors = [argument.cuda() for argument in args]
            with package.load() as runner, torch.inference_mode():
                sides: dict[str, Callable[[], Any]] = {
                    "package": lambda tensors=tensors, runner=runner: runner.infer(*tensors),
                    "eager": lambda tensors=tensors, eager=eager, kwargs=kwargs: eager(*tensors, **kwargs),
                    "compile": lambda tensors=tensors, compiled=compiled, kwargs=kwargs: compiled(*tensors, **kwargs),
                }
                found["models"][name] = times(sides)
        print(name, found["models"][name], flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def times(sides: dict[str, Callable[[], Any]]) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(RUNS + 10):
        for name, run in sides.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            if turn >= 10:
                taken[name].append(start.elapsed_time(end))
    return {name: float(np.round(statistics.median(values), 5)) for name, values in taken.items()}


if __name__ == "__main__":
    sys.exit(main())
