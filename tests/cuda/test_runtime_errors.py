"""What a package for CUDA says where it cannot run: no package, no driver, no device, too old ones, too little memory,
sizes that are too large, a kernel that failed."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.on_device import said
from transpiler import transpile
from transpiler.api import Package
from transpiler.errors import TranspileError, TranspileErrors

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
GUIDE = Path(__file__).parents[2] / "docs" / "cuda.md"


def documented(text: str) -> str:
    """`text`, which is an error that the guide has in its table; there, dots and single letters stand for anything."""
    _, _, table = GUIDE.read_text().partition("| what it says |")
    rows = [row.split("|")[1] for row in table.partition("\n\n")[0].splitlines()[2:]]
    patterns = [re.escape(said) for row in rows for said in re.findall("`(.+?)`", row)]
    assert len(patterns) > 10
    found = [re.sub(r"(\\\.){3}|\b[A-Zx]\b", ".*", pattern) for pattern in patterns]
    assert any(re.search(pattern, text) for pattern in found), f"docs/cuda.md has no row for: {text}"
    return text


@pytest.fixture(scope="module")
def package(standin_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh()).eval()
    return transpile(
        module, (torch.zeros(3, 4),), target="cuda", arch="sm_80", name="tiny", out=tmp_path_factory.mktemp("tiny")
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"LD_LIBRARY_PATH": ""},
            "this machine has no NVIDIA driver (libcuda.so.1); install NVIDIA's driver, release 580",
        ),
        ({"CUDA_VISIBLE_DEVICES": ""}, "NVIDIA's driver sees no device (CUDA_VISIBLE_DEVICES is '')"),
        ({"STANDIN_VERSION": "12040"}, "NVIDIA's driver knows CUDA 12.4, 13.0 is needed; install NVIDIA's driver"),
        (
            {"STANDIN_CAPABILITY": "7.5"},
            "cuda:0 (stand-in 0) has compute capability 7.5; this package has kernels for sm_80: use another device, "
            "or build the package for this one (--arch)",
        ),
    ],
)
def test_what_is_missing(package: Package, environment: dict[str, str], message: str) -> None:
    assert documented(said(package, **environment)).startswith(f"PackageError {message}")


def test_without_the_package(package: Package, tmp_path: Path) -> None:
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "__init__.py").touch()
    text = documented(said(package, path=str(tmp_path)))
    assert text.startswith('PackageError the Python package cuda-bindings is missing: pip install "cuda-bindings>=13')


def test_devices_are_chosen_by_number(package: Package) -> None:
    assert said(package, "print(Model(device='cuda:1').hardware, Model().hardware)") == "stand-in 1 stand-in 0"
    assert said(package, "print(Model(device='cuda').device)") == "cuda"
    text = documented(said(package, "Model(device='cuda:2')"))
    assert text == (
        "PackageError there is no CUDA device 'cuda:2'; there are: cuda:0 (stand-in 0), cuda:1 (stand-in 1)"
    )
    assert "no CUDA device 'cuda:gpu'" in said(package, "Model(device='cuda:gpu')")
    assert said(package, "Model(device='cpu')").startswith(
        "ValueError device: this package has kernels for cuda (sm_80) only"
    )


def test_newer_devices_run_the_ptx(package: Package) -> None:
    assert said(package, "print(Model().isa, Model()(X).shape)", STANDIN_CAPABILITY="12.0") == "sm_80 (3, 5)"


def test_a_forked_process(package: Package, driver: Any) -> None:
    code = """import os
    model = Model(); model(X)
    if os.fork() == 0:
        try:
            model(X)
        except RuntimeError as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()"""
    assert documented(said(package, code)).startswith("a forked process cannot use the CUDA device of its parent")
    # A new model is none of the parent's, but the driver is.
    code = code.replace("model(X)\n        except", "Model()\n        except")
    assert "            Model()\n" in code
    assert documented(said(package, code)).startswith("a forked process cannot use the CUDA device of its parent")


def test_a_driver_that_takes_ptx_alone(standin_log: Path, tmp_path: Path, package: Package) -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh()).eval()
    both, narrow = (
        transpile(module, (torch.zeros(3, 4),), target="cuda", arch=arch, name=name, out=tmp_path, test=False)
        for name, arch in (("both", ()), ("narrow", "sm_90a"))
    )
    hopper = {"STANDIN_CAPABILITY": "9.0"}
    assert said(both, "print(Model().isa)", **hopper) == "sm_90a"
    assert said(both, "print(Model().isa, Model()(X).shape)", **hopper, CUDA_FORCE_PTX_JIT="1") == "sm_80 (3, 5)"
    text = documented(said(narrow, **hopper, CUDA_FORCE_PTX_JIT="1"))
    assert text.startswith("PackageError CUDA_FORCE_PTX_JIT is set, with which NVIDIA's driver takes PTX alone")
    assert "sm_90a" in text


def test_too_little_memory(package: Package) -> None:
    text = documented(said(package, STANDIN_MEMORY="100"))
    assert text.startswith("MemoryError too little memory for the weights of")
    assert text.endswith("; 100 of 100 bytes of the device are free")
    text = documented(said(package, "Model()(X)", STANDIN_MEMORY="600"))
    assert text.startswith("MemoryError too little memory for the values of a call of")
    text = documented(said(package, "Model()(X)", STANDIN_PINNED="100"))
    assert text == "MemoryError too little memory for inputs and outputs (512 bytes of pinned memory of the host)"


def test_recordings_that_wait_make_room(standin_log: Path, tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh()).eval()
    package = transpile(
        module, (torch.zeros(3, 4),), target="cuda", arch="sm_80", name="tiny", dynamic_shapes=({0: batch},),
        out=tmp_path,
    )  # fmt: skip
    code = "model = Model(); print([model(np.ones((n, 4), np.float32)).shape[0] for n in range(2000, 2010)])"
    assert said(package, code, STANDIN_MEMORY="400000") == str(list(range(2000, 2010)))


def launches(model: Any) -> Any:
    return importlib.import_module(f"{type(model).__module__.rpartition('.')[0]}.runtime.cuda.device")


def test_a_grid_that_is_too_large(package: Package, driver: Any) -> None:
    with package.load() as model:
        device = model._library.device
        step = model._library.list.program(0, {}).steps[0]
        too_many = replace(step, grid=(1, 65536, 1))
        with pytest.raises(RuntimeError, match=r"takes 65,536 blocks along axis 1; cuda:0 \(stand-in 0\) takes 65,535"):
            launches(model).check_grid(device, too_many)


def test_more_threads_or_memory_than_there_are(package: Package, driver: Any) -> None:
    with package.load() as model:
        function = model._library.list.program(0, {}).steps[0].function
        with model._library.device.current():
            with pytest.raises(RuntimeError, match=r"takes 2,048 threads; cuda:0 .* runs 1,024 at most"):
                model._library.code.get(replace(function, entry=function.entry, workgroup=(1024, 2, 1)))
            with pytest.raises(RuntimeError, match=r"takes 999,999 bytes of shared memory; cuda:0 .* has 166,912"):
                model._library.code.get(replace(function, shared_bytes=999_999))


def test_a_kernel_that_fails_is_the_end_of_the_device_in_a_process(package: Package) -> None:
    code = """model = Model(); good = model(X)
    recording = next(iter(model._running()._idle._waiting.values()))[0]
    from dataclasses import replace
    program = model._library.list.program(0, {})
    session = model._running()
    steps = tuple(replace(step, regions=tuple(replace(region, offset=1 << 40) for region in step.regions))
                  for step in program.steps)
    bad = session.record(replace(program, steps=steps), None)
    try:
        bad.run([X], [good.copy()])
    except RuntimeError as error:
        print(error)
    model(X)"""
    text = documented(said(package, code, STANDIN_LOG="/dev/null"))
    assert text.startswith("DriverError a kernel, of this model or of another library in this process, failed")
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in text


def test_a_package_is_built_without_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transpiler.gpu.here.has_cuda", lambda arch: False)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh()).eval()
    package = transpile(module, (torch.zeros(3, 4),), target="cuda", name="tiny", out=tmp_path, test=True)
    assert package.report.tests is None
    assert package.report.foreign
    folder = package.path / "src" / "tiny" / "kernels" / "cuda"
    assert sorted(path.name for path in folder.iterdir()) == [
        "__init__.py", "kernels.cu", "kernels.fatbin", "launches.sm_80.json", "launches.sm_90a.json",
    ]  # fmt: skip


def test_a_device_that_cannot_run_the_package_stops_its_build(
    standin_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_MEMORY", "100")
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh()).eval()
    with pytest.raises((TranspileError, TranspileErrors, MemoryError)) as caught:
        transpile(module, (torch.zeros(3, 4),), target="cuda", arch="sm_80", name="tiny", out=tmp_path)
    assert "too little memory" in str(caught.value)
