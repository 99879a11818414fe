"""What is asked of a device before anything runs: its features, limits and memory, on devices that tests make up."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.vulkan.emitted import runtime
from transpiler import transpile

pytestmark = pytest.mark.usefixtures("device")


def small_device(**changed: int) -> Any:
    limits = {
        "maxComputeWorkGroupInvocations": 128, "maxComputeSharedMemorySize": 16384, "maxPushConstantsSize": 128,
        "maxPerStageDescriptorStorageBuffers": 4, "maxComputeWorkGroupSize": (128, 128, 64),
        "maxComputeWorkGroupCount": (65535, 65535, 65535), "maxStorageBufferRange": 1 << 27, **changed,
    }  # fmt: skip
    return SimpleNamespace(
        name="small", limits=SimpleNamespace(**limits), binding_bytes=1 << 27, features=frozenset({"shaderInt64"})
    )


def function(**changed: Any) -> Any:
    made = runtime("launches").DeviceFunction(
        "conv", "f.spv", "main", (0, 1), frozenset({1}), (), 0, (64, 1, 1), (lambda _: 1,) * 3, None, 0, ()
    )
    return replace(made, **changed)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"features": ("shaderInt64", "shaderFloat64")}, "kernel conv needs shaderFloat64"),
        ({"features": ("shaderFloat16", "storageBuffer16BitAccess")}, "kernel conv needs shaderFloat16"),
        ({"workgroup": (256, 1, 1)}, "takes 256 threads of a workgroup, the device has 128 (maxComputeWorkGroupInvoca"),
        (
            {"workgroup": (1, 1, 65)},
            "kernel conv takes 65 threads on an axis, the device has 64 (maxComputeWorkGroupSize[2])",
        ),
        (
            {"shared_bytes": 32768},
            "takes 32768 bytes of shared memory, the device has 16384 (maxComputeSharedMemorySize)",
        ),
        ({"buffers": (0, 1, 2, 3, 4)}, "takes 5 buffers, the device has 4 (maxPerStageDescriptorStorageBuffers)"),
        ({"scalar_bytes": 132}, "takes 132 bytes of sizes, the device has 128 (maxPushConstantsSize)"),
    ],
)
def test_what_a_device_lacks_is_named(changed: dict[str, Any], fault: str) -> None:
    faults = runtime("vulkan.pipelines").faults_of
    assert not faults(small_device(), function())
    assert any(fault in str(item) for item in faults(small_device(), function(**changed)))


def test_a_device_without_small_memory_takes_the_other_module() -> None:
    pipelines = runtime("vulkan.pipelines")
    small = function(features=("storageBuffer8BitAccess",), fallback=("f.packed.spv", ()))
    assert pipelines.code_of(small_device(), small) == "f.packed.spv"
    assert not pipelines.faults_of(small_device(), small)
    double = replace(small, fallback=("f.packed.spv", ("shaderFloat64",)))
    assert list(map(str, pipelines.faults_of(small_device(), double))) == ["kernel conv needs shaderFloat64"]
    able = small_device()
    able.features |= {"storageBuffer8BitAccess"}
    assert pipelines.code_of(able, small) == "f.spv"
    (fault,) = pipelines.faults_of(small_device(), function(windows=(3, 2), window_bytes=256))
    assert str(fault) == "kernel conv takes 5 buffers, the device has 4 (maxPerStageDescriptorStorageBuffers)"


def test_what_many_kernels_lack_is_said_once() -> None:
    kernels = [function(kernel=f"k{index}", features=("shaderFloat64",)) for index in range(50)]
    kernels += [function(kernel="k0", workgroup=(size, 1, 1)) for size in (64, 200)]
    kernels += [function(kernel=f"wide{size}", workgroup=(size, 1, 1)) for size in (256, 512)]
    listed = SimpleNamespace(device_functions=lambda: [*kernels, *kernels])
    assert runtime("vulkan.variants").faults(small_device(), listed) == [
        "kernel k0 needs shaderFloat64, like 49 more: k1, k2, k3, ...",
        "kernel wide512 takes 512 threads of a workgroup, the device has 128 (maxComputeWorkGroupInvocations), "
        "like 2 more: k0, wide256",
        "kernel wide512 takes 512 threads on an axis, the device has 128 (maxComputeWorkGroupSize[0]), "
        "like 2 more: k0, wide256",
    ]


def test_bindings_of_a_buffer_in_pieces() -> None:
    launches, recording = runtime("launches"), runtime("vulkan.recording")
    whole, part = launches.Region("work", 512, 700), launches.Region("work", 1280, 200)
    step = launches.Dispatch(
        function(windows=(4, 2), window_bytes=256), (whole, part), (False, True), b"", (1, 1, 1), 0
    )
    device = small_device()
    assert [(item.offset, item.nbytes) for item in recording.bindings(device, step)] == [
        (512, 700), (512, 0), (512, 0), (512, 0), (1280, 200), (1280, 0),
    ]  # fmt: skip
    device.binding_bytes = 256
    recording.check_step(device, step)
    assert [(item.offset, item.nbytes) for item in recording.bindings(device, step)] == [
        (512, 256), (768, 256), (1024, 188), (512, 0), (1280, 200), (1280, 0),
    ]  # fmt: skip


def dispatch(grid: tuple[int, int, int], nbytes: int = 4, folded: int | None = None) -> Any:
    launches = runtime("launches")
    region = launches.Region("work", 0, nbytes)
    return launches.Dispatch(function(folded=folded), (region, region), (False, True), b"", grid, 0)


def test_sizes_are_checked_before_anything_runs() -> None:
    recording, device = runtime("vulkan.recording"), small_device()
    recording.check_step(device, dispatch((65535, 1, 1)))
    with pytest.raises(RuntimeError, match=r"kernel conv takes 65,536 workgroups; small takes 65,535 .*Count\[0\]"):
        recording.check_step(device, dispatch((65536, 1, 1)))
    recording.check_step(device, dispatch((65536, 1, 1), folded=2))
    assert recording.groups(device, dispatch((65536, 1, 1), folded=2)) == (65535, 1, 2)
    with pytest.raises(RuntimeError, match=r"a tensor of 134,217,732 bytes; small takes 134,217,728 at most"):
        recording.check_step(device, dispatch((1, 1, 1), (1 << 27) + 4))


class Masks(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ~x, torch.where(x, 2.0, 3.0)


def test_tensors_of_too_many_elements(tmp_path: Path) -> None:
    """Indices of kernels are int32, whatever a device binds."""
    x = torch.zeros(5, dtype=torch.bool)
    built = transpile(Masks(), (x,), target="vulkan", name="masks", out=tmp_path, dynamic=["x.0=n:1.."], test=False)
    (file,) = built.path.rglob("launches.base.json")
    launches = runtime("launch_list").LaunchList(file)
    for count in (1, (1 << 31) - 1):
        steps = launches.program(0, {"n": count}).steps
        assert {count, 4 * count} <= {region.nbytes for step in steps for region in step.regions}
    for make in (lambda sizes: launches.program(0, sizes), lambda sizes: launches.single(0, 0, sizes)):
        with pytest.raises(RuntimeError, match="reads or writes a tensor of 2,147,483,648 elements, 2\\^31 or more"):
            make({"n": 1 << 31})


class Card:
    """The memory of a graphics card whose window to the host is small. Of heap h, `free[h]` bytes are left."""

    LOCAL, VISIBLE, COHERENT, CACHED, UNCACHED = 1, 2, 4, 8, 128
    HOST = VISIBLE | COHERENT
    types = ((0, 1), (LOCAL, 0), (HOST, 1), (HOST | CACHED, 1), (LOCAL | HOST, 2), (LOCAL | HOST | UNCACHED, 0))
    heaps = (4096, 65536, 1024)

    def __init__(self, *, mapped: bool = False) -> None:
        import vulkan

        self.free = list(self.heaps)
        self.made: list[int] = []  # the types of memory that was allocated
        types = [SimpleNamespace(propertyFlags=flags, heapIndex=heap) for flags, heap in self.types]
        heaps = [SimpleNamespace(size=size) for size in self.heaps]
        kind = runtime("vulkan.device").Device
        self.device = kind.__new__(kind)
        self.device.__dict__ |= {
            "_memory": SimpleNamespace(memoryTypeCount=len(types), memoryTypes=types, memoryHeaps=heaps),
            "mapped": mapped, "lost": False, "_process": os.getpid(), "largest_allocation": 1 << 30, "handle": None,
            "found": SimpleNamespace(name="card"), "vk": SimpleNamespace(**vars(vulkan) | {
                "vkCreateBuffer": lambda device, info, _: info.size,
                "vkGetBufferMemoryRequirements": lambda device, size: SimpleNamespace(memoryTypeBits=63, size=size),
                "vkAllocateMemory": lambda device, info, _: self.allocate(info),
                "vkBindBufferMemory": lambda *_: None, "vkDestroyBuffer": lambda *_: None,
                "vkMapMemory": lambda device, memory, offset, size, flags: bytearray(size),
                "vkFreeMemory": lambda device, memory, _: None,
            }),
        }  # fmt: skip

    def allocate(self, info: Any) -> int:
        heap = self.types[info.memoryTypeIndex][1]
        if info.allocationSize > self.free[heap]:
            raise self.device.vk.VkErrorOutOfDeviceMemory
        self.free[heap] -= info.allocationSize
        self.made.append(info.memoryTypeIndex)
        return 1

    def take(self, nbytes: int, purpose: str) -> Any:
        return runtime("vulkan.memory").Buffer(self.device, nbytes, purpose, "x")


def test_memory_of_another_type_is_taken_where_one_is_full() -> None:
    card = Card()
    states = [card.take(512, "both") for _ in range(4)]
    assert card.made == [4, 4, 3, 3]
    assert all(state.array is not None for state in states)
    states.append(card.take(2048, "both"))  # larger than the window
    assert card.take(4096, "device").array is None
    assert card.made[4:] == [3, 1]
    card.free[1] = 0
    with pytest.raises(
        MemoryError,
        match=r"the device has too little memory for x of 2,048 bytes \(tried: type 4 of a heap of 1,024 bytes, "
        r"type 3 of a heap of 65,536 bytes, type 2 of a heap of 65,536 bytes\)",
    ):
        card.take(2048, "both")


def test_kernels_do_not_compute_over_the_bus_without_a_word() -> None:
    card = Card()
    with pytest.raises(
        MemoryError, match=r"x of 8,192 bytes \(tried: type 1 of a heap of 4,096 bytes, type 4 of a heap"
    ):
        card.take(8192, "device")
    assert card.made == []
    mapped = Card(mapped=True)
    assert [mapped.take(nbytes, "device").array is None for nbytes in (1024, 1024)] == [False, True]
    assert mapped.made == [4, 1]
