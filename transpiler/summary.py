"""What the command says of a package it made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpiler.dims import evaluate, parse_dim

if TYPE_CHECKING:
    from transpiler.request import Report
    from transpiler.wheels import Wheel


def summary(report: Report, seconds: float, wheel: Wheel | None = None) -> list[str]:
    """What the user reads at the end: where, how good, how to use it."""
    manifest = json.loads((report.path / "src" / report.name / "manifest.json").read_text(encoding="utf-8"))
    made = [_made(target, manifest["built"][target]) for target in manifest["targets"]]
    lines = [f"{report.path}: {', '.join(made)}, made in {seconds:.1f} s"]
    if report.tests is None:
        why = "this machine cannot run it; take its tests to one that can" if report.foreign else "--no-test"
        lines.append(f"  tests  not run ({why}); the package says that it is not verified")
    else:
        skipped = f", {report.tests.skipped} skipped" if report.tests.skipped else ""
        lines.append(f"  tests  {report.tests.passed} passed{skipped}")
        lines.extend(f"  tests  {target} not run: this machine has no device for it" for target in report.absent)
    for output, error in report.errors.items():
        measured = f"{error.max_abs_error:.2g} from PyTorch in float64, tolerance {error.tolerance:.2g}"
        lines.append(f"  error  {output}: {measured} (closest call: case {error.case})")
    if wheel is not None:
        lines.append(f"  wheel  {wheel.path}, {_size(wheel.path)}")
        lines.extend(f"         {path}, {_size(path)}" for path in wheel.weights)
    installed = report.path if wheel is None else wheel.path
    lines.append(f"  use    pip install {shlex.quote(_installable(installed))}")
    lines.append(f"         {example(manifest)}")
    return lines


def _made(target: str, built: Mapping[str, Any]) -> str:
    count = len(built["kernels"])
    return f"{count} kernel{'s' * (count != 1)} for {target} ({', '.join(built['isas'])})"


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} KB"


def _installable(path: Path) -> str:
    """A path that pip does not take for the name of a project."""
    text = str(path)
    return text if path.is_absolute() or text.startswith(".") else f"./{text}"


def example(manifest: Mapping[str, Any]) -> str:
    """A command that runs the installed package."""
    name, inputs = manifest["name"], manifest["inputs"]
    if not all("leaf" in structure for structure in manifest["arguments"].values()):
        return f"python -m {name} verify"
    arguments = []
    sizes = {item["name"]: item["example"] for item in manifest.get("symbols", ())}
    for argument, structure in sorted(manifest["arguments"].items(), key=lambda item: item[1]["leaf"]):
        entry = inputs[structure["leaf"]]
        dtype = "float32" if entry["dtype"] == "bfloat16" else entry["dtype"]
        shape = tuple(evaluate(parse_dim(str(size)), sizes) for size in entry["shape"])
        arguments.append(f"{argument}=np.zeros({shape}, '{dtype}')")
    call = f"Model()({', '.join(arguments)})"
    return f'python -c "import numpy as np; from {name} import Model; print({call})"'
