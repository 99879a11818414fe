"""Devices that bind less of a buffer than a tensor has, or have no 8- and 16-bit memory: the ops are the same there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import transpiler.target as target_module
from tests.conformance import targets
from tests.conformance.kernels import op_group
from tests.conformance.test_ops_on_targets import (
    FAMILIES,
    NO_HALF,
    check_half_samples,
    check_samples,
    dtypes,
    half_samples,
)
from tests.vulkan.device import Device
from tests.vulkan.emitted import runtime
from tests.vulkan.kernels import code_errors
from tests.vulkan.test_conformance import OWN, one_of_each
from transpiler import transpile
from transpiler.api import Package
from transpiler.ops.base import Sample
from transpiler.spirv.build import SMALL
from transpiler.spirv.dtypes import Capability
from transpiler.spirv.reflect import reflect
from transpiler.target import Target, load_target

# Samples have a few hundred elements; a piece is at an offset that devices take.
WINDOW = 256
HALF_FEATURES = {"shaderFloat16", "storageBuffer16BitAccess"}
SMALL_CAPABILITIES = {Capability.FLOAT16, Capability.STORAGE_BUFFER_8BIT, Capability.STORAGE_BUFFER_16BIT}


@pytest.fixture
def without_small(device: Device, monkeypatch: pytest.MonkeyPatch) -> Target:
    """The target, and a device without 8- and 16-bit types."""
    less = copy.copy(device)
    less.available = device.available - SMALL
    monkeypatch.setattr(targets, "device", lambda: less)
    return load_target("vulkan")


def window_for(sample: Sample) -> int:
    """Bytes of a piece so that the bindings of a device suffice."""
    types = sample.op.infer_types([value.type for value in op_group(sample.op, sample.inputs).inputs])
    nbytes = sum(array.nbytes for array in sample.inputs) + sum(int(type_.bytes) for type_ in types)
    window = WINDOW
    while nbytes > 3 * window:
        window *= 4
    return window


def in_pieces(samples: Sequence[Sample]) -> list[str]:
    """What is wrong with samples whose buffers are bound in pieces."""
    by_window: dict[int, list[Sample]] = {}
    for sample in samples:
        by_window.setdefault(window_for(sample), []).append(sample)
    problems = []
    for window, some in sorted(by_window.items()):
        problems += check_samples(some, binding(load_target("vulkan"), window))
    return problems


def binding(target: Target, nbytes: int) -> Target:
    return replace(target, variant=replace(target.gpu, binding_bytes=nbytes))


def size(sample: Sample) -> int:
    return sum(array.size for array in sample.inputs)


def with_small_elements() -> list[Sample]:
    """The smallest sample of each op with bools, or ints or floats of 8 or 16 bits."""
    chosen: dict[str, Sample] = {}
    for family in OWN:
        for sample in FAMILIES[family]:
            small = {"bool", "int8", "uint8", "int16", "float16"} & dtypes(sample)
            if small and size(sample) and size(sample) < size(chosen.get(sample.op.name, sample)) + 1:
                chosen[sample.op.name] = sample
    return list(chosen.values())


@pytest.mark.parametrize("part", range(2))
def test_ops_without_small_memory(part: int, without_small: Target) -> None:
    problems = check_samples(with_small_elements()[part::2], without_small)
    assert not problems, "\n".join(problems)


@pytest.mark.usefixtures("device")
def test_ops_in_pieces() -> None:
    """Every fourth op; the others, and all samples, in the full run."""
    problems = in_pieces(one_of_each()[::4])
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("family", OWN)
def test_samples_without_small_memory(family: str, without_small: Target) -> None:
    problems = check_samples(FAMILIES[family], without_small)
    if family not in NO_HALF and half_samples(family):
        problems += check_half_samples(family, without_small)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("family", OWN)
def test_samples_in_pieces(family: str) -> None:
    problems = in_pieces(FAMILIES[family])
    assert not problems, "\n".join(problems)


class Mixed(nn.Module):
    """Dtypes of all widths, long rows, a table, a sort."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm(16)
        self.linear = nn.Linear(16, 40)

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.norm(torch.relu(self.conv(x)))
        z = torch.softmax(self.linear(y), -1)
        return z, z > 0.02, z.cumsum(-1), torch.sort(y, -1)[0], y.half(), z[:, :, rows]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, nn.Module]:
    """A package whose largest buffers have several windows."""
    torch.manual_seed(5)
    module = Mixed().eval()
    with pytest.MonkeyPatch.context() as patch:
        known = target_module._gpus
        patch.setattr(target_module, "_gpus", lambda name: [replace(gpu, binding_bytes=8192) for gpu in known(name)])
        package = transpile(
            module, (torch.zeros(2, 3, 16, 16), torch.zeros(30, dtype=torch.int64)), target="vulkan", name="mixed",
            out=tmp_path_factory.mktemp("mixed"), test=False,
        )  # fmt: skip
    return package, module


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("lacks", [set(), SMALL], ids=["with_small_memory", "without"])
def test_a_package_on_a_smaller_device(mixed: tuple[Package, nn.Module], lacks: set[str]) -> None:
    """The same bits as where every buffer is bound whole, kernel by kernel as well."""
    package, module = mixed
    rng = np.random.default_rng(6)
    x, rows = rng.standard_normal((2, 3, 16, 16), np.float32), rng.integers(0, 16, 30)
    with package.load() as model:
        whole = model(x, rows)
    with torch.no_grad():
        expected = module(torch.from_numpy(x), torch.from_numpy(rows))
    for ours, theirs in zip(whole, expected, strict=True):
        tolerance = 1e-3 if ours.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(ours.astype(float), theirs.double().numpy(), rtol=tolerance, atol=tolerance)
    for native in (True, False):
        with package.load(native=native) as model:
            device = model._running()._pipelines.device
            device.features -= lacks
            device.__dict__["binding_bytes"] = 8192
            again = model(x, rows)
        assert [array.tobytes() for array in again] == [array.tobytes() for array in whole]


