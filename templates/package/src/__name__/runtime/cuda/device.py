"""A device: which one, its context, and the code of kernels there."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import PackageError
from ..launches import DeviceFunction, Dispatch
from .driver import FORKED, STICKY, DriverError, checked, load_driver, no_device

# With one of them set, the driver takes no machine code, but translates PTX.
NO_MACHINE_CODE = ("CUDA_FORCE_PTX_JIT", "CUDA_FORCE_JIT")
# Bytes of freed outputs that are kept for later ones.
KEPT = 1 << 28
_opening = threading.Lock()
_open: weakref.WeakValueDictionary[tuple[int, int], Device] = weakref.WeakValueDictionary()
_loaded: weakref.WeakValueDictionary[tuple[int, int, str], Code] = weakref.WeakValueDictionary()


def open_device(wanted: str | None) -> Device:
    """The device `wanted` ("cuda:1"), by default the first; models of a process share it.

    Raises:
        PackageError: there is no driver or no such device; the text lists those there are.
    """
    driver = load_driver()
    count = _count(driver)
    number = 0
    if wanted is not None and wanted != "cuda":
        text = wanted.removeprefix("cuda:")
        if not text.isdecimal() or int(text) >= count:
            there = ", ".join(f"cuda:{index} ({_name(driver, index)})" for index in range(count))
            raise PackageError(f"there is no CUDA device {wanted!r}; there are: {there}")
        number = int(text)
    with _opening:
        key = (os.getpid(), number)
        device = _open.get(key)
        if device is None:
            device = _open[key] = Device(driver, number)
        return device


def list_devices() -> list[str]:
    """All devices, as `open_device` takes them and by name. Raises PackageError: there are none."""
    driver = load_driver()
    return [f"cuda:{number} ({_name(driver, number)})" for number in range(_count(driver))]


def _count(driver: Any) -> int:
    count = int(checked(driver, driver.cuDeviceGetCount(), "counting devices"))
    if not count:
        raise no_device()
    return count


def _name(driver: Any, number: int) -> str:
    handle = checked(driver, driver.cuDeviceGet(number), "opening a device")
    name: bytes = checked(driver, driver.cuDeviceGetName(200, handle), "asking for a device's name")
    return name.partition(b"\0")[0].decode(errors="replace")


class Device:
    """A device's primary context, which all libraries of a process share. It is released when the last one
    who uses it is gone."""

    def __init__(self, driver: Any, number: int) -> None:
        self.driver, self.number, self._process = driver, number, os.getpid()
        self.lost = False
        self.handle = self.do("opening a device", driver.cuDeviceGet(number))
        self.name = _name(driver, number)
        kinds = driver.CUdevice_attribute
        self.capability = (
            self.attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self.attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        self.max_grid = tuple(
            self.attribute(getattr(kinds, f"CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_{axis}")) for axis in "XYZ"
        )
        self.max_shared = self.attribute(kinds.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        self.context = self.do(f"opening {self}", driver.cuDevicePrimaryCtxRetain(self.handle))
        self._finalizer = weakref.finalize(self, _release, driver, self.handle, self._process)
        # Where outputs come from; None: the device has no pools.
        pools = self.attribute(kinds.CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)
        with self.current():
            self.pool = self._make_pool() if pools else None

    def _make_pool(self) -> Any:
        driver = self.driver
        properties = driver.CUmemPoolProps()
        properties.allocType = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.handleTypes = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_NONE
        properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = int(self.handle)
        pool = self.do("making a pool of memory", driver.cuMemPoolCreate(properties))
        self._finalizer.detach()
        self._finalizer = weakref.finalize(self, _release, driver, self.handle, self._process, pool)
        kind = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        size = driver.cuuint64_t(KEPT)
        self.do("making a pool of memory", driver.cuMemPoolSetAttribute(pool, kind, size))
        return pool

    def __str__(self) -> str:
        return f"cuda:{self.number} ({self.name})"

    def attribute(self, kind: Any) -> int:
        return int(
            self.do("asking what a device can do", self.driver.cuDeviceGetAttribute(kind, self.handle))
        )

    def do(self, what: str, result: tuple[Any, ...], nbytes: int | None = None) -> Any:
        """What a function of the driver returns besides its code. Raises as `checked` does."""
        try:
            return checked(self.driver, result, what, nbytes)
        except DriverError as error:
            self.lost = self.lost or error.code in STICKY
            raise

    def check_stream(self, stream: int) -> None:
        """Raises ValueError for a stream that is being captured. The device is current."""
        driver = self.driver
        found = self.do("looking at a stream", driver.cuStreamIsCapturing(driver.CUstream(stream)))
        if found != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE:
            raise ValueError(
                "stream: is being captured; a call is a graph of its own and cannot become a part of another"
            )

    def is_ours(self) -> bool:
        """Whether this process opened it: a forked one cannot use it."""
        return os.getpid() == self._process

    def current(self) -> AbstractContextManager[None]:
        """Makes it the thread's device for a while. Raises RuntimeError in a forked process."""
        if not self.is_ours():
            raise RuntimeError(FORKED)
        return _Current(self.driver, self.context)


