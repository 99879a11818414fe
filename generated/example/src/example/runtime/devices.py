"""The targets that a package has kernels for, and which of them a model runs on."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from .errors import PackageError
from .kernels import OpenedDevice


class Opener(Protocol):
    """A module that knows how to run the kernels of a target."""

    def open_device(self, folder: Path, manifest: Mapping[str, Any], wanted: str | None) -> OpenedDevice:
        """The device `wanted` of the target ("vulkan:1"), by default the best. Raises PackageError."""

    def runnable(self, folder: Path, manifest: Mapping[str, Any]) -> list[str]:
        """The instruction sets (or variants) that this machine runs, best first. Raises PackageError."""


def opener(target: str) -> Opener:
    """The module for a target of the package, which has those of its own targets only."""
    return cast(Opener, importlib.import_module(f".{target}.library", __package__))


def open_device(
    folder: Path, manifest: Mapping[str, Any], wanted: str | None, fallback: bool
) -> OpenedDevice:
    """The device `wanted` ("cpu", "vulkan:1"), by default the best of the package's first target.

    With `fallback`, one that cannot run here is replaced by the next of the package's targets, with a
    RuntimeWarning.

    Raises:
        ValueError: the package has no kernels for `wanted`.
        PackageError: none of the devices in question can run here.
    """
    targets: list[str] = manifest["targets"]
    chosen = None if wanted is None else wanted.partition(":")[0]
    if chosen is not None and chosen not in targets:
        raise ValueError(f"device: this package has kernels for {', '.join(targets)} only, got {wanted!r}")
    first = targets[0] if chosen is None else chosen
    reasons = []
    for name in [first, *(target for target in targets if target != first)] if fallback else [first]:
        try:
            device = opener(name).open_device(folder, manifest, wanted if name == chosen else None)
        except PackageError as error:
            if not fallback:
                raise
            reasons.append(f"{name}: {error}")
            continue
        if reasons:
            warnings.warn(f"running on {name}; {'; '.join(reasons)}", RuntimeWarning, stacklevel=4)
        return device
    raise PackageError("; ".join(reasons))
