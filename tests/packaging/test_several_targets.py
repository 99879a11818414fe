"""One package for processors and for devices with a Vulkan driver."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from tests.models.support import load
from tests.packaging.support import Environment, run
from tests.vulkan.device import require_device
from transpiler import Package, pipeline, transpile
from transpiler.backends.vulkan import Vulkan
from transpiler.errors import TranspileError, TranspileErrors
from transpiler.loading import load_package

NO_DRIVER = {"VK_DRIVER_FILES": "/nonexistent", "VK_ICD_FILENAMES": "/nonexistent"}
NO_DRIVER_TEXT = "this machine has no Vulkan driver"
BOTH = ("cpu", "vulkan")


class Tally(nn.Module):
    """Words are looked up and mixed; how often each was seen is kept. Rows vary from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(300, 64)
        self.mix = nn.Linear(64, 64)
        self.head = nn.Linear(64, 5)
        self.register_buffer("seen", torch.zeros(5))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores = self.head(torch.tanh(self.mix(self.words(ids))))
        self.seen += scores.sum((0, 1))
        return scores + self.seen


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    require_device()


def tally(seed: int) -> Tally:
    torch.manual_seed(seed)
    return Tally().eval()


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Verified on both targets when it was built."""
    return transpile(
        tally(1), (torch.arange(6).reshape(2, 3),), target=BOTH, name="tally", isa="native", test=True,
        dynamic=["ids.0=rows:1..40"], out=tmp_path_factory.mktemp("several"),
    )  # fmt: skip


@pytest.fixture(scope="session")
def module(package: Package) -> Any:
    return load_package(package.path, "tally")


@pytest.fixture(params=BOTH)
def model(request: pytest.FixtureRequest, module: Any) -> Iterator[Any]:
    with module.Model(device=request.param) as model:
        assert model.device == request.param
        yield model


def assert_runs(model: Any, reference: Tally, seed: int = 0) -> None:
    """Three calls of different sizes on a state that is carried, against PyTorch in float64."""
    rng, double = np.random.default_rng(seed), reference.double()
    for rows in (1, 17, 40):
        ids = rng.integers(0, 300, (rows, 3))
        with torch.no_grad():
            expected = double(torch.from_numpy(ids)).numpy()
        np.testing.assert_allclose(model(ids), expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(model.state["seen"], double.seen.numpy(), rtol=1e-4, atol=1e-4)


def test_numbers_equal_pytorchs(model: Any) -> None:
    assert_runs(model, tally(1))


def test_weights_are_exchanged(model: Any, tmp_path: Path) -> None:
    new = {key: value.numpy() for key, value in tally(2).state_dict().items()}
    model.load_weights(new)
    assert_runs(model, tally(2))
    save_file(new, tmp_path / "new.safetensors")
    model.load_weights({key: value.numpy() for key, value in tally(1).state_dict().items()})
    model.load_weights(tmp_path / "new.safetensors")
    model.reset()
    assert_runs(model, tally(2), seed=5)
    model.load_weights({"head.bias": np.full(5, 9, np.float32)}, strict=False)
    changed = tally(2)
    changed.head.bias.data.fill_(9)
    assert_runs(model, changed)


def test_a_prepared_file_is_for_every_device(package: Package, module: Any, tmp_path: Path) -> None:
    new = {key: value.numpy() for key, value in tally(3).state_dict().items()}
    save_file(new, tmp_path / "new.safetensors")
    arguments = ("-m", "tally", "prepare", tmp_path / "new.safetensors", tmp_path / "all")
    run(sys.executable, *arguments, cwd=package.path / "src", **NO_DRIVER)
    for target in BOTH:
        with module.Model(device=target, weights=tmp_path / "all") as model:
            assert_runs(model, tally(3))
            model.save_prepared(tmp_path / target)
        with module.Model(device=target, weights=tmp_path / target) as model:
            assert_runs(model, tally(3))
    with pytest.raises(module.WeightsError, match="does not hold the tensors"):
        module.Model(device="vulkan", weights=tmp_path / "cpu")


def test_what_both_read_is_there_once(package: Package) -> None:
    """The table of words, which neither target packs; matrices are packed for the processor only."""
    inside = package.path / "src" / "tally"
    manifest = json.loads((inside / "manifest.json").read_text())
    places = {
        target: {name: item["offset"] for name, item in built["weights"]["prepared"].items()}
        for target, built in manifest["built"].items()
    }
    assert places["cpu"]["words_weight"] == places["vulkan"]["words_weight"]
    assert "mix_weight" not in places["cpu"]
    bytes_of = {name: tensor.numel() * 4 for name, tensor in tally(1).named_parameters()}
    packed = 64 * 64 * 4 + 64 * 16 * 4
    size = (inside / manifest["weights"]["file"]).stat().st_size
    assert size < sum(bytes_of.values()) + packed + 8192
    assert [path.name for path in inside.glob("weights*")] == ["weights.safetensors"]


def test_the_device_is_the_one_asked_for(module: Any) -> None:
    with module.Model() as default, module.Model(device="vulkan:0") as other:
        assert (default.device, other.device) == BOTH
        assert "vulkan" in repr(other)
    with pytest.raises(
        ValueError, match=r"kernels for cpu \(.*\), vulkan \(.*\) only, got 'cuda'; on this machine: cpu: "
    ):
        module.Model(device="cuda")
    with pytest.raises(module.PackageError, match=r"there is no Vulkan device 'vulkan:77'; there are: vulkan:0 \("):
        module.Model(device="vulkan:77")
    with pytest.raises(TypeError, match="expected a name such as 'cpu'"):
        module.Model(device=[1])
    with pytest.raises(ValueError, match="device: this package has kernels"):
        module.Model(device=[])


def test_another_device_only_when_asked(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_DRIVER.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(module.PackageError, match=NO_DRIVER_TEXT):
        module.Model(device="vulkan")
    with pytest.raises(module.PackageError, match=f"none of the devices .* vulkan:0: {NO_DRIVER_TEXT}.* vulkan:1: "):
        module.Model(device=["vulkan:0", "vulkan:1"])
    with pytest.warns(RuntimeWarning, match=f"running on cpu; vulkan: {NO_DRIVER_TEXT}") as caught:
        model = module.Model(device=["vulkan", "cpu"])
    assert caught[0].filename == __file__
    assert (model.device, list(model.passed_over)) == ("cpu", ["vulkan"])
    assert f"not on vulkan: {NO_DRIVER_TEXT}" in repr(model)
    assert_runs(model, tally(1))


def test_no_other_device_for_a_damaged_package(package: Package, tmp_path: Path) -> None:
    shutil.copytree(package.path / "src", tmp_path / "src")
    kernel = next((tmp_path / "src/tally/kernels/vulkan").glob("*.spv"))
    kernel.write_bytes(kernel.read_bytes()[:-4])
    damaged = load_package(tmp_path, "tally")
    with pytest.raises(damaged.PackageError, match="the package is damaged"):
        damaged.Model(device=["vulkan", "cpu"])
    assert damaged.Model().device == "cpu"


def test_the_generated_tests_of_a_machine_without_a_driver(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor is tested; what is for the device is counted as skipped, for hardware that is missing."""
    assert package.report.tests is not None
    assert (package.report.tests.skipped, package.report.absent) == (0, ())
    assert set(package.report.by_target) == set(BOTH)
    for name, value in NO_DRIVER.items():
        monkeypatch.setenv(name, value)
    report = package.test()
    assert report.failed == 0, report.output
    assert report.skipped > 10
    # With a driver every test of the device runs once for each of its variants.
    assert report.passed + report.skipped <= package.report.tests.passed
    assert package.report.tests.passed - report.passed <= 2 * report.skipped
    assert report.passed > report.skipped


