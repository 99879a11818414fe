"""Models on a device: the generated tests pass, fresh inputs agree with float64 PyTorch, calls keep apart."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.models import hf
from tests.models.layers import LAYERS
from tests.models.redraw import redraw
from tests.models.support import FILES, Built, assert_equal_to_pytorch, load
from transpiler import transpile
from transpiler.api import Package

pytestmark = pytest.mark.usefixtures("device")
FAST = ["lstm", "mlp", "mnist"]


def build(built: Built, name: str, out: Path, **options: Any) -> Package:
    module, args, kwargs = built
    return transpile(module, args=args, kwargs=kwargs, target="vulkan", name=name, out=out, **options)


def check(built: Built, name: str, out: Path) -> None:
    package = build(built, name, out)
    report = package.test()
    assert report.failed == 0, report.output
    assert report.passed > 40
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


class Odd(nn.Module):
    """Sizes that no workgroup divides, values that are read long after they were written, and a choice of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.LayerNorm(13)
        self.table = nn.Embedding(7, 11 * 13)

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.conv(x))
        z = torch.softmax(self.norm(y), -1) + y
        return z + self.table(row).reshape(-1, 1, 11, 13), z.sum((1, 2, 3)).cumsum(0)


@pytest.fixture(scope="module")
def odd() -> Built:
    torch.manual_seed(3)
    rows = torch.arange(4) % 7
    return redraw(Odd().eval(), 1), (torch.randn(4, 3, 11, 13), rows), {}


@pytest.fixture(scope="module")
def package(odd: Built, tmp_path_factory: pytest.TempPathFactory) -> Package:
    batch = torch.export.Dim("batch", min=1, max=40)
    return build(odd, "odd", tmp_path_factory.mktemp("odd"), dynamic_shapes=({0: batch}, {0: batch}))


def drawn(batch: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, 3, 11, 13), np.float32), rng.integers(0, 7, batch)


def test_sizes_that_vary(package: Package, odd: Built) -> None:
    module = odd[0]
    with package.load() as model:
        for batch in (1, 3, 40, 2, 1):
            x, row = drawn(batch, batch)
            got = model(x, row)
            with torch.no_grad():
                want = module(torch.from_numpy(x), torch.from_numpy(row))
            for ours, theirs in zip(got, want, strict=True):
                np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-5, atol=2e-5)
            assert all(a.tobytes() == b.tobytes() for a, b in zip(got, model(x, row), strict=True))


def test_the_tenth_call_and_kernel_by_kernel_give_the_same_bits(package: Package) -> None:
    x, row = drawn(5)
    with package.load() as model, type(model)(native=False) as stepwise:
        first = [array.tobytes() for array in model(x, row)]
        for _ in range(9):
            assert [array.tobytes() for array in model(x, row)] == first
        assert [array.tobytes() for array in stepwise(x, row)] == first


def test_threads_do_not_disturb_each_other(package: Package) -> None:
    """More sizes and callers at once than recordings are kept."""
    with package.load() as model:
        calls = [drawn(1 + index % 12, index) for index in range(36)]
        alone = [[array.tobytes() for array in model(*call)] for call in calls]
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(lambda call: [array.tobytes() for array in model(*call)], calls))
        assert together == alone


def test_weights_are_exchanged_while_calls_run(package: Package, odd: Built) -> None:
    state = {name: value.numpy() for name, value in odd[0].state_dict().items()}
    other = {name: value + np.float32(0.5) for name, value in state.items()}
    x, row = drawn(4)
    with package.load() as model:
        old = model(x, row)[0].tobytes()
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(lambda: model(x, row)[0].tobytes()) for _ in range(30)]
            model.load_weights(other)
            new = model(x, row)[0].tobytes()
            assert {call.result() for call in calls} <= {old, new}
        assert new != old
        model.load_weights(state)
        assert model(x, row)[0].tobytes() == old


def test_data_that_do_not_fit(package: Package) -> None:
    x, row = drawn(4)
    with package.load() as model:
        good = model(x, row)[0].tobytes()
        row[2] = 7
        with pytest.raises(IndexError, match=r"index out of bounds in kernel .*take"):
            model(x, row)
        row[2] = 0
        assert model(x, drawn(4)[1])[0].tobytes() == good


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