@pytest.mark.usefixtures("device")
def test_modules_for_smaller_devices_are_valid(
    mixed: tuple[Package, nn.Module], validator: str, tmp_path: Path
) -> None:
    files = sorted(mixed[0].path.rglob("*.spv"))
    packed = [path for path in files if path.name.endswith(".packed.spv")]
    assert len(packed) >= 2
    assert all(reflect(path.read_bytes()).capabilities.isdisjoint(SMALL_CAPABILITIES) for path in packed)
    problems = [code_errors(path.stem, path.read_bytes(), tmp_path) for path in files]
    assert not any(problems), "\n".join(problems)


def test_what_cannot_be_split_is_named(mixed: tuple[Package, nn.Module]) -> None:
    """Below the pieces that the package was built for, nothing fits."""
    with mixed[0].load() as model:
        model._running()._pipelines.device.__dict__["binding_bytes"] = 4096
        with pytest.raises(RuntimeError, match=r"kernel conv\S+ reads or writes a tensor of [\d,]+ bytes; .* 4,096 at"):
            model(np.zeros((2, 3, 16, 16), np.float32), np.zeros(30, np.int64))


class Lowered(nn.Module):
    """Products, a convolution, a norm, a softmax and attention: what `--precision float16` lets be half floats."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm(70)
        self.linear = nn.Linear(70, 70)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.linear(self.norm(torch.relu(self.conv(x))))
        attended = nn.functional.scaled_dot_product_attention(y, self.linear(y), y)
        return torch.softmax(attended, -1), y.amax(2)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Package:
    torch.manual_seed(8)
    return transpile(
        Lowered().eval(), (torch.zeros(1, 3, 40, 70),), target="vulkan", name="lowered", precision="float16",
        out=tmp_path_factory.mktemp("lowered"), test=False,
    )  # fmt: skip


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("variant", ["base", "staged"])
def test_half_floats_on_devices_that_lack_some_of_it(
    variant: str, lowered: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without arithmetic in float16, without 16-bit memory and without both the bits are the same: kernels compute in
    float32, and take elements out of words where there is no other way."""
    monkeypatch.setenv("TRANSPILE_ISA", variant)
    x = np.random.default_rng().standard_normal((1, 3, 40, 70), np.float32)
    with lowered.load() as model:
        whole = model(x)
    file = lowered.path / "src" / "lowered" / "kernels" / "vulkan" / f"launches.{variant}.json"
    functions = runtime("launch_list").LaunchList(file).device_functions()
    half = [item for item in functions if HALF_FEATURES & set(item.features)]
    assert len(half) >= 5
    assert all(item.fallback and HALF_FEATURES.isdisjoint(item.fallback[1]) for item in half)
    for lacks in ({"shaderFloat16"}, {"storageBuffer16BitAccess"}, HALF_FEATURES):
        with lowered.load() as model:
            model._running()._pipelines.device.features -= lacks
            again = model(x)
        assert [array.tobytes() for array in again] == [array.tobytes() for array in whole], lacks


class Large(nn.Module):
    """Activations of 150 MB: through a convolution, a reduction, a softmax, a choice of rows and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 36, 3, padding=1)
        self.linear = nn.Linear(1024, 4)

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.tanh(self.conv(x))
        z = torch.softmax(y, -1)
        return self.linear(z[:, :, rows]), z.amax(1), y.sum((1, 2)), z[0, -1, -3:]


@pytest.mark.slow
@pytest.mark.usefixtures("device")
def test_activations_over_the_range_of_a_binding(tmp_path: Path) -> None:
    torch.manual_seed(7)
    module = Large().eval()
    args = torch.randn(1, 1, 1024, 1024), torch.tensor([0, 1023, 511])
    package = transpile(module, args, target="vulkan", name="large", out=tmp_path, test=False)
    x, rows = torch.randn(1, 1, 1024, 1024), torch.tensor([1023, 7, 500])
    with package.load() as model, torch.no_grad():
        for ours, theirs in zip(model(x.numpy(), rows.numpy()), module(x, rows), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4)
    assert '"counts": [' in (package.path / "src/large/kernels/vulkan/launches.base.json").read_text()