def test_the_command_line_knows_devices(package: Package) -> None:
    def tool(*arguments: str, fails: bool = False, **variables: str) -> str:
        command = [sys.executable, "-m", "tally", *arguments]
        return run(*command, cwd=package.path / "src", fails=fails, **variables)

    both = tool("info")
    assert "device cpu, which Model() runs on: cpu (" in both
    assert "device vulkan: vulkan:0 (" in both
    assert "weights of all devices: " in both
    assert "device cpu" not in tool("info", "--device", "vulkan")
    assert f"device vulkan: none: {NO_DRIVER_TEXT}" in tool("info", **NO_DRIVER)
    assert tool("verify").count(": ok: off by") == 2
    alone = tool("verify", **NO_DRIVER)
    assert f"vulkan: not run: {NO_DRIVER_TEXT}" in alone
    assert alone.count(": ok: off by") == 1
    assert NO_DRIVER_TEXT in tool("verify", "--device", "vulkan", fails=True, **NO_DRIVER)
    assert "threads: median" in tool("bench", "-n", "2")
    assert "threads: median" not in tool("bench", "-n", "2", "--device", "vulkan")
    assert "medians of 2 calls" in tool("profile", "-n", "2", "--device", "vulkan")
    assert "device: this package has kernels for" in tool("bench", "--device", "cuda", fails=True)


