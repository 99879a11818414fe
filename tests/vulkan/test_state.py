"""Models that keep state, or draw random numbers, on a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.on_device import assert_sessions_come_and_go, assert_twins, twins
from tests.models.test_random_models import Noisy
from tests.models.test_random_models import inputs as noisy_inputs
from tests.models.test_state import Cache, Counters, RunningLstm, StreamingConv
from transpiler import transpile
from transpiler.api import Package

pytestmark = pytest.mark.usefixtures("device")
STATEFUL = {
    "counters": (Counters, (3,)),
    "streaming_conv": (StreamingConv, (1, 2, 6)),
    "running_lstm": (RunningLstm, (4, 2, 3)),
}


def check(package: Package) -> None:
    report = package.test()
    assert report.failed == 0, report.output
    assert report.passed > 0


@pytest.mark.parametrize(
    "name", ["counters", *(pytest.param(name, marks=pytest.mark.slow) for name in ("running_lstm", "streaming_conv"))]
)
def test_the_generated_tests_pass(name: str, tmp_path: Path) -> None:
    kind, shape = STATEFUL[name]
    torch.manual_seed(4)
    package = transpile(kind().eval(), (torch.randn(shape),), target="vulkan", name=name, out=tmp_path)
    check(package)
    with package.load() as model:
        assert_sessions_come_and_go(model, np.ones(shape, np.float32))


@pytest.mark.slow
def test_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(4)
    package = transpile(Noisy().eval(), noisy_inputs(), target="vulkan", name="noisy", out=tmp_path, rng=True)
    check(package)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Package:
    torch.manual_seed(4)
    functions = {
        "prefill": (torch.tensor([[1, 2, 3, 4, 5]]),),
        "decode": (torch.tensor([[6]]), torch.tensor([5]), torch.tensor([1])),
    }
    folder = tmp_path_factory.mktemp("cache")
    return transpile(Cache().eval(), functions=functions, target="vulkan", name="cache", out=folder)


def test_functions_share_a_state_that_sessions_do_not(cache: Package) -> None:
    with cache.load() as model:
        model.prefill(np.array([[1, 2, 3, 4, 5]]))
        other = model.session()
        before = other.state["keys"]
        first = model.decode(np.array([[6]]), np.array([5]), np.array([1]))
        assert (model.state["keys"] != before).any()
        assert (other.state["keys"] == before).all()
        other.prefill(np.array([[1, 2, 3, 4, 5]]))
        again = other.decode(np.array([[6]]), np.array([5]), np.array([1]))
        np.testing.assert_array_equal(first, again)


def test_a_failed_call_that_may_have_written_loses_the_state(cache: Package) -> None:
    with cache.load() as model:
        model.prefill(np.array([[1, 2, 3, 4, 5]]))
        saved = dict(model.state)
        with pytest.raises(IndexError, match="index out of bounds in kernel"):
            model.decode(np.array([[6]]), np.array([9]), np.array([0]))
        with pytest.raises(RuntimeError, match="a call failed after it had changed the state"):
            model.decode(np.array([[6]]), np.array([5]), np.array([1]))
        model.load_state(saved)
        model.decode(np.array([[6]]), np.array([5]), np.array([1]))
        assert (model.state["keys"] != saved["keys"]).any()


def test_a_device_that_fails_loses_the_state(cache: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile has a state of its own."""
    with cache.load() as model:
        model.prefill(np.array([[1, 2, 3, 4, 5]]))
        recording = type(next(iter(model._running()._idle._waiting.values()))[0])
        decode = np.array([[6]]), np.array([5]), np.array([1])

        def fail(*_: object) -> None:
            raise RuntimeError("the Vulkan device was lost")

        with monkeypatch.context() as patch:
            patch.setattr(recording, "replay", fail)
            with pytest.raises(RuntimeError, match="device was lost"):
                model.profile(*decode, function="decode")
        model.decode(*decode)
        with monkeypatch.context() as patch:
            patch.setattr(recording, "replay", fail)
            with pytest.raises(RuntimeError, match="device was lost"):
                model.decode(*decode)
        with pytest.raises(RuntimeError, match="a call failed after it had changed the state"):
            model.decode(*decode)
        model.reset()
        model.prefill(np.array([[1, 2, 3, 4, 5]]))


def test_a_state_of_other_sizes_is_refused(cache: Package) -> None:
    with cache.load() as model, pytest.raises(ValueError, match="expected shape"):
        model.state["keys"] = np.zeros((2, 2), np.float32)


def test_outputs_that_no_kernel_writes(tmp_path: Path) -> None:
    module, args, _ = twins()
    assert_twins(transpile(module, args, target="vulkan", name="twins", out=tmp_path))
