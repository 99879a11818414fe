"""NVIDIA's driver through the package `cuda-bindings`, and what its results mean in words."""

from __future__ import annotations

import os
from typing import Any

from ..errors import PackageError

NEEDED = 13000  # CUDA 13.0
RELEASE = 580  # of the driver, the first with it
HELP = f"install NVIDIA's driver, release {RELEASE} or later (docs/cuda.md of the transpiler)"
FORKED = (
    "a forked process cannot use the CUDA device of its parent: make the model after the fork, "
    "in processes that are spawned"
)
# Errors after which a process can use a device no more: the driver answers everything with them.
STICKY = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "ILLEGAL_ADDRESS", "LAUNCH_TIMEOUT", "ASSERT", "HARDWARE_STACK_ERROR", "ILLEGAL_INSTRUCTION",
        "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC", "LAUNCH_FAILED", "ECC_UNCORRECTABLE",
        "CONTEXT_IS_DESTROYED", "EXTERNAL_DEVICE",
    )
)  # fmt: skip
LOST = (
    "a kernel, of this model or of another library in this process, failed on the device; the process cannot "
    "use it any more: start a new one"
)


class DriverError(RuntimeError):
    """The driver refused something; `code` is NVIDIA's name of the reason."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def load_driver() -> Any:
    """The module `cuda.bindings.driver`, with the driver started.

    Raises:
        PackageError: the package, the driver or a device is missing, or the driver is too old.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise PackageError(
            f'the Python package cuda-bindings is missing: pip install "cuda-bindings>=13.0,<14" ({error})'
        ) from error
    try:
        (code,) = driver.cuInit(0)
    except RuntimeError as error:
        raise PackageError(f"this machine has no NVIDIA driver (libcuda.so.1); {HELP}") from error
    if code.name == "CUDA_ERROR_NO_DEVICE":
        raise no_device()
    if code.name == "CUDA_ERROR_NOT_INITIALIZED":  # what it says to a child of a process that has used it
        raise PackageError(FORKED)
    if code:
        raise PackageError(f"NVIDIA's driver cannot be started: {name_of(driver, code)}; {HELP}")
    version = checked(driver, driver.cuDriverGetVersion(), "asking for the driver's version")
    if version < NEEDED:
        found = f"{version // 1000}.{version % 1000 // 10}"
        raise PackageError(f"NVIDIA's driver knows CUDA {found}, 13.0 is needed; {HELP}")
    return driver


def no_device() -> PackageError:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    because = "" if chosen is None else f" (CUDA_VISIBLE_DEVICES is {chosen!r})"
    return PackageError(f"NVIDIA's driver sees no device{because}")


def checked(driver: Any, result: tuple[Any, ...], what: str, nbytes: int | None = None) -> Any:
    """What a function of the driver returns besides its code, when it did `what`, with `nbytes` of memory.

    Raises:
        MemoryError: the device, or the host, has too little memory.
        DriverError: anything else went wrong.
    """
    code = result[0]
    if not code:
        return result[1] if len(result) == 2 else None
    if code.name == "CUDA_ERROR_OUT_OF_MEMORY":
        raise MemoryError(f"too little memory for {what}{_sizes(driver, nbytes)}")
    if code.name in STICKY:
        raise DriverError(code.name, f"{LOST} ({name_of(driver, code)}, seen at {what})")
    raise DriverError(code.name, f"NVIDIA's driver failed at {what}: {name_of(driver, code)}")


def name_of(driver: Any, code: Any) -> str:
    """A result as the driver explains it."""
    error, text = driver.cuGetErrorString(code)
    return f"{code.name} ({text.decode()})" if not error and text else str(code.name)


def _sizes(driver: Any, nbytes: int | None) -> str:
    if nbytes is None:
        return ""
    error, free, total = driver.cuMemGetInfo()
    there = "" if error else f"; {free:,} of {total:,} bytes of the device are free"
    return f" of {nbytes:,} bytes{there}"
