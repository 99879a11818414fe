"""The targets that a package has kernels for, the devices of this machine for them, and which to open."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from .errors import DamagedError, PackageError
from .kernels import OpenedDevice
from .manifest import for_target, read_manifest

# A device cannot be used: it is not there, lacks something, has too little memory, or its driver failed.
DEVICE_FAULTS = (RuntimeError, MemoryError)


class Opener(Protocol):
    """A module that knows how to run the kernels of a target."""

    def open_device(self, folder: Path, manifest: Mapping[str, Any], wanted: str | None) -> OpenedDevice:
        """The device `wanted` of the target ("vulkan:1"), by default the best. Raises PackageError."""

    def runnable(self, folder: Path, manifest: Mapping[str, Any], wanted: str | None) -> list[str]:
        """The instruction sets (or variants) that the device runs, best first. Raises PackageError."""

    def devices(self, folder: Path, manifest: Mapping[str, Any]) -> list[str]:
        """Those of this machine that `open_device` may be asked for, in words. Raises PackageError: none."""


@dataclass(frozen=True)
class TargetDevices:
    """A target of a package on this machine: its devices in words, or why there are none."""

    target: str
    devices: tuple[str, ...]
    missing: str

    def __str__(self) -> str:
        return ", ".join(self.devices) or f"none: {self.missing}"


def opener(target: str) -> Opener:
    """The module for a target of the package, which has those of its own targets only."""
    return cast(Opener, importlib.import_module(f".{target}.library", __package__))


def target_of(device: str) -> str:
    """ "vulkan" for "vulkan:1"."""
    return device.partition(":")[0]


def _wanted(device: str) -> str | None:
    """None where any device of the target will do."""
    return None if device == target_of(device) else device


def open_device(folder: Path, manifest: Mapping[str, Any], device: str) -> OpenedDevice:
    """A device of the package; `manifest` is that of its target. Raises PackageError."""
    return opener(target_of(device)).open_device(folder, manifest, _wanted(device))


def runnable(folder: Path, manifest: Mapping[str, Any], device: str) -> list[str]:
    """The instruction sets, or variants, of its target that a device runs, best first.

    Raises PackageError.
    """
    target = target_of(device)
    return opener(target).runnable(folder, for_target(manifest, target), _wanted(device))


def machine_devices(folder: Path) -> list[TargetDevices]:
    """What this machine has for each target of the package. Raises DamagedError."""
    manifest = read_manifest(folder)
    found = []
    for target in manifest["targets"]:
        devices: list[str] = []
        missing = ""
        try:
            devices = opener(target).devices(folder, for_target(manifest, target))
        except DamagedError:
            raise
        except DEVICE_FAULTS as error:
            missing = str(error)
        found.append(TargetDevices(target, tuple(devices), missing))
    return found


def wanted_devices(
    folder: Path, manifest: Mapping[str, Any], wanted: str | Sequence[str] | None
) -> list[str]:
    """The devices to try, in order: by default the best of the package's first target.

    Raises:
        TypeError: `wanted` is neither a text nor a sequence of them.
        ValueError: a device that the package has no kernels for, or no device at all; the text lists what the
            package holds and what this machine has.
    """
    targets: list[str] = manifest["targets"]
    if wanted is None:
        return targets[:1]
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"device: expected a name such as {targets[0]!r}, or several in order, got {wanted!r}"
        )
    if not names or any(target_of(name) not in targets for name in names):
        held = ", ".join(f"{target} ({', '.join(manifest['built'][target]['isas'])})" for target in targets)
        here = "; ".join(f"{item.target}: {item}" for item in machine_devices(folder))
        raise ValueError(
            f"device: this package has kernels for {held} only, got {wanted!r}; on this machine: {here}"
        )
    return list(dict.fromkeys(names))


def none_opened(passed_over: Mapping[str, str]) -> PackageError:
    """None of the devices that were asked for could be opened."""
    reasons = "; ".join(f"{device}: {why}" for device, why in passed_over.items())
    return PackageError(f"none of the devices that were asked for can run this package: {reasons}")