@pytest.mark.parametrize("bundle", ["embed", "separate", "none"])
def test_wheels(package: Package, tmp_path: Path, bundle: Any) -> None:
    """Installed where there is no package `vulkan`: the processor's part works, the other says what it needs."""
    wheel = package.wheel(tmp_path, bundle_weights=bundle)
    again = package.wheel(tmp_path / "again", bundle_weights=bundle)
    assert hashlib.sha256(wheel.read_bytes()).digest() == hashlib.sha256(again.read_bytes()).digest()
    assert "manylinux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
        assert ("tally/weights.safetensors" in archive.namelist()) == (bundle == "embed")
    assert "Requires-Dist: numpy>=1.26" in lines
    assert "Provides-Extra: vulkan" in lines
    assert "Requires-Dist: vulkan>=1.3,<2; extra == 'vulkan'" in lines
    beside = tmp_path / "tally-0.1.0.weights.safetensors"
    assert beside.exists() == (bundle == "separate")
    environment = Environment(tmp_path / "clean")
    environment.install(wheel)
    state = {key: value.numpy() for key, value in tally(1).state_dict().items()}
    save_file(state, tmp_path / "state.safetensors")
    weights = f"'{tmp_path / 'state.safetensors'}'" if bundle == "none" else "None"
    code = (
        f"import numpy as np, tally; x = np.zeros((1, 3), int); model = tally.Model(weights={weights})\n"
        "print(model.device, float(model(x).sum()))\n"
        f"try: tally.Model(weights={weights}, device='vulkan')\n"
        "except tally.PackageError as error: print(error)\n"
    )
    place = {"TRANSPILE_WEIGHTS": str(tmp_path)} if bundle == "separate" else {}
    output = run(environment.python, "-c", code, cwd=tmp_path, **place).splitlines()
    with torch.no_grad():
        expected = float(tally(1)(torch.zeros(1, 3, dtype=torch.int64)).sum())
    assert output[0].split()[0] == "cpu"
    assert abs(float(output[0].split()[1]) - expected) < 1e-4
    assert output[1].startswith("the Python package vulkan is missing: pip install vulkan")


def drop_override() -> None:
    """A process of root's obeys permissions from its next program on: neither CAP_DAC_OVERRIDE nor CAP_FOWNER."""
    if os.geteuid() == 0:
        for capability in (1, 3):
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


