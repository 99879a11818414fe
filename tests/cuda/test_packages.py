"""Packages for CUDA over a stand-in for the driver: the generated tests pass, fresh inputs agree with PyTorch, calls
keep apart, everything is given back."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cuda import standin
from tests.models.redraw import redraw
from tests.models.support import FILES, Built, assert_equal_to_pytorch, load
from tests.models.test_random_models import Noisy
from tests.models.test_random_models import inputs as noisy_inputs
from tests.models.test_state import Cache, Counters
from tests.vulkan.test_models import Odd, drawn
from tests.vulkan.test_state import Twins
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
    torch.manual_seed(3)
    rows = torch.arange(4) % 7
    return redraw(Odd().eval(), 1), (torch.randn(4, 3, 11, 13), rows), {}


@pytest.fixture(scope="module")
def package(odd: Built, standin_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    batch = torch.export.Dim("batch", min=1, max=40)
    return build(odd, "odd", tmp_path_factory.mktemp("odd"), dynamic_shapes=({0: batch}, {0: batch}))


def test_the_generated_tests_of_sizes_that_vary(package: Package) -> None:
    check(package, 40)


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


def test_the_hundredth_call_and_kernel_by_kernel_give_the_same_bits(package: Package) -> None:
    x, row = drawn(2)
    with package.load() as model, type(model)(native=False) as stepwise:
        first = [array.tobytes() for array in model(x, row)]
        for _ in range(99):
            assert [array.tobytes() for array in model(x, row)] == first
        assert [array.tobytes() for array in stepwise(x, row)] == first


def test_threads_do_not_disturb_each_other(package: Package) -> None:
    """More sizes and callers at once than recordings are kept."""
    with package.load() as model:
        calls = [drawn(1 + index % 12, index) for index in range(24)]
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
            calls = [pool.submit(lambda: model(x, row)[0].tobytes()) for _ in range(20)]
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


def test_models_share_the_weights_of_a_file_and_the_code(package: Package) -> None:
    with package.load() as one, type(one)() as two, type(one)(device="cuda:1") as elsewhere:
        assert one._running()._on_device is two._running()._on_device
        assert one._library.code is two._library.code
        assert elsewhere._running()._on_device is not one._running()._on_device
        assert (one.hardware, elsewhere.hardware) == ("stand-in 0", "stand-in 1")
        x, row = drawn(3)
        got = [[array.tobytes() for array in model(x, row)] for model in (one, two, elsewhere)]
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
    check(build((Counters().eval(), (torch.randn(3),), {}), "counters", tmp_path), 20)


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
    package = build((Twins().eval(), (torch.ones(4),), {}), "twins", tmp_path)
    x = np.array([1, 2, 3, 4], np.float32)
    with package.load() as model, package.load(native=False) as stepwise:
        for owner in (model, stepwise):
            for turn in range(3):
                given, weight, before, y, again, after = owner(x)
                np.testing.assert_array_equal(given, x)
                np.testing.assert_array_equal(weight, np.arange(4))
                np.testing.assert_array_equal(before, turn * x)
                np.testing.assert_array_equal(y, 2 * x)
                np.testing.assert_array_equal(again, y)
                np.testing.assert_array_equal(after, (turn + 1) * x)
