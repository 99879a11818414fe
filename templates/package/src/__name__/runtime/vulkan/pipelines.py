"""Kernels made for a device, and the driver's work kept between processes."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..launches import DeviceFunction
from .device import Device
from .driver import explained

CACHE = "TRANSPILE_CACHE"
# Of a file that holds a driver's cache: a mark, and the hash of what follows.
MAGIC = b"TPVKPC01"
HEADER_VERSION, HEADER_BYTES = 1, 32


@dataclass(frozen=True)
class Pipeline:
    handle: Any
    layout: Any
    set_layout: Any


@dataclass(frozen=True)
class Fault:
    """Why the device cannot run a kernel: it lacks a feature, or a limit is below what is `wanted`."""

    kernel: str
    lacks: str  # as Vulkan calls it
    what: str
    wanted: int = 0

    def __str__(self) -> str:
        return f"kernel {self.kernel} {self.what}"


class Pipelines:
    """The pipelines of a package's device functions, each made when it is first asked for."""

    def __init__(self, device: Device, folder: Path, key: str) -> None:
        self.device, self._folder = device, folder
        self._lock = threading.Lock()
        self._made: dict[tuple[str, str, bool], Pipeline] = {}
        self._set_layouts: dict[int, Any] = {}
        self._layouts: dict[tuple[int, int], Any] = {}
        self._file = cache_file(device, key)
        self._read = read_cache(device, self._file)
        vk = device.vk
        with explained(vk, "the pipeline cache"):
            self._cache = vk.vkCreatePipelineCache(device.handle, _cache_info(vk, self._read), None)
        self._handles: list[tuple[str, Any]] = [("vkDestroyPipelineCache", self._cache)]
        self._finalizer = weakref.finalize(self, _destroy, device, self._handles)

    def get(self, function: DeviceFunction, *, split: bool = False) -> Pipeline:
        """`split`: its buffers with windows are bound in pieces.

        Raises:
            MemoryError or RuntimeError: the driver cannot make it.
            PackageError: its file is gone.
        """
        file = code_of(self.device, function)
        key = (file, function.entry, split)
        with self._lock:
            if key not in self._made:
                self._made[key] = self._make(function, file, split)
            return self._made[key]

    def _make(self, function: DeviceFunction, file: str, split: bool) -> Pipeline:
        vk, device = self.device.vk, self.device
        path = self._folder / file
        try:
            code = path.read_bytes()
        except OSError as error:
            raise PackageError(f"{path} cannot be read: {error}") from error
        set_layout, layout = self._layout(function.bindings, function.scalar_bytes)
        with explained(vk, f"kernel {function.kernel} ({function.entry})"):
            info = vk.VkShaderModuleCreateInfo(codeSize=len(code), pCode=code)
            module = vk.vkCreateShaderModule(device.handle, info, None)
            try:
                stage = vk.VkPipelineShaderStageCreateInfo(
                    stage=vk.VK_SHADER_STAGE_COMPUTE_BIT,
                    module=module,
                    pName=function.entry,
                    pSpecializationInfo=_specialization(device, split),
                )
                info = vk.VkComputePipelineCreateInfo(stage=stage, layout=layout)
                handle = vk.vkCreateComputePipelines(device.handle, self._cache, 1, [info], None)[0]
            finally:
                vk.vkDestroyShaderModule(device.handle, module, None)
        self._handles.append(("vkDestroyPipeline", handle))
        return Pipeline(handle, layout, set_layout)

    def _layout(self, buffers: int, scalar_bytes: int) -> tuple[Any, Any]:
        vk, device = self.device.vk, self.device
        stage = vk.VK_SHADER_STAGE_COMPUTE_BIT
        with explained(vk, "a pipeline layout"):
            if buffers not in self._set_layouts:
                bindings = [
                    vk.VkDescriptorSetLayoutBinding(
                        binding=index,
                        descriptorType=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                        descriptorCount=1,
                        stageFlags=stage,
                    )
                    for index in range(buffers)
                ]
                info = vk.VkDescriptorSetLayoutCreateInfo(pBindings=bindings)
                self._set_layouts[buffers] = vk.vkCreateDescriptorSetLayout(device.handle, info, None)
                self._handles.append(("vkDestroyDescriptorSetLayout", self._set_layouts[buffers]))
            if (buffers, scalar_bytes) not in self._layouts:
                ranges = [vk.VkPushConstantRange(stageFlags=stage, offset=0, size=scalar_bytes)]
                info = vk.VkPipelineLayoutCreateInfo(
                    pSetLayouts=[self._set_layouts[buffers]],
                    pPushConstantRanges=ranges if scalar_bytes else [],
                )
                self._layouts[buffers, scalar_bytes] = vk.vkCreatePipelineLayout(device.handle, info, None)
                self._handles.append(("vkDestroyPipelineLayout", self._layouts[buffers, scalar_bytes]))
        return self._set_layouts[buffers], self._layouts[buffers, scalar_bytes]

    def save(self) -> None:
        """Keep what the driver made for other processes. A cache that cannot be written is none."""
        if self._file is None:
            return
        with self._lock:
            data = _cache_data(self.device, self._cache)
            if len(data) > HEADER_BYTES and data != self._read:
                self._read = data
                write_cache(self._file, data)


