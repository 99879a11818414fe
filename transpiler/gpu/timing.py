"""Times of kernel variants on the first CUDA device of this machine, for `--tune`.

The kernels are launched by a process of its own through the runtime that packages have: one that fails may take the
device from its process, and must not take it from the build. Such a process is started again without the variant that
was the last to begin.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpiler.errors import TranspileError, TranspileErrors
from transpiler.gpu.cuda import compile_kernels
from transpiler.gpu.launch_list import render_launches
from transpiler.gpu.timed import BEGINS, FAILED
from transpiler.group import Group, Lowered
from transpiler.resources import PACKAGE
from transpiler.target import Target

if TYPE_CHECKING:
    from transpiler.gpu.launches import Compiled
    from transpiler.plan import KernelPlan

Variants = Sequence[Sequence[Lowered | None]]
Plan = Callable[[Sequence[tuple[Group, Lowered]]], "KernelPlan"]
# What a candidate may raise when it is made (TVM's own errors are RuntimeErrors): it is left out.
ERRORS = (TranspileError, TranspileErrors, LookupError, ValueError, AssertionError, RuntimeError)
# Seconds that a process may take besides its timing: to start, to load, and where it hangs.
STARTING = 60.0


def measure(
    groups: Sequence[Group], kernels: Variants, target: Target, plan: Plan, seconds: float
) -> list[list[float]]:
    """Median seconds of a call of every variant of every group's kernel, in about `seconds` in all; infinite for
    those that could not be built or run, or for which there was no time.

    Args:
        kernels: by group and variant; None: the schedule failed.
        plan: what makes a function of kernels that calls each of them once.
    """
    present = [
        (number, index, item)
        for number, variants in enumerate(kernels)
        for index, item in enumerate(variants)
        if item is not None
    ]
    present, compiled = _compiled(present, target)
    found = [[math.inf] * len(variants) for variants in kernels]
    if compiled is None:
        return found
    with tempfile.TemporaryDirectory(prefix="transpile-tune-") as name:
        folder = Path(name)
        for file, content in compiled.files.items():
            (folder / file).write_bytes(content)
        calls = plan([(groups[number], item) for number, _, item in present])
        (folder / compiled.list_file).write_bytes(render_launches([calls], compiled))
        facts = [
            {"group": number, "dtypes": [value.dtype for value in groups[number].inputs]} for number, _, _ in present
        ]
        for call, value in _timed(folder, compiled.list_file, facts, seconds).items():
            number, index, _ = present[call]
            found[number][index] = value
    return found


Present = list[tuple[int, int, Lowered]]


def _compiled(present: Present, target: Target) -> tuple[Present, Compiled | None]:
    """Those that have machine code, and that."""

    def compiled(items: Present) -> Compiled:
        name = target.variant.name
        return compile_kernels({name: [item for _, _, item in items]}, [target])[name]

    if not present:
        return [], None
    try:
        return present, compiled(present)
    except ERRORS:
        fitting = []
        for item in present:
            try:
                compiled([item])
            except ERRORS:
                continue
            fitting.append(item)
        return fitting, compiled(fitting) if fitting else None


def _timed(folder: Path, launches: str, facts: Sequence[Mapping[str, Any]], seconds: float) -> dict[int, float]:
    """Seconds by call. Every process that fails leaves out the call that it had begun."""
    end = time.monotonic() + seconds
    open_calls = list(range(len(facts)))
    found: dict[int, float] = {}
    while open_calls and (left := end - time.monotonic()) > 0:
        results = folder / "results"
        results.write_text("")
        job = {"launches": launches, "calls": {str(call): facts[call] for call in open_calls}, "seconds": left}
        (folder / "job.json").write_text(json.dumps(job))
        finished = _run(folder, left + STARTING)
        begun = None
        for line in results.read_text().splitlines():
            word, _, value = line.partition(" ")
            if word == BEGINS:
                begun = int(value)
            else:
                found[int(word)] = math.inf if value == FAILED else float(value)
        if finished or begun is None:
            break
        # A call that failed on the device takes those with it that were being timed beside it; they are asked again.
        found[begun] = math.inf
        open_calls = [call for call in open_calls if call not in found]
    return found


def _run(folder: Path, seconds: float) -> bool:
    """Whether the process came to its end."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "transpiler.gpu.timed", str(folder)]
    try:
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True, check=False, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
