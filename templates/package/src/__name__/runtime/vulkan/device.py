"""A device: which one, what it can do, its queue and its memory."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import PackageError
from .driver import (
    FORKED,
    HELP,
    LOST,
    create_instance,
    explained,
    load_vulkan,
    name_of,
    no_driver,
    opening,
)

VARIABLE = "VULKAN_DEVICE"
STAGING = "TRANSPILE_VULKAN_STAGING"
EXTENSIONS = ("VK_KHR_shader_float_controls", "VK_KHR_8bit_storage", "VK_KHR_shader_float16_int8")
SUBGROUP_OPERATIONS = ("VK_SUBGROUP_FEATURE_BASIC_BIT", "VK_SUBGROUP_FEATURE_ARITHMETIC_BIT")
KINDS = ("other", "integrated", "discrete", "virtual", "cpu")  # by VkPhysicalDeviceType
# A discrete device is preferred to an integrated one, a real one to a processor that plays one.
PREFERENCE = ("discrete", "integrated", "virtual", "cpu", "other")
# Fewer digits are a place in the driver's list only: versions of drivers, which names have, are full of them.
DIGITS_OF_A_NAME = 3


# Memory with properties from this bit on (lazily allocated, protected, uncached) takes more than asking.
SPECIAL_MEMORY = 1 << 4


@dataclass(frozen=True)
class Found:
    """A device of this machine. `number` is its place in the driver's list."""

    number: int
    name: str
    kind: str
    api: tuple[int, int]
    handle: Any

    def __str__(self) -> str:
        return f"vulkan:{self.number} ({self.name}, {self.kind})"


def list_devices(vk: Any, instance: Any) -> list[Found]:
    """Raises PackageError: there is none, or the drivers fail."""
    try:
        handles = vk.vkEnumeratePhysicalDevices(instance)
    except (vk.VkError, vk.VkException) as error:
        raise PackageError(
            f"the devices of Vulkan's drivers cannot be listed: {name_of(error)}; without a driver, {HELP}"
        ) from error
    found = []
    for number, handle in enumerate(handles):
        properties = vk.vkGetPhysicalDeviceProperties(handle)
        kind = KINDS[properties.deviceType] if properties.deviceType < len(KINDS) else "other"
        api = (properties.apiVersion >> 22 & 0x7F, properties.apiVersion >> 12 & 0x3FF)
        found.append(Found(number, properties.deviceName, kind, api, handle))
    if not found:
        raise no_driver()
    return found


def available(*, alone: bool = False) -> list[Found]:
    """The devices of this machine; their handles are of no use any more. Raises PackageError as above."""
    vk = load_vulkan()
    with opening(alone=alone):
        instance = create_instance(vk)
        try:
            return list_devices(vk, instance)
        finally:
            vk.vkDestroyInstance(instance, None)


def ranked(found: list[Found]) -> list[Found]:
    """The one that is probably fastest first."""
    return sorted(found, key=lambda item: (PREFERENCE.index(item.kind), item.number))


def choose(found: list[Found], wanted: str | None) -> Found:
    """The device of that number, or whose name has that text; by default the one that is probably fastest.

    Raises:
        PackageError: there is no such device; the text lists those there are.
    """
    wanted = wanted or os.environ.get(VARIABLE)
    if not wanted:
        return ranked(found)[0]
    text = wanted.lower().removeprefix("vulkan:")
    fitting = [item for item in found if text == str(item.number)]
    if not fitting and text and not (text.isdecimal() and len(text) < DIGITS_OF_A_NAME):
        fitting = [item for item in found if text in item.name.lower()]
    if not fitting:
        raise PackageError(f"there is no Vulkan device {wanted!r}; there are: {', '.join(map(str, found))}")
    return fitting[0]


