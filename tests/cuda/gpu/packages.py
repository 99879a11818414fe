"""Packages that are carried to a machine with a GPU: those of small models with their tests; those of large models with
neither tests nor weights, since PyTorch is traced to make them and not run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.cuda.gpu.cases import Built
from tests.cuda.gpu.kernels import SETS
from tests.models.support import convert, fresh
from transpiler import pipeline, transpile
from transpiler.assembly import make_part, package_view
from transpiler.backends import Job, backend
from transpiler.cases import Argument, Drawn, Inputs
from transpiler.checks import Expected
from transpiler.emit import emit_package, write_package
from transpiler.frontend import Model, read_model
from transpiler.lower import lower
from transpiler.plan import KernelPlan, output_names
from transpiler.progress import Silent
from transpiler.recorded import Recorded, Recording
from transpiler.recording import Results
from transpiler.request import Precision, Request
from transpiler.target import load_targets

TARGET = "cuda"


def tested(folder: Path, name: str, built: Built, archs: Sequence[str], precision: Precision) -> Path:
    """A package with its generated tests and its weights."""
    module, args, kwargs = built
    folder.mkdir(parents=True, exist_ok=True)
    return transpile(
        module, args=args, kwargs=kwargs, target=TARGET, arch=list(archs), name=name, out=folder,
        precision=precision,
    ).path  # fmt: skip


def untested(folder: Path, name: str, built: Built, archs: Sequence[str], precision: Precision) -> Path:
    """A package without tests and without its weights: what PyTorch computes for batches of large models takes more
    memory and time than a small machine has. Everything else is as `transpile` makes it."""
    module, args, kwargs = built
    request = Request(
        module, args, kwargs, targets=(TARGET,), name=name, archs=tuple(archs), precision=precision, test=False
    )
    targets, model = load_targets(TARGET, archs), read_model(request, precision)
    program = pipeline._rewrite(model.program, request, targets[0])
    lowered = {target.variant.name: lower(program, target) for target in targets}
    artifacts = backend(TARGET).compile(Job(lowered, targets, name, request.version, None, Silent()))
    first = lowered[targets[0].variant.name]
    results = _unrecorded(model, first.plan)
    part = make_part(first.plans, artifacts, program, model, results, None, request)
    view = package_view(name, model, [part], results, request)
    weights = f"src/{name}/{view.manifest['weights']['file']}"
    files = emit_package(view)
    return write_package({path: data for path, data in files.items() if path != weights}, folder / name)


def _unrecorded(model: Model, plan: KernelPlan) -> Results:
    """Results of nothing: the example's inputs, and outputs of which no element was kept."""
    arguments = tuple(Argument(item.key, item.value.dtype, item.value.shape) for item in plan.user_inputs)
    drawn = Drawn("example", (), model.functions[plan.function].examples)
    none = np.zeros(0, np.float32)
    outputs = tuple(
        Expected(name, value.dtype, value.type.static_shape(), none, none, 0.0, 0, none)
        for name, value in zip(output_names(plan), plan.outputs, strict=True)
    )
    recording = Recording(arguments, Inputs((drawn,)), (Recorded(drawn, outputs),), function=plan.function)
    return Results((recording,), (), plan.function)


def fresh_cases(file: Path, built: Built, precision: Precision) -> None:
    """Write inputs that nobody has seen before and PyTorch's results for them: in float64, and in the model's precision
    (rounded where the package's may be), from which `transpiler.checks` has the tolerance."""
    module, args, kwargs = built
    request = Request(module, args, kwargs, targets=(TARGET,), precision=precision)
    model = read_model(request, precision)
    function = model.functions[model.program.main.name]
    arrays = {}
    for number in range(SETS):
        generator = torch.Generator().manual_seed(time.time_ns() % (1 << 31) + number)
        inputs = [item.numpy() for item in tensors((fresh(args, generator), fresh(kwargs, generator)))]
        copies = [[array.copy() for array in inputs] for _ in range(3)]
        exact, _ = function.reference(copies[0], double=True, capture_values=(), weights=None, state=None)
        if function.lower is not None:
            rounded, _ = function.lower.run(copies[1], capture_values=(), weights=None, state=None)
        else:
            rounded = function.eager(copies[1], weights=None, state=None)
        arrays |= {f"{number}/input/{place}": array for place, array in enumerate(inputs)}
        for place, (one, two) in enumerate(zip(rounded, exact, strict=True)):
            arrays |= {f"{number}/torch/{place}": one, f"{number}/float64/{place}": two}
    np.savez_compressed(file, **arrays)


def tensors(value: Any) -> list[torch.Tensor]:
    """Those in nested arguments, in the order that a model takes them flat."""
    found: list[torch.Tensor] = []
    convert(value, found.append)
    return found
