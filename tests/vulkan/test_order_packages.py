"""Packages whose scans and sorts are those for graphics cards, whole: numbers, sizes that vary, threads, the layer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from tests.vulkan.validation import validated
from transpiler import transpile
from transpiler.api import Package
from transpiler.ir import Array
from transpiler.ops.scan import Topk

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("device")]
LENGTH = 2300


class Order(nn.Module):
    """`x` [batch, LENGTH], `n` [LENGTH]."""

    def forward(self, x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, ...]:
        small = x[:, :500]
        return (
            x.cumsum(1), small.cumprod(1), *torch.cummax(x, 1), torch.logcumsumexp(x, 1), n.cumsum(0),
            *torch.sort(n, descending=True, stable=True), *torch.topk(x, 5, 1), *torch.sort(small, dim=1, stable=True),
        )  # fmt: skip


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return transpile(
        Order(), (torch.zeros(2, LENGTH), torch.zeros(LENGTH, dtype=torch.int64)), target="vulkan", name="order",
        out=tmp_path_factory.mktemp("order"), dynamic_shapes={"x": {0: torch.export.Dim("batch", max=40)}, "n": None},
    )  # fmt: skip


def drawn(batch: int) -> tuple[Array, Array]:
    g = np.random.default_rng()
    # Few different numbers: many ties.
    x = (g.integers(-60, 61, (batch, LENGTH)) / 64).astype(np.float32)
    return x, g.integers(-(2**62), 2**62, LENGTH)


def check(x: Array, n: Array, results: tuple[Array, ...]) -> None:
    """Against PyTorch; sums and products within a rounding for each element."""
    exact = Order()(torch.from_numpy(x).double(), torch.from_numpy(n))
    expected = [item.numpy() for item in exact]
    # PyTorch's positions of equal elements are any.
    expected[8:10] = Topk(5, 1).reference(x)
    lengths = np.arange(1, LENGTH + 1)
    bounds = {
        0: lengths * 2.0**-24 * np.cumsum(np.abs(x), 1),
        1: lengths[:500] * 2.0**-24 * np.abs(expected[1]) + 2.0**-126,
        4: np.full(x.shape, 2.0**-23) * (1 + np.log(LENGTH)),
    }
    for place, (got, want) in enumerate(zip(results, expected, strict=True)):
        if place in bounds:
            assert (np.abs(got - want) <= bounds[place]).all(), place
        else:
            np.testing.assert_array_equal(got, want, err_msg=str(place))


@pytest.mark.parametrize("variant", ["base", "staged"])
def test_numbers(variant: str, order: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSPILE_ISA", variant)
    with order.load() as model:
        for batch in (1, 2, 7):
            x, n = drawn(batch)
            first, again = model(x, n), model(x, n)
            assert [one.tobytes() for one in first] == [one.tobytes() for one in again]
            check(x, n, first)
        used = {step.function.file for step in next(iter(model._running()._idle._waiting.values()))[0].program.steps}
        for word in ("cumsum", "cumprod", "cummax", "logcumsumexp"):
            assert {file.endswith(".staged.spv") for file in used if word in file} == {variant == "staged"}, word


def test_several_threads(order: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSPILE_ISA", "staged")
    inputs = [drawn(batch) for batch in (3, 4, 3, 5)]
    with order.load() as model, ThreadPoolExecutor(2) as pool:
        for given, results in zip(inputs, pool.map(lambda given: model(*given), inputs), strict=True):
            check(*given, results)


def test_the_layer_finds_nothing(order: Package) -> None:
    code = (
        "import numpy as np; from order import Model; "
        f"x, n = np.ones((3, {LENGTH}), np.float32), np.ones({LENGTH}, np.int64); Model()(x, n); "
        "Model(native=False)(x, n)"
    )
    _, broken = validated(code, PYTHONPATH=str(order.path / "src"), TRANSPILE_ISA="staged")
    assert not broken