def _destroy(device: Device, handles: list[tuple[str, Any]]) -> None:
    if not device.is_ours():
        return
    for name, handle in reversed(handles):
        getattr(device.vk, name)(device.handle, handle, None)


def _specialization(device: Device, split: bool) -> Any:
    """Constant 0: buffers with windows are bound in pieces; 1: loops must count their turns."""
    vk = device.vk
    entries = [vk.VkSpecializationMapEntry(constantID=index, offset=4 * index, size=4) for index in range(2)]
    data = vk.ffi.new("uint32_t[]", [split, device.stops_loops])
    return vk.VkSpecializationInfo(pMapEntries=entries, dataSize=8, pData=data)


def code_of(device: Device, function: DeviceFunction) -> str:
    """The file of a function: the one for devices without 8- and 16-bit memory where this is one of them."""
    if function.fallback is None or device.features.issuperset(function.features):
        return function.file
    file, features = function.fallback
    return file if device.features.issuperset(features) else function.file


def faults_of(device: Device, function: DeviceFunction) -> list[Fault]:
    """Why the device cannot run a function, whatever the sizes."""
    limits, name = device.limits, function.kernel
    missing = sorted(set(function.features) - device.features)
    if function.fallback is not None:
        missing = sorted(set(function.fallback[1]) - device.features)
    faults = [Fault(name, feature, f"needs {feature}") for feature in missing]
    invocations = function.workgroup[0] * function.workgroup[1] * function.workgroup[2]
    checks = [
        (
            "maxComputeWorkGroupInvocations",
            invocations,
            limits.maxComputeWorkGroupInvocations,
            "threads of a workgroup",
        ),
        (
            "maxComputeSharedMemorySize",
            function.shared_bytes,
            limits.maxComputeSharedMemorySize,
            "bytes of shared memory",
        ),
        # Windows count even where buffers are bound whole: the module names their bindings, so layouts do.
        (
            "maxPerStageDescriptorStorageBuffers",
            function.bindings,
            limits.maxPerStageDescriptorStorageBuffers,
            "buffers",
        ),
        ("maxPushConstantsSize", function.scalar_bytes, limits.maxPushConstantsSize, "bytes of sizes"),
    ]
    checks += [
        (f"maxComputeWorkGroupSize[{axis}]", size, limits.maxComputeWorkGroupSize[axis], "threads on an axis")
        for axis, size in enumerate(function.workgroup)
    ]
    return faults + [
        Fault(name, limit, f"takes {wanted} {what}, the device has {there} ({limit})", wanted)
        for limit, wanted, there, what in checks
        if wanted > there
    ]


# --- the cache ----------------------------------------------------------------------------------------------


def cache_file(device: Device, key: str) -> Path | None:
    """Where the driver's work for this package is kept; None if TRANSPILE_CACHE is empty."""
    folder = os.environ.get(CACHE)
    if folder == "":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = Path(folder) if folder else Path(home) / "transpile"
    properties = device.properties
    identity = (
        properties.vendorID, properties.deviceID, properties.driverVersion, _uuid(properties).hex(), key,
    )  # fmt: skip
    return root / "vulkan" / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:32]}.bin"


def _uuid(properties: Any) -> bytes:
    return bytes(properties.pipelineCacheUUID)


def read_cache(device: Device, path: Path | None) -> bytes:
    """A cache that this device's driver has written, whole; empty if there is none."""
    try:
        content = path.read_bytes() if path is not None else b""
    except OSError:
        return b""
    mark, digest, data = content[:8], content[8:40], content[40:]
    if mark != MAGIC or hashlib.sha256(data).digest() != digest or len(data) < HEADER_BYTES:
        return b""
    properties = device.properties
    length, version, vendor, number = struct.unpack_from("<4I", data)
    same = (vendor, number, data[16:32]) == (properties.vendorID, properties.deviceID, _uuid(properties))
    return data if version == HEADER_VERSION and length >= HEADER_BYTES and same else b""


def write_cache(path: Path, data: bytes) -> None:
    """Put a cache in place of the old one, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".cache-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(MAGIC + hashlib.sha256(data).digest() + data)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
    except OSError:
        return


def _cache_data(device: Device, cache: Any) -> bytes:
    """What the driver has in its cache, for which the package `vulkan` has no wrapper; empty if it fails."""
    vk = device.vk
    get, size = vk._vulkan.lib.vkGetPipelineCacheData, vk.ffi.new("size_t*")
    if get(device.handle, cache, size, vk.ffi.NULL) or not size[0]:
        return b""
    data = vk.ffi.new("char[]", size[0])
    return b"" if get(device.handle, cache, size, data) else bytes(vk.ffi.buffer(data, size[0]))


def _cache_info(vk: Any, data: bytes) -> Any:
    if not data:
        return vk.VkPipelineCacheCreateInfo()
    return vk.VkPipelineCacheCreateInfo(initialDataSize=len(data), pInitialData=vk.ffi.from_buffer(data))
