"""The targets that a package has kernels for, and which of them a model runs on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PackageError
from .isas import choose_isa
from .manifest import check_files
from .native import Library


@dataclass(frozen=True)
class Device:
    """A target whose kernels are loaded: its name, the instruction set (or architecture) that was chosen."""

    name: str
    isa: str
    library: Library


def open_cpu(folder: Path, manifest: Mapping[str, Any]) -> Device:
    """The CPU with the best instruction set. Raises PackageError."""
    name, isa = manifest["name"], choose_isa(folder, manifest)
    path = folder / "kernels" / "cpu" / isa / f"{name}.so"
    check_files(folder, manifest, lambda file: file == path)
    return Device("cpu", isa, Library(path, f"{name}_{isa}_"))


# How each target is opened; one that this machine cannot run is a PackageError.
OPENERS: dict[str, Callable[[Path, Mapping[str, Any]], Device]] = {"cpu": open_cpu}


def open_device(folder: Path, manifest: Mapping[str, Any], wanted: str | None, fallback: bool) -> Device:
    """The device `wanted`, by default the package's first target.

    With `fallback`, one that cannot run here is replaced by the next of the package's targets, with a
    RuntimeWarning.

    Raises:
        ValueError: the package has no kernels for `wanted`.
        PackageError: none of the devices in question can run here.
    """
    targets: list[str] = manifest["targets"]
    if wanted is not None and wanted not in targets:
        raise ValueError(f"device: this package has kernels for {', '.join(targets)} only, got {wanted!r}")
    first = targets[0] if wanted is None else wanted
    reasons = []
    for name in [first, *(target for target in targets if target != first)] if fallback else [first]:
        try:
            device = OPENERS[name](folder, manifest)
        except PackageError as error:
            if not fallback:
                raise
            reasons.append(f"{name}: {error}")
            continue
        if reasons:
            warnings.warn(f"running on {name}; {'; '.join(reasons)}", RuntimeWarning, stacklevel=4)
        return device
    raise PackageError("; ".join(reasons))
