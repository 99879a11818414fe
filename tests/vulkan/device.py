"""A small Vulkan runner for kernels: buffers in host memory, one dispatch at a time, waited for."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from tests.installed import missing
from transpiler.spirv.control import LIMITED
from transpiler.spirv.kernel import Kernel, require_features
from transpiler.spirv.memory import SPLIT

API_VERSION = 1 << 22 | 1 << 12
_FORMATS = {"int": {32: "i", 64: "q"}, "uint": {32: "I", 64: "Q"}, "float": {16: "e", 32: "f", 64: "d"}}


class Device:
    """The first device, with every feature that kernels may need and that it has."""

    def __init__(self) -> None:
        import vulkan as vk

        self.vk = vk
        application = vk.VkApplicationInfo(pApplicationName="kernel tests", apiVersion=API_VERSION)
        self.instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
        self.physical = vk.vkEnumeratePhysicalDevices(self.instance)[0]
        self.name = vk.vkGetPhysicalDeviceProperties(self.physical).deviceName
        chain = self._features()
        self.available = self._enabled(chain) | self._float_controls() | self._subgroups()
        families = vk.vkGetPhysicalDeviceQueueFamilyProperties(self.physical)
        self.family = next(i for i, family in enumerate(families) if family.queueFlags & vk.VK_QUEUE_COMPUTE_BIT)
        queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=self.family, pQueuePriorities=[1.0])
        extensions = ["VK_KHR_shader_float_controls", "VK_KHR_8bit_storage", "VK_KHR_shader_float16_int8"]
        self.device = vk.vkCreateDevice(
            self.physical,
            vk.VkDeviceCreateInfo(
                pNext=chain[0], pQueueCreateInfos=[queue], ppEnabledExtensionNames=extensions
            ),
            None,
        )  # fmt: skip
        self.queue = vk.vkGetDeviceQueue(self.device, self.family, 0)
        self.pool = vk.vkCreateCommandPool(self.device, vk.VkCommandPoolCreateInfo(queueFamilyIndex=self.family), None)

    def _features(self) -> list[Any]:
        """The feature structs, filled in: what the device has is what is enabled."""
        vk = self.vk
        small = vk.VkPhysicalDeviceShaderFloat16Int8Features()
        bytes_ = vk.VkPhysicalDevice8BitStorageFeatures(pNext=small)
        halves = vk.VkPhysicalDevice16BitStorageFeatures(pNext=bytes_)
        features = vk.VkPhysicalDeviceFeatures2(pNext=halves)
        vk.vkGetPhysicalDeviceFeatures2(self.physical, features)
        return [features, halves, bytes_, small]

    @staticmethod
    def _enabled(chain: list[Any]) -> set[str]:
        core, *others = chain
        flags = {name: getattr(core.features, name) for name in ("shaderFloat64", "shaderInt64")}
        for struct_, names in zip(
            others,
            (("storageBuffer16BitAccess",), ("storageBuffer8BitAccess",), ("shaderFloat16",)),
            strict=True,
        ):
            flags |= {name: getattr(struct_, name) for name in names}
        return {name for name, there in flags.items() if there}

    def _subgroups(self) -> set[str]:
        """The operations of subgroups that compute shaders have."""
        vk = self.vk
        found = vk.VkPhysicalDeviceSubgroupProperties()
        vk.vkGetPhysicalDeviceProperties2(self.physical, vk.VkPhysicalDeviceProperties2(pNext=found))
        names = ("VK_SUBGROUP_FEATURE_BASIC_BIT", "VK_SUBGROUP_FEATURE_ARITHMETIC_BIT")
        stages = found.supportedStages & vk.VK_SHADER_STAGE_COMPUTE_BIT
        return {name for name in names if stages and found.supportedOperations & getattr(vk, name)}

    def _float_controls(self) -> set[str]:
        vk = self.vk
        controls = vk.VkPhysicalDeviceFloatControlsProperties()
        properties = vk.VkPhysicalDeviceProperties2(pNext=controls)
        vk.vkGetPhysicalDeviceProperties2(self.physical, properties)
        names = [
            f"shader{mode}Float{bits}"
            for mode in ("SignedZeroInfNanPreserve", "RoundingModeRTE")
            for bits in (16, 32, 64)
        ]
        return {name for name in names if getattr(controls, name)}

    def run(
        self,
        kernel: Kernel,
        arrays: Sequence[np.ndarray[Any, Any]],
        scalars: Sequence[float] = (),
        groups: tuple[int, ...] | None = None,
    ) -> None:
        """Dispatches `kernel` on `arrays`, in the order of its bindings, and writes the results into them."""
        require_features(kernel, self.name, self.available)
        assert len(arrays) == len(kernel.buffers)
        pipeline = Pipeline(self, kernel.code, kernel.name, len(arrays), kernel.push_bytes)
        pipeline.run(arrays, pack(kernel, scalars), groups or folded_grid(kernel))
        pipeline.close()

    def buffer(self, array: np.ndarray[Any, Any]) -> tuple[Any, Any]:
        """A buffer with the array's bytes, in memory that the host sees, and that memory."""
        vk = self.vk
        buffer = vk.vkCreateBuffer(
            self.device,
            vk.VkBufferCreateInfo(size=padded(array), usage=vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT),
            None,
        )
        needed = vk.vkGetBufferMemoryRequirements(self.device, buffer)
        types = vk.vkGetPhysicalDeviceMemoryProperties(self.physical)
        wanted = vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | vk.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
        index = next(
            i
            for i in range(types.memoryTypeCount)
            if needed.memoryTypeBits >> i & 1 and types.memoryTypes[i].propertyFlags & wanted == wanted
        )
        memory = vk.vkAllocateMemory(
            self.device, vk.VkMemoryAllocateInfo(allocationSize=needed.size, memoryTypeIndex=index), None
        )
        vk.vkBindBufferMemory(self.device, buffer, memory, 0)
        mapped = vk.vkMapMemory(self.device, memory, 0, needed.size, 0)
        mapped[: array.nbytes] = np.ascontiguousarray(array).tobytes()
        vk.vkUnmapMemory(self.device, memory)
        return buffer, memory


