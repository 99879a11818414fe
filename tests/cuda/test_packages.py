"""Packages for CUDA over a stand-in for the driver: the generated tests pass, fresh inputs agree with PyTorch, calls
keep apart, everything is given back."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cuda import standin
from tests.models.on_device import (
    CallsOfOdd,
    assert_sessions_come_and_go,
    assert_twins,
    bits,
    drawn,
    odd_model,
    odd_sizes,
    twins,
)
from tests.models.support import FILES, Built, assert_equal_to_pytorch, load
from tests.models.test_random_models import Noisy
from tests.models.test_random_models import inputs as noisy_inputs
from tests.models.test_state import Cache, Counters
from transpiler import transpile
from transpiler.api import Package

pytestmark = pytest.mark.usefixtures("driver")
FAST = ["lstm", "mlp", "mnist"]


def build(built: Built, name: str, out: Path, **options: Any) -> Package:
    module, args, kwargs = built
    return transpile(module, args=args, kwargs=kwargs, target="cuda", arch="sm_80", name=name, out=out, **options)


def check(package: Package, least: int = 1) -> None:
    report = package.test()
    assert report.failed == 0, report.output
    assert report.passed >= least


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in FILES]
)
def test_file(name: str, tmp_path: Path) -> None:
    built = load(name)
    package = build(built, name, tmp_path)
    check(package, 40)
    with package.load() as model:
        assert_equal_to_pytorch(model, built, seed=2)


@pytest.fixture(scope="module")
def odd() -> Built:
    return odd_model()


@pytest.fixture(scope="module")
def package(odd: Built, standin_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return build(odd, "odd", tmp_path_factory.mktemp("odd"), dynamic_shapes=odd_sizes())


class TestCalls(CallsOfOdd):
    repeated, batch, callers, exchanges = 100, 2, 24, 20


def test_the_generated_tests_of_sizes_that_vary(package: Package) -> None:
    check(package, 40)


def test_models_share_the_weights_of_a_file_and_the_code(package: Package) -> None:
    with package.load() as one, type(one)() as two, type(one)(device="cuda:1") as elsewhere:
        assert one._running()._on_device is two._running()._on_device
        assert one._library.code is two._library.code
        assert elsewhere._running()._on_device is not one._running()._on_device
        assert (one.hardware, elsewhere.hardware) == ("stand-in 0", "stand-in 1")
        x, row = drawn(3)
        got = [bits(model(x, row)) for model in (one, two, elsewhere)]
        assert got[0] == got[1] == got[2]


def test_everything_is_given_back(package: Package) -> None:
    gc.collect()
    assert standin.left() == ""
    model = package.load()
    session = model.session()
    model(*drawn(4))
    session(*drawn(2))
    model.profile(*drawn(4))
    assert "allocations" in standin.left()
    model.close()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        model(*drawn(4))
    del model, session
    gc.collect()
    assert standin.left() == ""


def test_the_profile_has_a_time_for_every_call(package: Package) -> None:
    with package.load() as model:
        times = model.profile(*drawn(4))
        assert len(times) == len(model._library.calls[0])
        assert all(seconds > 0 for _, seconds in times)


# --- state ------------------------------------------------------------------------------------------------------


def test_the_generated_tests_of_a_model_with_state(tmp_path: Path) -> None:
    torch.manual_seed(4)
    package = build((Counters().eval(), (torch.randn(3),), {}), "counters", tmp_path)
    check(package, 20)
    with package.load() as model:
        assert_sessions_come_and_go(model, np.ones(3, np.float32))


@pytest.mark.slow
def test_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(4)
    check(build((Noisy().eval(), noisy_inputs(), {}), "noisy", tmp_path, rng=True), 20)


def test_functions_share_a_state_that_sessions_do_not(tmp_path: Path) -> None:
    torch.manual_seed(4)
    functions = {
        "prefill": (torch.tensor([[1, 2, 3, 4, 5]]),),
        "decode": (torch.tensor([[6]]), torch.tensor([5]), torch.tensor([1])),
    }
    package = transpile(Cache().eval(), functions=functions, target="cuda", arch="sm_80", name="cache", out=tmp_path)
    ids, token, position, place = np.array([[1, 2, 3, 4, 5]]), np.array([[6]]), np.array([5]), np.array([1])
    with package.load() as model:
        model.prefill(ids)
        other = model.session()
        before = other.state["keys"]
        first = model.decode(token, position, place)
        assert (model.state["keys"] != before).any()
        assert (other.state["keys"] == before).all()
        other.prefill(ids)
        np.testing.assert_array_equal(first, other.decode(token, position, place))
        other.reset()
        other.prefill(ids)
        saved = dict(other.state)
        with pytest.raises(IndexError, match="index out of bounds in kernel"):
            model.decode(token, np.array([9]), np.array([0]))
        with pytest.raises(RuntimeError, match="a call failed after it had changed the state"):
            model.decode(token, position, place)
        model.load_state(saved)
        np.testing.assert_array_equal(first, model.decode(token, position, place))
        assert (model.state["keys"] != saved["keys"]).any()


def test_outputs_that_no_kernel_writes(tmp_path: Path) -> None:
    assert_twins(build(twins(), "twins", tmp_path))
