"""Packages against PyTorch eager: `python -m tests.benchmarks.against_eager [--models GLOB] [--out FILE.json]`.

Each model is transpiled once. Then one process per thread count loads package and module and calls them in turn, so
that whatever else the machine does meets both; the medians of the calls count. Prints a markdown table and writes
every number as JSON.
"""

import argparse
import fnmatch
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.models import hf
from tests.models.redraw import redraw
from tests.models.support import FILES, convert, load
from transpiler import transpile
from transpiler.loading import load_package

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
ROOT = Path(__file__).parent.parent.parent
# A model is measured for this long per thread count, but for at least MIN_CALLS calls.
SECONDS, MIN_CALLS, MAX_CALLS = 2.0, 11, 2000
# The project's promise: no model is more than this many times slower than eager.
LIMIT = 3.0


def _redrawn(build: Callable[[], Built]) -> Built:
    module, args, kwargs = build()
    return redraw(module, 1), args, kwargs


def models() -> dict[str, Callable[[], Built]]:
    found: dict[str, Callable[[], Built]] = {name: lambda name=name: load(name) for name in FILES}  # type: ignore[misc]
    for name, build in {**hf.FAST, **hf.SLOW}.items():
        found[name] = lambda build=build: _redrawn(build)  # type: ignore[misc]
    return found


def measure(name: str, folder: Path, threads: int) -> dict[str, float]:
    """Seconds of a call: the medians of both, called in turn."""
    torch.set_num_threads(threads)
    module, args, kwargs = models()[name]()
    model = load_package(folder / name, name).Model(threads=threads)
    arrays, named = convert(args, torch.Tensor.numpy), convert(kwargs, torch.Tensor.numpy)

    def eager() -> Any:
        with torch.inference_mode():
            return module(*args, **kwargs)

    calls = {"eager": eager, "ours": lambda: model(*arrays, **named)}
    for call in calls.values():
        for _ in range(3):
            call()
    seconds: dict[str, list[float]] = {key: [] for key in calls}
    end = time.perf_counter() + SECONDS
    while len(seconds["ours"]) < MIN_CALLS or (time.perf_counter() < end and len(seconds["ours"]) < MAX_CALLS):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in seconds.items()} | {"calls": len(seconds["ours"])}


def _measure_all(names: Sequence[str], folder: Path, threads: int) -> dict[str, dict[str, float]]:
    """In a process of its own: PyTorch's thread pool keeps its first size for some of its work."""
    command = [sys.executable, "-m", __spec__.name, "--measure", str(folder), "--threads", str(threads), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(results: dict[int, dict[str, dict[str, float]]]) -> str:
    """Milliseconds, and ours as a share of eager's."""
    head = ["model"]
    for threads in results:
        plural = "thread" if threads == 1 else "threads"
        head += [f"eager, {threads} {plural}", f"ours, {threads} {plural}", "ours / eager"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name in next(iter(results.values())):
        row = [name]
        for by_model in results.values():
            eager, ours = by_model[name]["eager"], by_model[name]["ours"]
            mark = " (!)" if ours > LIMIT * eager else ""
            row += [f"{eager * 1e3:.3f} ms", f"{ours * 1e3:.3f} ms", f"{ours / eager:.2f}{mark}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models; all by default")
    parser.add_argument("--models", default="*", help="only those that match")
    parser.add_argument("--threads", type=int, action="append", help="[default: 1, and all processors]")
    parser.add_argument("--out", type=Path, help="JSON with every number")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    threads = options.threads or sorted({1, len(os.sched_getaffinity(0))})
    if options.measure:
        print(json.dumps({name: measure(name, options.measure, threads[0]) for name in options.names}))
        return
    names = [name for name in options.names or models() if fnmatch.fnmatch(name, options.models)]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        for name in names:
            start = time.perf_counter()
            module, args, kwargs = models()[name]()
            transpile(module, args, kwargs, name=name, out=scratch)
            print(f"{name}: transpiled in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        results = {count: _measure_all(names, Path(scratch), count) for count in threads}
    print(table(results))
    if options.out:
        facts = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        options.out.write_text(json.dumps({**facts, "seconds": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