class Device:
    """A logical device with one compute queue. It is destroyed when the last one who uses it is gone.

    `alone`: a processor shall compute on the queue's thread alone. `mapped`: the host sees all of its memory,
    as on integrated devices and processors.
    """

    def __init__(self, wanted: str | None = None, *, alone: bool = False) -> None:
        vk = load_vulkan()
        self.vk, self.lost, self._process = vk, False, os.getpid()
        with opening(alone=alone):
            instance = create_instance(vk)
            self._finalizer: Any = weakref.finalize(self, vk.vkDestroyInstance, instance, None)
            self.found = choose(list_devices(vk, instance), wanted)
        if self.found.api < (1, 1):
            raise PackageError(
                f"{self.found} has Vulkan {self.found.api[0]}.{self.found.api[1]}; 1.1 is needed"
            )
        self.physical = self.found.handle
        self.properties = vk.vkGetPhysicalDeviceProperties(self.physical)
        self.limits = self.properties.limits
        families = vk.vkGetPhysicalDeviceQueueFamilyProperties(self.physical)
        able = [index for index, item in enumerate(families) if item.queueFlags & vk.VK_QUEUE_COMPUTE_BIT]
        if not able:
            raise PackageError(f"{self.found} runs no compute kernels")
        # One that does nothing but compute is not shared with what draws the screen.
        self.family = min(able, key=lambda index: bool(families[index].queueFlags & vk.VK_QUEUE_GRAPHICS_BIT))
        self.timestamp_bits = families[self.family].timestampValidBits
        chain, self.features = self._features()
        names = {item.extensionName for item in vk.vkEnumerateDeviceExtensionProperties(self.physical, None)}
        queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=self.family, pQueuePriorities=[1.0])
        info = vk.VkDeviceCreateInfo(
            pNext=chain[0],
            pQueueCreateInfos=[queue],
            ppEnabledExtensionNames=[name for name in EXTENSIONS if name in names],
        )
        with explained(vk, f"opening {self.found}"):
            self.handle = vk.vkCreateDevice(self.physical, info, None)
        self._finalizer.detach()
        self._finalizer = weakref.finalize(self, _destroy, vk, instance, self.handle, self._process)
        self.queue = vk.vkGetDeviceQueue(self.handle, self.family, 0)
        self.submitting = threading.Lock()

    @property
    def name(self) -> str:
        return str(self.found.name)

    def check(self) -> None:
        """Raises RuntimeError if the device is lost, or was opened by the process that this one was forked
        from."""
        if self.lost:
            raise RuntimeError(LOST)
        if not self.is_ours():
            raise RuntimeError(FORKED)

    def is_ours(self) -> bool:
        """Whether this process opened it: in a forked one the driver has lost its threads."""
        return os.getpid() == self._process

    # --- what it can do -----------------------------------------------------------------------------------

    def _features(self) -> tuple[list[Any], frozenset[str]]:
        """The structs of features, filled in so that all there are get enabled, and the names of those."""
        vk = self.vk
        names = {item.extensionName for item in vk.vkEnumerateDeviceExtensionProperties(self.physical, None)}
        halves = vk.VkPhysicalDevice16BitStorageFeatures()
        chain = [halves]
        if "VK_KHR_8bit_storage" in names:
            chain.insert(0, vk.VkPhysicalDevice8BitStorageFeatures(pNext=chain[0]))
        if "VK_KHR_shader_float16_int8" in names:
            chain.insert(0, vk.VkPhysicalDeviceShaderFloat16Int8Features(pNext=chain[0]))
        core = vk.VkPhysicalDeviceFeatures2(pNext=chain[0])
        vk.vkGetPhysicalDeviceFeatures2(self.physical, core)
        wanted = ("shaderFloat64", "shaderInt64")
        there = {name for name in wanted if getattr(core.features, name)}
        for struct in chain:
            for name in ("storageBuffer16BitAccess", "storageBuffer8BitAccess", "shaderFloat16"):
                if getattr(struct, name, 0):
                    there.add(name)
        # Bounds of every access would be checked, which costs time.
        core.features.robustBufferAccess = 0
        if "VK_KHR_shader_float_controls" in names:
            controls = vk.VkPhysicalDeviceFloatControlsProperties()
            vk.vkGetPhysicalDeviceProperties2(self.physical, vk.VkPhysicalDeviceProperties2(pNext=controls))
            for mode in ("SignedZeroInfNanPreserve", "RoundingModeRTE"):
                for bits in (16, 32, 64):
                    if getattr(controls, f"shader{mode}Float{bits}"):
                        there.add(f"shader{mode}Float{bits}")
        return [core, *chain], frozenset(there | self._subgroup_operations())

    def _subgroup_operations(self) -> set[str]:
        """Those that compute kernels may use."""
        vk = self.vk
        found = vk.VkPhysicalDeviceSubgroupProperties()
        vk.vkGetPhysicalDeviceProperties2(self.physical, vk.VkPhysicalDeviceProperties2(pNext=found))
        if not found.supportedStages & vk.VK_SHADER_STAGE_COMPUTE_BIT:
            return set()
        return {name for name in SUBGROUP_OPERATIONS if found.supportedOperations & getattr(vk, name)}

    @cached_property
    def largest_allocation(self) -> int:
        maintenance = self.vk.VkPhysicalDeviceMaintenance3Properties()
        self.vk.vkGetPhysicalDeviceProperties2(
            self.physical, self.vk.VkPhysicalDeviceProperties2(pNext=maintenance)
        )
        return int(maintenance.maxMemoryAllocationSize)

    @property
    def stops_loops(self) -> bool:
        """Whether the driver leaves loops after 65535 turns, as Mesa's for processors does without a word."""
        return "llvmpipe" in self.name

    @cached_property
    def binding_bytes(self) -> int:
        """The most of a buffer that a kernel sees through one binding."""
        return int(self.limits.maxStorageBufferRange)

    # --- memory -------------------------------------------------------------------------------------------

    @cached_property
    def _memory(self) -> Any:
        return self.vk.vkGetPhysicalDeviceMemoryProperties(self.physical)

    @cached_property
    def mapped(self) -> bool:
        """Whether the device computes in memory that the host sees. $TRANSPILE_VULKAN_STAGING says that none
        does, which tests what is done for graphics cards."""
        if os.environ.get(STAGING):
            return False
        shares = self.found.kind in ("integrated", "cpu")
        return shares and bool(self.memory_types(-1, local=True, visible=True))

    def memory_types(self, allowed: int, *, local: bool, visible: bool) -> list[int]:
        """The types of memory among the bits of `allowed`: the device's own, visible to the host (cached ones
        first), in the driver's order."""
        vk = self.vk
        needed = vk.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT if local else 0
        if visible:
            needed |= vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | vk.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
        cached = vk.VK_MEMORY_PROPERTY_HOST_CACHED_BIT if visible else 0
        flags = [
            self._memory.memoryTypes[index].propertyFlags for index in range(self._memory.memoryTypeCount)
        ]
        fitting = [
            index
            for index, there in enumerate(flags)
            if allowed >> index & 1 and there & needed == needed and there < SPECIAL_MEMORY
        ]
        return sorted(fitting, key=lambda index: flags[index] & cached != cached)

    def heap_bytes(self, index: int) -> int:
        """All that there is of a type of memory, used or not."""
        return int(self._memory.memoryHeaps[self._memory.memoryTypes[index].heapIndex].size)


def _destroy(vk: Any, instance: Any, handle: Any, process: int) -> None:
    if os.getpid() != process:
        return
    with suppress(vk.VkError, vk.VkException):  # a lost device is destroyed like any other
        vk.vkDeviceWaitIdle(handle)
    vk.vkDestroyDevice(handle, None)
    vk.vkDestroyInstance(instance, None)
