"""Opening the CPU's kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..kernels import OpenedDevice
from ..manifest import check_files
from .isas import choose_isa, runnable_isas
from .native import Library


def open_device(folder: Path, manifest: Mapping[str, Any], wanted: str | None) -> OpenedDevice:
    """The CPU with the best instruction set; there is only one. Raises PackageError."""
    _check(wanted)
    name, isa = manifest["name"], choose_isa(folder, manifest)
    path = folder / "kernels" / "cpu" / isa / f"{name}.so"
    check_files(folder, manifest, lambda file: file == path)
    return OpenedDevice("cpu", isa, Library(path, f"{name}_{isa}_"))


def _check(wanted: str | None) -> None:
    if wanted not in (None, "cpu", "cpu:0"):
        raise PackageError(f"there is no device {wanted!r}; there is: cpu")


def runnable(folder: Path, manifest: Mapping[str, Any], wanted: str | None) -> list[str]:
    """The instruction sets of the package that this machine runs, best first. Raises PackageError."""
    _check(wanted)
    return runnable_isas(folder, manifest)


def devices(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The processor, if it can run one of the instruction sets. Raises PackageError: it cannot."""
    return [f"cpu ({choose_isa(folder, manifest)})"]
