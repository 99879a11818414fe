"""What a package says where it cannot run: no loader, no driver, other devices, limits, a lost one, damaged files."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.on_device import said
from tests.vulkan.emitted import runtime
from tests.vulkan.validation import validated
from transpiler import transpile
from transpiler.api import Package
from transpiler.errors import TranspileErrors

pytestmark = pytest.mark.usefixtures("device")
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh()).eval()
    return transpile(module, (torch.zeros(3, 4),), target="vulkan", name="tiny", out=tmp_path_factory.mktemp("tiny"))


def test_without_a_driver(package: Package) -> None:
    text = said(package, VK_ICD_FILENAMES="/nowhere.json", VK_DRIVER_FILES="/nowhere.json")
    assert text.startswith("PackageError this machine has no Vulkan driver (VK_ICD_FILENAMES or VK_DRIVER_FILES is /no")
    assert "mesa-vulkan-drivers" in text


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        ("ImportError('no such module')", "PackageError the Python package vulkan is missing: pip install vulkan"),
        (
            "OSError('Cannot find Vulkan SDK version')",
            "PackageError this machine has no Vulkan loader (libvulkan.so.1)",
        ),
    ],
)
def test_without_a_loader(package: Package, tmp_path: Path, raised: str, message: str) -> None:
    (tmp_path / "vulkan.py").write_text(f"raise {raised}\n")
    assert said(package, path=str(tmp_path)).startswith(message)


def test_devices_are_chosen_by_number_and_name(package: Package) -> None:
    assert said(package, "print(Model(device='vulkan:0')._running()._pipelines.device.name)")
    name = said(package, "print(Model()._running()._pipelines.device.name)")
    assert said(package, "print('ok', Model().device)", VULKAN_DEVICE=name[:4].upper()) == "ok vulkan"
    assert said(package, "Model(device='vulkan:77')").startswith(
        "PackageError there is no Vulkan device 'vulkan:77'; there "
    )
    assert "there is no Vulkan device 'gpu of mine'" in said(package, VULKAN_DEVICE="gpu of mine")
    assert said(package, "Model(device='cuda')").startswith("ValueError device: this package has kernels for vulkan (")


def test_a_device_that_is_passed_over_is_told(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    with package.load() as model:
        kind = type(model)
        library = importlib.import_module(f"{kind.__module__.rpartition('.')[0]}.runtime.vulkan.library")
    opened = library.open_able
    old = {"vulkan:9 (old, discrete)": "has Vulkan 1.0; 1.1 is needed"}
    monkeypatch.setattr(library, "open_able", lambda *args, **options: (*opened(*args, **options)[:2], old))
    with pytest.warns(RuntimeWarning, match="running on vulkan; vulkan:9 .old, discrete.: has Vulkan 1.0"):
        model = kind()
    with model:
        assert model.passed_over == old
        assert model(X).shape == (3, 5)


def test_variants_are_those_of_the_device(package: Package) -> None:
    with package.load() as model:
        assert set(model.runnable_isas("vulkan:0")) == {"base", "staged"}
        with pytest.raises(RuntimeError, match="there is no Vulkan device 'vulkan:77'"):
            model.runnable_isas("vulkan:77")


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


def test_too_little_memory(package: Package) -> None:
    memory, driver = runtime("vulkan.memory"), runtime("vulkan.driver")
    with package.load() as model:
        device = model._running()._pipelines.device
        device.__dict__["largest_allocation"] = 1 << 20
        with pytest.raises(
            MemoryError, match=r"gives at most 1,048,576 bytes at once \(maxMemoryAllocationSize\); x takes"
        ):
            memory.Buffer(device, 1 << 21, "device", "x")
        short = pytest.raises(MemoryError, match="the device has too little memory for x of 8 bytes")
        with short, driver.explained(device.vk, "x", 8):
            raise device.vk.VkErrorOutOfDeviceMemory


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


def test_a_lost_device_is_lost_for_good(package: Package) -> None:
    with package.load() as model:
        good = model(X)
        session = model._running()
        (recordings,) = session._idle._waiting.values()
        lost = session._pipelines.device.vk.VK_ERROR_DEVICE_LOST
        wait = recordings[0]._wait
        # This device is not lost: it must have finished before its memory goes.
        recordings[0]._wait = lambda *arguments: wait(*arguments) or lost
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the Vulkan device was lost"):
                model(X)
    with package.load() as model:
        np.testing.assert_array_equal(model(X), good)


def test_an_interrupted_call_is_waited_for_before_its_memory_goes(package: Package) -> None:
    with package.load() as model:
        good = model(X)
        session = model._running()
        (recordings,) = session._idle._waiting.values()
        recording, device = recordings[0], session._pipelines.device
        done: list[str] = []
        wait_idle, finalizer = device.vk.vkQueueWaitIdle, recording._finalizer

        def interrupt(*arguments: Any) -> int:
            raise KeyboardInterrupt

        recording._wait = interrupt
        recording._finalizer = lambda: (done.append("destroyed"), finalizer())
        device.vk.vkQueueWaitIdle = lambda queue: (done.append("waited"), wait_idle(queue))
        try:
            with pytest.raises(KeyboardInterrupt):
                model(X)
        finally:
            device.vk.vkQueueWaitIdle = wait_idle
        assert done == ["waited", "destroyed"]
        np.testing.assert_array_equal(model(X), good)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("staging", ["", "1"])
def test_a_forked_process_is_told_to_open_its_own(
    staging: str, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSPILE_VULKAN_STAGING", staging)
    with package.load() as model:
        weights = {"0.weight": np.ones((5, 4), np.float32), "0.bias": np.ones(5, np.float32)}
        good = model(X)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(20)
            for use in (lambda: model.load_weights(weights), model.session, lambda: model(X)):
                try:
                    use()
                    text = "no error\n"
                except RuntimeError as error:
                    text = f"{error}\n"
                os.write(write, text.encode())
            model.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        lines = os.read(read, 1000).decode().splitlines()
        assert len(lines) == 3
        assert all(line.startswith("a forked process cannot use the Vulkan device of its parent") for line in lines)
        os.close(read)
        os.close(write)
        np.testing.assert_array_equal(model(X), good)


def test_a_damaged_kernel_is_not_run(package: Package) -> None:
    path = next((package.path / "src" / "tiny" / "kernels" / "vulkan").glob("*.spv"))
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"oops")
    try:
        assert said(package).startswith("DamagedError the package is damaged")
    finally:
        path.write_bytes(content)
    assert said(package, "print('ok', Model().device)") == "ok vulkan"


def test_the_cache_of_another_device_or_half_a_file_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines = runtime("vulkan.pipelines")
    properties = SimpleNamespace(vendorID=7, deviceID=9, driverVersion=1, pipelineCacheUUID=list(range(16)))
    device = SimpleNamespace(properties=properties)
    header = b"".join(number.to_bytes(4, "little") for number in (32, 1, 7, 9)) + bytes(range(16))
    monkeypatch.setenv("TRANSPILE_CACHE", str(tmp_path))
    path = pipelines.cache_file(device, "package")
    assert path.is_relative_to(tmp_path)
    assert path != pipelines.cache_file(device, "another package")
    assert pipelines.read_cache(device, path) == b""
    pipelines.write_cache(path, header + b"data")
    assert pipelines.read_cache(device, path) == header + b"data"
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    other = SimpleNamespace(**{**vars(properties), "deviceID": 10})
    assert pipelines.read_cache(SimpleNamespace(properties=other), path) == b""
    path.write_bytes(path.read_bytes()[:-1])
    assert pipelines.read_cache(device, path) == b""
    monkeypatch.setenv("TRANSPILE_CACHE", "")
    assert pipelines.cache_file(device, "package") is None


class Waves(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.sin(x)
        return torch.cos(x), y + 1


def test_what_has_no_form_on_a_device_is_refused_with_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transpiler.spirv.functions.known", lambda name: None)
    with pytest.raises(TranspileErrors) as caught:
        transpile(Waves(), (torch.ones(3),), target="vulkan")
    text = sorted(problem.message for problem in caught.value.problems)
    assert [item.partition(":")[0] for item in text] == ["Kernel 'cos_3_kernel'", "Kernel 'sin_add_3_kernel'"]
    assert all("test_runtime_errors.py" in str(problem.locations) for problem in caught.value.problems)


def test_regions_wait_for_each_other_only_where_they_must() -> None:
    launches = runtime("launches")

    def step(reads: tuple[int, ...], writes: int) -> Any:
        regions = tuple(launches.Region("work", 256 * place, 256) for place in (*reads, writes))
        return launches.Dispatch(function(), regions, (False,) * len(reads) + (True,), b"", (1, 1, 1), 0)

    steps = (step((0,), 1), step((0,), 2), step((1, 2), 3), step((0,), 1), step((0,), 0))
    program = launches.Program(steps, (), (), launches.Region("work", 0, 0), (), (0, 0), (0, 0), 0, 0)
    assert program.needs_barrier() == [False, False, True, True, True]


def test_blocks_of_different_times_share_memory() -> None:
    place_blocks = runtime("launch_list").place_blocks
    offsets, total = place_blocks([(1000, 0, 1), (300, 1, 2), (900, 2, 3), (10, 0, 3)])
    assert total <= 1024 + 512 + 10
    assert offsets[0] == offsets[2] == 0
    assert all(offset % 256 == 0 for offset in offsets)
    assert place_blocks([]) == ([], 0)


def test_modules_of_other_targets_are_left_out(package: Package) -> None:
    names = {path.name for path in (package.path / "src" / "tiny").rglob("*.py")}
    assert {"launch_list.py", "launches.py", "recording.py"} <= names
    assert not {"native.py", "direct.py", "isas.py"} & names
    assert not list(package.path.rglob("*.so"))
    assert '"vulkan>=1.3,<2"' in (package.path / "pyproject.toml").read_text()
    assert importlib.util.find_spec("tiny") is None


def test_a_device_that_cannot_run_the_package_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VULKAN_DEVICE", "vulkan:77")
    with pytest.raises(TranspileErrors, match="cannot be verified on this machine: there is no Vulkan dev"):
        transpile(nn.ReLU(), (torch.ones(3),), target="vulkan", name="tiny", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_packages_are_clean_under_the_validation_layer(package: Package) -> None:
    """What the layer reports, it prints."""
    code = (
        "import numpy as np; x = np.ones((3, 4), np.float32); model = Model(); model(x); model.profile(x); "
        "model.close(); Model(native=False)(x); print('ran')"
    )
    text, reported = validated(f"from tiny import Model\n{code}", PYTHONPATH=str(package.path / "src"))
    assert text.startswith("ran"), text
    assert not reported, text


def test_a_wheel_is_for_every_machine_and_brings_the_bindings(package: Package, tmp_path: Path) -> None:
    wheel = package.wheel(tmp_path)
    assert wheel.name == "tiny-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read("tiny-0.1.0.dist-info/METADATA").decode()
    assert "tiny/kernels/vulkan/launches.base.json" in names
    assert "tiny/weights.vulkan.safetensors" in names
    assert "Requires-Dist: vulkan>=1.3,<2" in metadata


def test_the_command_line_names_the_device(package: Package) -> None:
    for command in ("bench", "profile", "verify"):
        done = subprocess.run(
            [sys.executable, "-m", "tiny", command, *(["-n", "5"] if command != "verify" else [])],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(package.path / "src")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        if command == "verify":
            assert "the sample passed" in done.stdout
        else:
            with package.load() as model:
                assert f"{model.hardware}" in done.stdout
    assert "threads" not in done.stdout
