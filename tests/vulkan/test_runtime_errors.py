"""What a package says where it cannot run: no loader, no driver, other devices, a lost one, damaged files."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.on_device import said
from tests.vulkan.emitted import runtime
from tests.vulkan.test_limits import function
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
