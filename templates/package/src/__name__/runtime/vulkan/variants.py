"""The variants of a package's kernels, and which of them a device runs."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..errors import PackageError
from ..launch_list import LaunchList
from .device import Device
from .pipelines import faults_of

FORCE = "TRANSPILE_ISA"


def faults(device: Device, launches: LaunchList) -> list[str]:
    """Why the device cannot run a variant; each reason once."""
    found = [fault for function in launches.device_functions() for fault in faults_of(device, function)]
    return list(dict.fromkeys(found))


def runnable_variants(device: Device, lists: Mapping[str, LaunchList]) -> list[str]:
    """Those that the device runs, the best first: made for its kind, for all, for others."""

    def distance(variant: str) -> int:
        kinds = lists[variant].kinds
        return 0 if device.found.kind in kinds else 1 if not kinds else 2

    return sorted((item for item in lists if not faults(device, lists[item])), key=distance)


def choose_variant(device: Device, lists: Mapping[str, LaunchList]) -> str:
    """The best variant that the device runs; $TRANSPILE_ISA forces one.

    Raises:
        PackageError: the forced one is not in the package, or the device runs none; the text says what it
            lacks.
    """
    forced = os.environ.get(FORCE)
    if forced and forced not in lists:
        raise PackageError(f"{FORCE}={forced}: this package has kernels for {', '.join(lists)} only")
    able = runnable_variants(device, {forced: lists[forced]} if forced else lists)
    if able:
        return able[0]
    missing = faults(device, lists[forced] if forced else next(iter(lists.values())))
    raise PackageError(f"{device.found} cannot run this package: {'; '.join(missing)}")