class Pipeline:
    """A kernel made ready: `count` bindings and `push_bytes` of push constants; `split`: with buffers in pieces."""

    def __init__(
        self, device: Device, code: bytes, entry: str, count: int, push_bytes: int, *, split: bool = False
    ) -> None:
        self.owner, vk = device, device.vk
        self.push_size = -(-push_bytes // 4) * 4
        bindings = [
            vk.VkDescriptorSetLayoutBinding(
                binding=i, descriptorType=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, descriptorCount=1,
                stageFlags=vk.VK_SHADER_STAGE_COMPUTE_BIT,
            )
            for i in range(count)
        ]  # fmt: skip
        self.set_layout = vk.vkCreateDescriptorSetLayout(
            device.device, vk.VkDescriptorSetLayoutCreateInfo(pBindings=bindings), None
        )
        ranges = [vk.VkPushConstantRange(stageFlags=vk.VK_SHADER_STAGE_COMPUTE_BIT, offset=0, size=self.push_size)]
        self.layout = vk.vkCreatePipelineLayout(
            device.device,
            vk.VkPipelineLayoutCreateInfo(
                pSetLayouts=[self.set_layout], pPushConstantRanges=ranges if push_bytes else []
            ),
            None,
        )
        self.module = vk.vkCreateShaderModule(
            device.device, vk.VkShaderModuleCreateInfo(codeSize=len(code), pCode=code), None
        )
        data = vk.ffi.new("uint32_t[]", [split, "llvmpipe" in device.name])
        entries = [
            vk.VkSpecializationMapEntry(constantID=index, offset=4 * place, size=4)
            for place, index in enumerate((SPLIT, LIMITED))
        ]
        constants = vk.VkSpecializationInfo(pMapEntries=entries, dataSize=8, pData=data)
        stage = vk.VkPipelineShaderStageCreateInfo(
            stage=vk.VK_SHADER_STAGE_COMPUTE_BIT, module=self.module, pName=entry,
            pSpecializationInfo=constants,
        )  # fmt: skip
        info = vk.VkComputePipelineCreateInfo(stage=stage, layout=self.layout)
        self.pipeline = vk.vkCreateComputePipelines(device.device, None, 1, info, None)[0]
        size = vk.VkDescriptorPoolSize(type=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, descriptorCount=max(count, 1))
        self.pool = vk.vkCreateDescriptorPool(
            device.device, vk.VkDescriptorPoolCreateInfo(maxSets=1, pPoolSizes=[size]), None
        )
        self.descriptors = vk.vkAllocateDescriptorSets(
            device.device, vk.VkDescriptorSetAllocateInfo(descriptorPool=self.pool, pSetLayouts=[self.set_layout])
        )[0]

    def run(
        self,
        arrays: Sequence[np.ndarray[Any, Any]],
        push: bytes,
        groups: Sequence[int],
        pieces: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        """One dispatch, waited for; the results are written into `arrays`. `pieces` are the offset and the bytes of
        each binding of every array."""
        owner = self.owner
        vk, device = owner.vk, owner.device
        buffers = [owner.buffer(array) for array in arrays]
        shown = [
            (buffer, *piece)
            for (buffer, _), parts in zip(buffers, pieces or [[(0, padded(array))] for array in arrays], strict=True)
            for piece in parts
        ]
        writes = [
            vk.VkWriteDescriptorSet(
                dstSet=self.descriptors, dstBinding=i, descriptorCount=1,
                descriptorType=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                pBufferInfo=[vk.VkDescriptorBufferInfo(buffer=buffer, offset=offset, range=nbytes)],
            )
            for i, (buffer, offset, nbytes) in enumerate(shown)
        ]  # fmt: skip
        vk.vkUpdateDescriptorSets(device, len(writes), writes, 0, None)
        command = vk.vkAllocateCommandBuffers(
            device, vk.VkCommandBufferAllocateInfo(commandPool=owner.pool, level=0, commandBufferCount=1)
        )[0]
        vk.vkBeginCommandBuffer(command, vk.VkCommandBufferBeginInfo())
        vk.vkCmdBindPipeline(command, vk.VK_PIPELINE_BIND_POINT_COMPUTE, self.pipeline)
        vk.vkCmdBindDescriptorSets(
            command, vk.VK_PIPELINE_BIND_POINT_COMPUTE, self.layout, 0, 1, [self.descriptors], 0, None
        )
        if self.push_size:
            data = vk.ffi.new("char[]", push)
            vk.vkCmdPushConstants(command, self.layout, vk.VK_SHADER_STAGE_COMPUTE_BIT, 0, self.push_size, data)
        vk.vkCmdDispatch(command, *groups)
        vk.vkEndCommandBuffer(command)
        vk.vkQueueSubmit(owner.queue, 1, [vk.VkSubmitInfo(pCommandBuffers=[command])], None)
        vk.vkQueueWaitIdle(owner.queue)
        for array, (buffer, memory) in zip(arrays, buffers, strict=True):
            mapped = vk.vkMapMemory(device, memory, 0, max(array.nbytes, 4), 0)
            array.view(np.uint8).ravel()[:] = np.frombuffer(mapped, np.uint8)[: array.nbytes]
            vk.vkUnmapMemory(device, memory)
            vk.vkDestroyBuffer(device, buffer, None)
            vk.vkFreeMemory(device, memory, None)
        vk.vkFreeCommandBuffers(device, owner.pool, 1, [command])

    def close(self) -> None:
        vk, device = self.owner.vk, self.owner.device
        vk.vkDestroyDescriptorPool(device, self.pool, None)
        vk.vkDestroyPipeline(device, self.pipeline, None)
        vk.vkDestroyShaderModule(device, self.module, None)
        vk.vkDestroyPipelineLayout(device, self.layout, None)
        vk.vkDestroyDescriptorSetLayout(device, self.set_layout, None)


def pack(kernel: Kernel, scalars: Sequence[float]) -> bytes:
    """The bytes of the push constants."""
    data = bytearray(-(-kernel.push_bytes // 4) * 4)
    for field, value in zip(kernel.push, scalars, strict=True):
        kind = "uint" if field.dtype == "bool" else field.dtype.rstrip("0123456789")
        struct.pack_into("<" + _FORMATS[kind][field.bits], data, field.offset, value)
    return bytes(data)


def folded_grid(kernel: Kernel, limit: int = 65535) -> tuple[int, int, int]:
    """The numbers of workgroups to dispatch, none above `limit`."""
    grid = [1 if count is None else count for count in kernel.grid]
    if kernel.folded is not None:
        grid[kernel.folded] = -(-grid[0] // limit)
        grid[0] = min(grid[0], limit)
    return grid[0], grid[1], grid[2]


def padded(array: np.ndarray[Any, Any]) -> int:
    """Bytes of the buffer of an array: whole words, at least one."""
    return max(-(-array.nbytes // 4) * 4, 4)


@cache
def device() -> Device | None:
    """The device of this process, None where there is no Vulkan driver."""
    try:
        return Device()
    except (ImportError, OSError):
        return None
    except Exception as error:
        if type(error).__module__.startswith("vulkan"):
            return None  # a loader without a driver
        raise


def require_device() -> Device:
    """The device of this process; the test that asks is skipped where there is no Vulkan driver."""
    found = device()
    if found is None:
        missing("no Vulkan driver")
    return found
