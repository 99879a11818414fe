"""The variants of a package's kernels, and which of them a device runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ..devices import DEVICE_FAULTS
from ..errors import PackageError
from ..launch_list import LaunchList
from .device import VARIABLE, Device, Found, available, ranked
from .pipelines import Fault, faults_of

FORCE = "TRANSPILE_ISA"
NAMED = 3  # kernels of the same fault that a text names


def faults(device: Device, launches: LaunchList) -> list[str]:
    """Why the device cannot run a variant, in words: of every feature or limit the kernel that takes most,
    and a few others."""
    found: dict[str, dict[str, Fault]] = {}
    for function in launches.device_functions():
        for fault in faults_of(device, function):
            kernels = found.setdefault(fault.lacks, {})
            known = kernels.setdefault(fault.kernel, fault)
            kernels[fault.kernel] = max(known, fault, key=lambda item: item.wanted)
    return [_described(list(kernels.values())) for kernels in found.values()]


def _described(found: Sequence[Fault]) -> str:
    most = max(found, key=lambda item: item.wanted)
    others = [item.kernel for item in found if item is not most]
    if not others:
        return str(most)
    more = ", ..." if len(others) > NAMED else ""
    return f"{most}, like {len(others)} more: {', '.join(others[:NAMED])}{more}"


def runnable_variants(device: Device, lists: Mapping[str, LaunchList]) -> list[str]:
    """Those that the device runs, the best first: made for its kind, for all, for others."""

    def distance(variant: str) -> int:
        kinds = lists[variant].kinds
        return 0 if device.found.kind in kinds else 1 if not kinds else 2

    return sorted((item for item in lists if not faults(device, lists[item])), key=distance)


def offered(lists: Mapping[str, LaunchList]) -> Mapping[str, LaunchList]:
    """Those to choose from: $TRANSPILE_ISA forces one. Raises PackageError: it is not in the package."""
    forced = os.environ.get(FORCE)
    if not forced:
        return lists
    if forced not in lists:
        raise PackageError(f"{FORCE}={forced}: this package has kernels for {', '.join(lists)} only")
    return {forced: lists[forced]}


def choose_variant(device: Device, lists: Mapping[str, LaunchList]) -> str:
    """The best variant that the device runs.

    Raises:
        PackageError: the device runs none; the text says what it lacks.
    """
    able = runnable_variants(device, lists)
    if able:
        return able[0]
    missing = faults(device, next(iter(lists.values())))
    raise PackageError(f"{device.found} cannot run this package: {'; '.join(missing)}")


def open_able(
    wanted: str | None, lists: Mapping[str, LaunchList], *, alone: bool = False
) -> tuple[Device, str, dict[str, str]]:
    """The device `wanted`, or that $VULKAN_DEVICE names, and its variant. Without a name the best device that
    can run the package, and the better ones, which cannot, with the reasons.

    Raises:
        PackageError: there is no such device, or it cannot run the package; none can.
    """

    def opened(name: str | None) -> tuple[Device, str]:
        device = Device(name, alone=alone)
        return device, choose_variant(device, lists)

    failed: Exception
    try:
        return (*opened(wanted), {})
    except DEVICE_FAULTS as error:
        if wanted or os.environ.get(VARIABLE):
            raise
        failed = error
    first, *others = ranked(available(alone=alone))
    reasons = {str(first): _without(first, failed)}
    for found in others:
        try:
            return (*opened(str(found.number)), reasons)
        except DEVICE_FAULTS as error:
            reasons[str(found)] = _without(found, error)
    if not others:
        raise failed
    texts = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    raise PackageError(f"no Vulkan device of this machine can run this package: {texts}")


def _without(found: Found, error: Exception) -> str:
    """What it says, less the device's name at its beginning."""
    return str(error).removeprefix(f"{found} ")
