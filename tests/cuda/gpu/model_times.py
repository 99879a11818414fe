"""Whole models on the device: whether they are right, and how fast, against PyTorch's eager execution and torch.compile
with CUDA graphs. Both sides have the same weights, the same inputs, outputs of the same type, and compute in the same
precision. Weights are drawn here, from a seed."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.benchmarks.models import statistics
from tests.cuda.gpu.cases import ModelCase
from tests.cuda.gpu.timing import WARMING, Times, events, in_turns, on_host
from tests.models.support import fresh
from transpiler.checks import EPS, FACTOR_TORCH, factor_eps
from transpiler.loading import load_package

# Of the layers of a model whose weights are as after training: what fades takes another time than real features do.
LEAST_SPREAD, MOST_DENORMAL = 0.05, 1e-3


class AsUsed(nn.Module):
    """A model in bfloat16 that takes and gives float32, as a package of lower precision does."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.to(dtype), dtype

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        taken = [item.to(self.dtype) if item.is_floating_point() else item for item in inputs]
        result: torch.Tensor = self.module(*taken)
        return result.float()


def model(work: Path, case: ModelCase, compiled: bool) -> dict[str, Any]:
    """A call with tensors on the device where PyTorch has it, else with arrays of the host."""
    module, args, kwargs = case.build()
    assert not kwargs
    if problems := faded(statistics(module, args)):
        return {"problems": problems}
    folder = work / "models" / case.key
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exact = copy.deepcopy(module).to(device).double()
    peer = AsUsed(module.to(device), torch.bfloat16 if case.precision == "bfloat16" else torch.float32)
    # float32 is float32 on both sides.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    with load_package(folder, case.key).Model(weights=state) as runner:
        inputs = [item.to(device) for item in fresh(args, torch.Generator().manual_seed(time.time_ns() % (1 << 31)))]
        with torch.inference_mode():
            problems = wrong(runner, peer, exact, inputs, case)
        if problems:
            return {"problems": problems}
        del exact
        found = _timed(runner, peer, inputs, compiled)
        work_done = work_of(runner.manifest)
    return {"ours": found.pop("ours"), "peers": found, **work_done, **first_call(folder, state, args)}


def faded(found: dict[str, float]) -> list[str]:
    """What is wrong with the activations of a model: of layers that fade, or whose numbers are denormal."""
    problems = []
    if found["least std of a layer"] < LEAST_SPREAD:
        problems.append(f"a layer fades: its standard deviation is {found['least std of a layer']:.2g}")
    if found["largest share of denormals"] > MOST_DENORMAL:
        problems.append(f"{found['largest share of denormals']:.0%} of a layer are denormal numbers")
    if not np.isfinite(found["std of the output"]):
        problems.append("the result is not finite")
    return problems


def wrong(runner: Any, peer: nn.Module, exact: nn.Module, inputs: Sequence[torch.Tensor], case: ModelCase) -> list[str]:
    """As `transpiler.checks` has it: a few times as inexact as PyTorch in this precision, plus a few roundings."""
    double = exact(*[item.double() if item.is_floating_point() else item for item in inputs])
    theirs = (peer(*inputs).double() - double).abs().max().item()
    unit = "bfloat16" if case.precision == "bfloat16" else "float32"
    allowed = FACTOR_TORCH * theirs + factor_eps(unit) * EPS[unit] * double.abs().max().item()
    problems = []
    for turn in range(2):
        (got,) = runner.infer(*(inputs if double.is_cuda else [item.numpy() for item in inputs]))
        ours = torch.from_dlpack(got).to(double.device).double()
        error = (ours - double).abs().max().item()
        if not error <= allowed:
            problems.append(f"call {turn + 1} is off by {error:.3g} of fresh inputs, {allowed:.3g} allowed")
    return problems


def _timed(runner: Any, peer: nn.Module, inputs: Sequence[torch.Tensor], compiled: bool) -> Times:
    if not torch.cuda.is_available():
        arrays = [item.numpy() for item in inputs]
        return in_turns({"ours": lambda: on_host(lambda: runner.infer(*arrays))})
    sides: dict[str, Callable[[], float]] = {"ours": lambda: events(lambda: runner.infer(*inputs))}
    with torch.inference_mode():
        sides["eager"] = lambda: events(lambda: peer(*inputs))
        if compiled:
            torch._dynamo.reset()
            fast = torch.compile(peer, mode="max-autotune")  # with CUDA graphs
            for _ in range(WARMING):
                fast(*inputs)
            sides["compile"] = lambda: events(lambda: fast(*inputs))
        return in_turns(sides)


def work_of(manifest: dict[str, Any]) -> dict[str, int]:
    """Operations of a call, and the bytes that any implementation moves: weights, inputs and outputs, each once."""
    built = manifest["built"]["cuda"]
    flops = sum(int(item["flops"]) * item["calls"] for item in built["kernels"].values())
    tensors = [*manifest["inputs"], *manifest["outputs"]]
    sizes = [int(np.prod(item["shape"])) * np.dtype(item["dtype"]).itemsize for item in tensors]
    return {"flops": flops, "bytes": int(built["weights"]["bytes"]) + sum(sizes)}


def first_call(folder: Path, state: dict[str, Any], args: Sequence[torch.Tensor]) -> dict[str, float | None]:
    """Seconds of making the model and of its first call, in a process of its own, which has no PyTorch."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as scratch:
        given = Path(scratch) / "given.npz"
        arrays = {f"input {place}": item.cpu().numpy() for place, item in enumerate(args)}
        np.savez(given, **arrays, **{f"weight {name}": value for name, value in state.items()})
        command = [sys.executable, "-m", "tests.cuda.gpu.first", str(folder), str(given)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"the first call failed: {done.stderr[-1000:]}")
    found: dict[str, float | None] = json.loads(done.stdout.splitlines()[-1])
    return found
