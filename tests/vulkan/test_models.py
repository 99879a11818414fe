"""Models on a device: the generated tests pass, fresh inputs agree with float64 PyTorch, calls keep apart."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.models import hf
from tests.models.layers import LAYERS
from tests.models.on_device import CallsOfOdd, drawn, odd_model, odd_sizes
from tests.models.redraw import redraw
from tests.models.support import FILES, Built, assert_equal_to_pytorch, load
from transpiler import transpile
from transpiler.api import Package
from transpiler.spirv.reflect import reflect
from transpiler.target import load_target

pytestmark = pytest.mark.usefixtures("device")
FAST = ["lstm", "mlp", "mnist"]


def build(built: Built, name: str, out: Path, **options: Any) -> Package:
    module, args, kwargs = built
    return transpile(module, args=args, kwargs=kwargs, target="vulkan", name=name, out=out, **options)


def check(built: Built, name: str, out: Path) -> None:
    package = build(built, name, out)
    report = package.test()
    assert report.failed == 0, report.output
    assert report.passed >= 40  # so many has a model of whole numbers, which has the fewest cases: none of large ones
    with package.load() as model:
        assert_equal_to_pytorch(model, built, seed=2)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in FILES]
)
def test_file(name: str, tmp_path: Path) -> None:
    check(load(name), name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layer(name: str, tmp_path: Path) -> None:
    module, inputs = LAYERS[name]()
    check((redraw(module, 1), inputs, {}), f"layer_{name}", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(hf.FAST))
def test_transformers(name: str, tmp_path: Path) -> None:
    module, args, kwargs = hf.FAST[name]()
    check((redraw(module, 1), args, kwargs), name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(hf.SLOW))
def test_large_transformers(name: str, tmp_path: Path) -> None:
    """Base sizes: 3 to 140 million weights, calls of seconds on a processor."""
    module, args, kwargs = hf.SLOW[name]()
    check((redraw(module, 1), args, kwargs), name, tmp_path)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "mnist" else [pytest.mark.slow]) for name in FILES]
)
def test_file_through_staging_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a graphics card whose memory the host does not see."""
    monkeypatch.setenv("TRANSPILE_VULKAN_STAGING", "1")
    built = load(name)
    package = build(built, name, tmp_path)
    report = package.test()
    assert report.failed == 0, report.output
    with package.load() as model:
        assert_equal_to_pytorch(model, built, seed=3)
        recordings = [item for waiting in model._running()._idle._waiting.values() for item in waiting]
        assert recordings
        assert all(recording._staging is not None for recording in recordings)


@pytest.fixture(scope="module")
def odd() -> Built:
    return odd_model()


@pytest.fixture(scope="module")
def package(odd: Built, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return build(odd, "odd", tmp_path_factory.mktemp("odd"), dynamic_shapes=odd_sizes())


class TestCalls(CallsOfOdd):
    repeated, batch, callers, exchanges = 10, 5, 36, 30


def test_everything_is_given_back(package: Package) -> None:
    model = package.load()
    model(*drawn(4))
    running = model._running()
    device = running._pipelines.device
    assert device._finalizer.alive
    finalizer = device._finalizer
    del running, device
    model.close()
    gc.collect()
    assert not finalizer.alive
    with pytest.raises(RuntimeError, match="closed"):
        model(*drawn(4))


class Many(nn.Module):
    """More tensors than a kernel has buffers, joined and added up."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        total = inputs[0]
        for item in inputs[1:]:
            total = torch.tanh(total) * 0.5 + item
        return torch.relu(torch.cat([item * 2 for item in inputs], 1)), torch.cat([*inputs, *inputs[:3]]), total


def test_more_tensors_than_buffers(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(5)
    inputs = tuple(torch.randn(3, 7, generator=random) for _ in range(41))
    module = Many()
    package = build((module, inputs, {}), "many", tmp_path, test=False)
    for path in package.path.rglob("*.spv"):
        assert len(reflect(path.read_bytes()).bindings) <= load_target("vulkan").gpu.buffers
    with package.load() as model:
        for got, expected in zip(model(*(item.numpy() for item in inputs)), module(*inputs), strict=True):
            np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)


class Vocabulary(nn.Module):
    """A table of more bytes than lavapipe takes in one binding, read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50257, 768)
        self.head = nn.Linear(768, 50257, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.table(ids)))


@pytest.mark.slow
def test_weights_over_the_range_of_a_binding(tmp_path: Path) -> None:
    torch.manual_seed(1)
    ids = torch.tensor([[0, 50256, 43689, 43690, 43691, 7]])
    module = Vocabulary().eval()
    with build((module, (ids,), {}), "vocabulary", tmp_path).load() as model, torch.no_grad():
        np.testing.assert_allclose(model(ids.numpy()), module(ids).numpy(), rtol=2e-4, atol=2e-4)
        with pytest.raises(IndexError, match="index out of bounds"):
            model(ids.numpy() + 1)
