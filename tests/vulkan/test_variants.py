"""The variants of a package's kernels: both give PyTorch's numbers, and a device gets the one for its kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.vulkan.emitted import runtime
from transpiler import transpile
from transpiler.api import Package

pytestmark = pytest.mark.usefixtures("device")


class Products(nn.Module):
    """What goes through shared memory, a softmax whose rows subgroups take, and what is one kernel for all devices."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 13, 3, stride=2)
        self.linear = nn.Linear(13, 37)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x)).flatten(2)
        return torch.softmax(self.linear(y.transpose(1, 2)) @ self.linear.weight, -1).cumsum(-1)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, nn.Module]:
    torch.manual_seed(11)
    module = Products().eval()
    folder = tmp_path_factory.mktemp("products")
    return transpile(module, (torch.zeros(2, 5, 19, 23),), target="vulkan", name="products", out=folder), module


@pytest.mark.parametrize("variant", ["base", "staged"])
def test_a_variant_can_be_forced(
    variant: str, built: tuple[Package, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    package, module = built
    monkeypatch.setenv("TRANSPILE_ISA", variant)
    x = torch.randn(2, 5, 19, 23, generator=torch.Generator().manual_seed(12))
    with package.load() as model, torch.no_grad():
        assert model._running().library.variant == variant
        np.testing.assert_allclose(model(x.numpy()), module(x).numpy(), rtol=1e-5, atol=1e-6)
        used = {step.function.file for step in next(iter(model._running()._idle._waiting.values()))[0].program.steps}
    assert any(file.endswith(".staged.spv") for file in used) == (variant == "staged")


def test_kernels_that_are_the_same_are_there_once(built: tuple[Package, nn.Module]) -> None:
    names = {path.name for path in built[0].path.rglob("*.spv")}
    assert any("cumsum" in name for name in names)
    assert not any("cumsum" in name and "staged" in name for name in names)
    for word in ("conv", "softmax"):
        assert any(word in name and name.endswith(".staged.spv") for name in names)


def test_an_unknown_variant_is_refused(built: tuple[Package, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSPILE_ISA", "avx2")
    with pytest.raises(RuntimeError, match="TRANSPILE_ISA=avx2: this package has kernels for base, staged only"):
        built[0].load()


@pytest.mark.parametrize(
    ("kind", "shared", "expected"),
    [
        ("discrete", 32768, ["staged", "base"]),
        ("cpu", 32768, ["base", "staged"]),
        ("integrated", 1024, ["base"]),  # too little shared memory
    ],
)
def test_a_device_gets_the_variant_for_its_kind(
    kind: str, shared: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = runtime("vulkan.variants")
    kinds = ("discrete", "integrated")
    lists = {"base": SimpleNamespace(kinds=(), bytes=0), "staged": SimpleNamespace(kinds=kinds, bytes=4096)}
    device: Any = SimpleNamespace(found=SimpleNamespace(kind=kind))
    monkeypatch.setattr(variants, "faults", lambda device, found: ["no memory"] if found.bytes > shared else [])
    assert variants.runnable_variants(device, lists) == expected


THREADS_OF_THE_DRIVER = """
import sys
import sys
from pathlib import Path
import numpy as np
import {name}
with {name}.Model() as model:
    model(np.zeros({shape}, np.float32))
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    print(model._running().library.pipelines().device.name, sum("llvmpipe" in name for name in names))
"""


@pytest.mark.parametrize(("size", "setting", "helped"), [(4, None, False), (4, "2", True), (700, None, True)])
def test_small_launches_are_not_shared_among_threads(
    size: int, setting: str | None, helped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mesa's driver for processors wakes its threads for every dispatch: only for models that are worth it, or where
    the user says so."""
    package = transpile(
        nn.Linear(size, size).eval(), (torch.zeros(64, size),), target="vulkan", name="wide", out=tmp_path
    )
    monkeypatch.setenv("PYTHONPATH", str(package.path / "src"))
    monkeypatch.delenv("LP_NUM_THREADS", raising=False)
    if setting is not None:
        monkeypatch.setenv("LP_NUM_THREADS", setting)
    code = THREADS_OF_THE_DRIVER.format(name="wide", shape=(64, size))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name, _, threads = done.stdout.strip().rpartition(" ")
    if "llvmpipe" not in name or (setting is None and os.cpu_count() == 1):
        pytest.skip(f"{name} has no threads of its own to choose")
    assert (int(threads) > 0) == helped
