"""Where a package runs: on Linux, on its family of processors, with the best instruction set there is."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..manifest import check_files

FORCE = "TRANSPILE_ISA"


def refuse_elsewhere(machine: str) -> None:
    """Raises PackageError unless this is Linux on `machine` processors (`platform.machine()`)."""
    if sys.platform != "linux":
        names = {"darwin": "macOS", "win32": "Windows"}
        raise PackageError(
            f"This package runs on Linux only, not on {names.get(sys.platform, sys.platform)}."
        )
    if platform.machine() != machine:
        raise PackageError(
            f"This package was built for {machine} processors; this one is {platform.machine()}."
        )


class Processor:
    """What this machine can run, asked of the package's C library, which asks processor and kernel."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        name = manifest["name"]
        path = folder / "lib" / f"lib{name}.so"
        check_files(folder, manifest, lambda file: file == path)
        try:
            library = ctypes.CDLL(str(path))
            self._supported, self._last_error = (
                getattr(library, f"{name}_{function}") for function in ("isa_supported", "last_error")
            )
        except (OSError, AttributeError) as error:
            raise PackageError(f"{path} cannot be loaded: {error}") from error
        self._supported.argtypes, self._supported.restype = [ctypes.c_char_p], ctypes.c_int
        self._last_error.argtypes, self._last_error.restype = [], ctypes.c_char_p

    def reason_against(self, isa: str) -> str:
        """Why kernels for `isa` cannot run here; empty if they can."""
        if self._supported(os.fsencode(isa)):
            return ""
        return str(self._last_error().decode("utf-8", "replace"))


def runnable_isas(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The instruction sets of the package that this machine runs, best first.

    Raises:
        PackageError: another platform or family of processors, or a damaged package.
    """
    refuse_elsewhere(manifest["machine"])
    processor = Processor(folder, manifest)
    return [isa for isa in manifest["isas"] if not processor.reason_against(isa)]


def choose_isa(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The best instruction set that the package has and this machine runs; $TRANSPILE_ISA forces one.

    Raises:
        PackageError: the forced one is not in the package or cannot run, or none can; as `runnable_isas`.
    """
    runnable, available = runnable_isas(folder, manifest), ", ".join(manifest["isas"])
    forced = os.environ.get(FORCE)
    if forced in runnable:
        return forced
    if forced:
        raise PackageError(f"{FORCE}={forced}: {Processor(folder, manifest).reason_against(forced)}")
    if not runnable:
        raise PackageError(f"this package has kernels for {available} only; this processor runs none of them")
    return runnable[0]