class _Current(AbstractContextManager[None]):
    def __init__(self, driver: Any, context: Any) -> None:
        self._driver, self.context = driver, context

    def __enter__(self) -> None:
        checked(self._driver, self._driver.cuCtxPushCurrent(self.context), "choosing a device")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._driver.cuCtxPopCurrent()


def _release(driver: Any, handle: Any, process: int, pool: Any = None) -> None:
    if os.getpid() == process:
        if pool is not None:
            driver.cuMemPoolDestroy(pool)
        driver.cuDevicePrimaryCtxRelease(handle)


def runs_code(capability: tuple[int, int], arch: str) -> bool:
    """Whether a device of a compute capability runs code for `arch` ("sm_80") or its PTX: with a letter that
    of the very same capability, else of every one that is not older."""
    number = arch.removeprefix("sm_").rstrip("abcdefghijklmnopqrstuvwxyz")
    own = divmod(int(number), 10)
    return capability == own if arch[-1].isalpha() else capability >= own


def choose_variant(device: Device, variants: Sequence[str]) -> str:
    """The first of the package's variants, which are best first, that the device runs: that whose code the
    driver takes of the package's one file.

    Raises:
        PackageError: it runs none of them.
    """
    forced = [name for name in NO_MACHINE_CODE if os.environ.get(name, "0") not in ("", "0")]
    for variant in variants:
        # The file has PTX for those without a letter.
        if runs_code(device.capability, variant) and not (forced and variant[-1].isalpha()):
            return variant
    if forced:
        raise PackageError(
            f"{forced[0]} is set, with which NVIDIA's driver takes PTX alone; {device} runs none of that in "
            f"this package, whose kernels are for {', '.join(variants)}: unset it"
        )
    major, minor = device.capability
    raise PackageError(
        f"{device} has compute capability {major}.{minor}; this package has kernels for "
        f"{', '.join(variants)}: use another device, or build the package for this one (--arch)"
    )


class Code:
    """The kernels of a package on a device. Functions are looked up, and brought there, when first used."""

    def __init__(self, device: Device, file: Path) -> None:
        self.device = device
        driver = device.driver
        self._functions: dict[str, Any] = {}
        with device.current():
            result = driver.cuLibraryLoadFromFile(os.fsencode(file), None, None, 0, None, None, 0)
            self._library = device.do(f"loading {file.name}", result)
        self._finalizer = weakref.finalize(self, _unload, device, self._library)

    def get(self, function: DeviceFunction) -> Any:
        """The handle of a function, made ready for its launches; the device is current.

        Raises:
            PackageError: the device lacks what it needs.
        """
        found = self._functions.get(function.entry)
        if found is None:
            found = self._functions[function.entry] = self._find(function)
        return found

    def _find(self, function: DeviceFunction) -> Any:
        device, driver = self.device, self.device.driver
        what = f"loading kernel {function.kernel}"
        kernel = device.do(what, driver.cuLibraryGetKernel(self._library, function.entry.encode()))
        handle = device.do(what, driver.cuKernelGetFunction(kernel))
        kinds = driver.CUfunction_attribute
        threads = device.do(
            what, driver.cuFuncGetAttribute(kinds.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, handle)
        )
        x, y, z = function.workgroup
        if x * y * z > threads:
            raise PackageError(
                f"kernel {function.kernel} takes {x * y * z:,} threads; {device} runs {threads:,} at most"
            )
        if function.shared_bytes:
            static = device.do(
                what, driver.cuFuncGetAttribute(kinds.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, handle)
            )
            if function.shared_bytes + static > device.max_shared:
                raise PackageError(
                    f"kernel {function.kernel} takes {function.shared_bytes + static:,} bytes of shared "
                    f"memory; {device} has {device.max_shared:,}"
                )
            kind = kinds.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            device.do(what, driver.cuFuncSetAttribute(handle, kind, function.shared_bytes))
        return handle


def load_code(device: Device, file: Path) -> Code:
    """The kernels in a file; models of a process share them."""
    with _opening:
        key = (os.getpid(), device.number, str(file.resolve()))
        code = _loaded.get(key)
        if code is None or code.device is not device:
            code = _loaded[key] = Code(device, file)
        return code


def _unload(device: Device, library: Any) -> None:
    if device.is_ours() and not device.lost:
        with device.current():
            device.driver.cuLibraryUnload(library)


def check_grid(device: Device, step: Dispatch) -> None:
    """Raises PackageError for a launch that is too large for the device: before anything runs."""
    for axis, (count, most) in enumerate(zip(step.grid, device.max_grid, strict=True)):
        if count > most:
            raise PackageError(
                f"kernel {step.function.kernel} takes {count:,} blocks along axis {axis}; {device} takes "
                f"{most:,} at most: use smaller sizes"
            )
