"""What packages for every kind of GPU must do: models that are hard on a device, and tests of their packages."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.redraw import redraw
from tests.models.support import Built
from transpiler.api import Package


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


def odd_model() -> Built:
    torch.manual_seed(3)
    rows = torch.arange(4) % 7
    return redraw(Odd().eval(), 1), (torch.randn(4, 3, 11, 13), rows), {}


def odd_sizes() -> Any:
    """`dynamic_shapes` of `Odd`: a batch that varies."""
    batch = torch.export.Dim("batch", min=1, max=40)
    return {0: batch}, {0: batch}


def drawn(batch: int, seed: int = 0) -> tuple[Any, Any]:
    """Inputs of `Odd`."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, 3, 11, 13), np.float32), rng.integers(0, 7, batch)


def bits(outputs: Any) -> list[bytes]:
    return [array.tobytes() for array in outputs]


class CallsOfOdd:
    """Tests of a package of `Odd`: the fixture `odd` is the model, `package` what was made of it with `odd_sizes`."""

    repeated: int
    batch: int  # of the calls that are repeated
    callers: int
    exchanges: int

    def test_sizes_that_vary(self, package: Package, odd: Built) -> None:
        module = odd[0]
        with package.load() as model:
            for batch in (1, 3, 40, 2, 1):
                x, row = drawn(batch, batch)
                got = model(x, row)
                with torch.no_grad():
                    want = module(torch.from_numpy(x), torch.from_numpy(row))
                for ours, theirs in zip(got, want, strict=True):
                    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-5, atol=2e-5)
                assert bits(got) == bits(model(x, row))

    def test_repeated_calls_and_kernel_by_kernel_give_the_same_bits(self, package: Package) -> None:
        x, row = drawn(self.batch)
        with package.load() as model, type(model)(native=False) as stepwise:
            first = bits(model(x, row))
            for _ in range(self.repeated - 1):
                assert bits(model(x, row)) == first
            assert bits(stepwise(x, row)) == first

    def test_threads_do_not_disturb_each_other(self, package: Package) -> None:
        """More sizes and callers at once than recordings are kept."""
        with package.load() as model:
            calls = [drawn(1 + index % 12, index) for index in range(self.callers)]
            alone = [bits(model(*call)) for call in calls]
            with ThreadPoolExecutor(3) as pool:
                together = list(pool.map(lambda call: bits(model(*call)), calls))
            assert together == alone

    def test_weights_are_exchanged_while_calls_run(self, package: Package, odd: Built) -> None:
        state = {name: value.numpy() for name, value in odd[0].state_dict().items()}
        other = {name: value + np.float32(0.5) for name, value in state.items()}
        x, row = drawn(4)
        with package.load() as model:
            old = model(x, row)[0].tobytes()
            with ThreadPoolExecutor(2) as pool:
                calls = [pool.submit(lambda: model(x, row)[0].tobytes()) for _ in range(self.exchanges)]
                model.load_weights(other)
                new = model(x, row)[0].tobytes()
                assert {call.result() for call in calls} <= {old, new}
            assert new != old
            model.load_weights(state)
            assert model(x, row)[0].tobytes() == old

    def test_data_that_do_not_fit(self, package: Package) -> None:
        x, row = drawn(4)
        with package.load() as model:
            good = model(x, row)[0].tobytes()
            row[2] = 7
            with pytest.raises(IndexError, match=r"index out of bounds in kernel .*take"):
                model(x, row)
            row[2] = 0
            assert model(x, drawn(4)[1])[0].tobytes() == good


class Twins(nn.Module):
    """Outputs that are an input, a weight, a part of the state, and the same value twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4.0))
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        before = self.count.clone()
        self.count += x
        y = x * 2
        return x, self.weight, before, y, y, self.count.clone()


def twins() -> Built:
    return Twins().eval(), (torch.ones(4),), {}


def assert_twins(package: Package) -> None:
    """The outputs of `twins`, which no kernel writes, are right in every call."""
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


def assert_sessions_come_and_go(model: Any, *args: Any) -> None:
    """More sessions in turn than recordings are kept of one record once each; those that are gone leave nothing."""
    running = model._running()
    made: list[bool] = []
    record = running.record
    running.record = lambda program, state: (made.append(state is not None), record(program, state))[1]
    sessions = [model.session() for _ in range(11)]
    first, *others = [[session(*args) for session in sessions] for _ in range(3)]
    del running.record
    assert made == [True] * 11
    for results in (first, *others):
        assert len({bits(result)[0] for result in results}) == 1
    assert bits(others[0][0]) != bits(first[0])
    states = [weakref.ref(session._state.memory) for session in sessions]
    sessions.clear()
    gc.collect()
    assert not any(state() for state in states)
    assert not running._idle._waiting


# --- what a process says ----------------------------------------------------------------------------------------


def said(package: Package, code: str = "Model()", **environment: str) -> str:
    """The last line that a process of its own prints which runs `code`, or its error; `X` is 3 x 4 ones."""
    script = (
        f"import numpy as np\nfrom {package.name} import Model\nX = np.ones((3, 4), np.float32)\n"
        f"try:\n    {code}\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    path = os.pathsep.join([environment.pop("path", ""), str(package.path / "src")]).strip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
