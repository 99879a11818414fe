"""The Vulkan loader, and what its results mean in words."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import PackageError

API_VERSION = 1 << 22 | 1 << 12  # 1.1
HELP = "install one, such as mesa-vulkan-drivers of Debian and Ubuntu (docs/vulkan.md of the transpiler)"
FORKED = (
    "a forked process cannot use the Vulkan device of its parent: make the model after the fork, "
    "in processes that are spawned"
)
THREADS = "LP_NUM_THREADS"
_opening = threading.Lock()
LOST = "the Vulkan device was lost (reset, updated, or a kernel ran too long): make the model anew"


def load_vulkan() -> Any:
    """The PyPI package `vulkan`, which is the loader's interface.

    Raises:
        PackageError: it is not installed, or there is no loader.
    """
    try:
        import vulkan
    except ImportError as error:
        raise PackageError(f"the Python package vulkan is missing: pip install vulkan ({error})") from error
    except OSError as error:
        raise PackageError(
            "this machine has no Vulkan loader (libvulkan.so.1): install it, on Debian and Ubuntu libvulkan1"
        ) from error
    return vulkan


@contextmanager
def opening(*, alone: bool) -> Iterator[None]:
    """The time in which an instance and its list of devices are made. With `alone`, Mesa's driver for
    processors makes devices without threads to help them, which it would wake for every dispatch: it reads
    the number then, from the environment. One that the user has set stays."""
    with _opening:
        alone = alone and THREADS not in os.environ
        if alone:
            os.environ[THREADS] = "0"
        try:
            yield
        finally:
            if alone:
                del os.environ[THREADS]


def create_instance(vk: Any) -> Any:
    """Raises PackageError: there is no driver."""
    application = vk.VkApplicationInfo(pApplicationName="transpile", apiVersion=API_VERSION)
    try:
        return vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
    except vk.VkErrorIncompatibleDriver as error:
        raise no_driver() from error
    except (vk.VkError, vk.VkException) as error:
        raise PackageError(f"Vulkan cannot be started: {name_of(error)}") from error


def no_driver() -> PackageError:
    chosen = os.environ.get("VK_ICD_FILENAMES") or os.environ.get("VK_DRIVER_FILES")
    also = f" (VK_ICD_FILENAMES or VK_DRIVER_FILES is {chosen})" if chosen else ""
    return PackageError(f"this machine has no Vulkan driver{also}; {HELP}")


@contextmanager
def explained(vk: Any, what: str, nbytes: int | None = None) -> Iterator[None]:
    """Errors of the driver while it does `what`, with `nbytes` of memory, as Python's own.

    Raises:
        MemoryError: the device, or the host, has too little memory.
        RuntimeError: the device was lost, or anything else went wrong.
    """
    try:
        yield
    except vk.VkErrorDeviceLost as error:
        raise RuntimeError(LOST) from error
    except (vk.VkErrorOutOfDeviceMemory, vk.VkErrorOutOfHostMemory, vk.VkErrorOutOfPoolMemory) as error:
        size = "" if nbytes is None else f" of {nbytes:,} bytes"
        where = "host" if isinstance(error, vk.VkErrorOutOfHostMemory) else "device"
        raise MemoryError(f"the {where} has too little memory for {what}{size}") from error
    except (vk.VkError, vk.VkException) as error:
        raise RuntimeError(f"the Vulkan driver failed at {what}: {name_of(error)}") from error


def name_of(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}{f' ({text})' if text else ''}"