READ_ONLY = """
import os, pathlib, sys
import numpy as np
import tally
from tally import __main__ as commands

site = pathlib.Path(tally.__file__).parent
for place in (site, site.parent, pathlib.Path.home()):
    try:
        (place / "x").write_text("")
    except PermissionError:
        continue
    sys.exit(f"{place} can be written")
for device in ("cpu", "vulkan"):
    model = tally.Model(device=device, verify=True)
    keys = model.manifest["weights"]["keys"].items()
    model.load_weights({key: np.zeros(item["shape"], "float32") for key, item in keys})
    assert not model(np.ones((2, 3), int)).any()
    assert model.tap(model.taps[0])(np.ones((2, 3), int)) is not None
    assert commands.main(["verify", "--device", device]) == 0
    assert commands.main(["bench", "-n", "1", "--device", device]) == 0
print("done")
"""


def test_an_installation_that_cannot_be_written(package: Package, tmp_path: Path) -> None:
    """Neither is its folder, nor the user's: everything works, and nothing is left there."""
    site = tmp_path / "site"
    arguments = ("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile", "--target", site)
    run(sys.executable, *arguments, package.wheel(tmp_path), cwd=tmp_path)
    everything = [site, *site.rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in everything}
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY],
            env={"PATH": "", "PYTHONPATH": str(site), "HOME": str(site), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path, capture_output=True, text=True, preexec_fn=drop_override, timeout=200, check=False,
        )  # fmt: skip
    finally:
        for path in everything:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n")
    assert {path: path.stat().st_mtime_ns for path in [site, *site.rglob("*")]} == before


def test_two_builds_have_the_same_bytes(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_run_tests", lambda *_: package.report.tests)  # they are the same as well
    again = transpile(
        tally(1), (torch.arange(6).reshape(2, 3),), target=BOTH, name="tally", isa="native", test=True,
        dynamic=["ids.0=rows:1..40"], out=tmp_path,
    )  # fmt: skip
    first = {path.relative_to(package.path): path.read_bytes() for path in package.path.rglob("*") if path.is_file()}
    second = {path.relative_to(again.path): path.read_bytes() for path in again.path.rglob("*") if path.is_file()}
    assert [path for path in first if "__pycache__" not in path.parts and first[path] != second.get(path)] == []


def test_the_default_is_the_first_of_the_targets(tmp_path: Path) -> None:
    """A classifier of images, verified on both."""
    module, inputs, _ = load("mnist")
    package = transpile(module, inputs, target=("vulkan", "cpu"), name="mnist", out=tmp_path, isa="native", test=True)
    assert package.report.tests is not None
    assert package.report.tests.skipped == 0
    manifest = json.loads((package.path / "src/mnist/manifest.json").read_text())
    assert manifest["targets"] == ["vulkan", "cpu"]
    assert manifest["options"]["target"] == ["vulkan", "cpu"]
    with torch.no_grad():
        expected = module.double()(inputs[0].double()).numpy()
    for chosen in (None, "cpu"):
        model = package.load(device=chosen)
        assert model.device == (chosen or "vulkan")
        np.testing.assert_allclose(model(inputs[0].numpy()), expected, atol=2e-6)


def test_the_reasons_of_all_targets_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written if one of them refuses the model."""
    lower = pipeline._lower

    def picky(program: Any, tuner: Any, *others: Any) -> Any:
        if tuner.target.name == "cpu":
            raise TranspileError("no-schedule", "There is no schedule for x.")
        return lower(program, tuner, *others)

    def refused(self: Any, lowered: Any, target: Any) -> None:
        raise TranspileError("no-spirv", "Kernel 'y' has no SPIR-V.")

    monkeypatch.setattr(pipeline, "_lower", picky)
    monkeypatch.setattr(Vulkan, "check", refused)
    with pytest.raises(TranspileErrors) as caught:
        transpile(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),), target=BOTH, name="small", out=tmp_path)
    assert [problem.message for problem in caught.value.problems] == [
        "cpu: There is no schedule for x.",
        "vulkan: Kernel 'y' has no SPIR-V.",
    ]
    assert not list(tmp_path.iterdir())
