"""Planted errors: what a package's runtime must not do is found by the stand-in."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.cuda import standin
from tests.cuda.foreign import Library
from transpiler import transpile
from transpiler.api import Package

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


class TwoSteps(nn.Module):
    """Kernels that wait for each other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, -1).cumsum(0)


@pytest.fixture(scope="module")
def package(standin_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return transpile(
        TwoSteps().eval(), (torch.zeros(3, 4),), target="cuda", arch="sm_80", name="steps",
        out=tmp_path_factory.mktemp("steps"),
    )  # fmt: skip


@pytest.fixture
def model(package: Package) -> Iterator[Any]:
    standin.faults()
    with package.load() as model:
        yield model
    gc.collect()
    standin.faults()


def module(model: Any, name: str) -> Any:
    return importlib.import_module(f"{type(model).__module__.rpartition('.')[0]}.runtime.{name}")


def test_a_missing_edge(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    good = model(X)
    program = module(model, "launches").Program
    monkeypatch.setattr(program, "needs_barrier", lambda self: [False] * len(self.steps))
    assert len(model._library.list.program(0, {}).steps) > 1
    assert not np.array_equal(fresh(model)(X), good)


def fresh(model: Any) -> Any:
    """Another model, whose recordings are made anew."""
    return type(model)()


def test_a_missing_wait_for_the_device(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    good = model(X)
    monkeypatch.setattr(module(model, "cuda.recording").Recording, "_finish", lambda self: None)
    assert not np.array_equal(fresh(model)(X), good)


def test_a_missing_wait_for_another_stream(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    good = model(X)
    with Library(model) as other:
        source = other.stream()
        event = module(model, "cuda.memory").Event
        tensor = other.tensor(X, source)
        assert np.array_equal(other.read(model(tensor)), good)
        monkeypatch.setattr(event, "hold_back", lambda self, stream: None)
        assert not np.array_equal(other.read(model(other.tensor(X, source))), good)
        other.destroy(source)


def test_memory_of_the_host_that_is_not_pinned(model: Any) -> None:
    device, driver = model._library.device, model._library.device.driver
    buffer = module(model, "cuda.memory").Buffer(device, 48, "a test")
    with device.current():
        (code,) = driver.cuMemcpyHtoDAsync(buffer.address, X.ctypes.data, 48, driver.CUstream(0))
    assert code.name == "CUDA_ERROR_INVALID_VALUE"
    assert "not pinned" in standin.faults()


def test_memory_that_is_used_or_freed_again(model: Any) -> None:
    device, driver = model._library.device, model._library.device.driver
    with device.current():
        _, address = driver.cuMemAlloc(64)
        driver.cuMemFree(address)
        driver.cuMemFree(address)
        assert "freed before" in standin.faults()
        _, address = driver.cuMemAlloc(64)
        values = np.zeros(68, np.uint8)
        (code,) = driver.cuMemcpyDtoH(values.ctypes.data, address, 64)
        assert not code
        assert (values[:64] == 0xFF).all()  # what nobody has written is no number
        driver.cuMemFree(address)


def test_memory_that_is_left(model: Any) -> None:
    device, driver = model._library.device, model._library.device.driver
    before = standin.left()
    with device.current():
        _, address = driver.cuMemAlloc(64)
        _, stream = driver.cuStreamCreate(1)
        assert standin.left() != before
        driver.cuMemFree(address)
        driver.cuStreamDestroy(stream)
        assert standin.left() == before
        driver.cuStreamSynchronize(stream)
        assert "a stream is used that was destroyed" in standin.faults()


def test_calls_without_a_context(model: Any) -> None:
    driver = model._library.device.driver
    assert driver.cuMemAlloc(64)[0].name == "CUDA_ERROR_INVALID_CONTEXT"
    assert driver.cuStreamCreate(1)[0].name == "CUDA_ERROR_INVALID_CONTEXT"


def test_launches_that_cannot_be(model: Any) -> None:
    device, driver = model._library.device, model._library.device.driver
    step = model._library.list.program(0, {}).steps[0]
    with device.current():
        handle = model._library.code.get(step.function)
        for grid, block in (((0, 1, 1), (1, 1, 1)), ((1, 65536, 1), (1, 1, 1)), ((1, 1, 1), (2048, 1, 1))):
            (code,) = driver.cuLaunchKernel(handle, *grid, *block, 0, driver.CUstream(0), 0, 0)
            assert code.name == "CUDA_ERROR_INVALID_VALUE"
        (code,) = driver.cuLaunchKernel(handle, 1, 1, 1, 1, 1, 1, 99_999, driver.CUstream(0), 0, 0)
        assert code.name == "CUDA_ERROR_INVALID_VALUE"
        assert driver.cuLibraryGetKernel(model._library.code._library, b"nothing")[0].name == "CUDA_ERROR_NOT_FOUND"
        (code,) = driver.cuLaunchKernel(driver.CUfunction(64), 1, 1, 1, 1, 1, 1, 0, driver.CUstream(0), 0, 0)
        assert code.name == "CUDA_ERROR_INVALID_HANDLE"
        assert "not loaded" in standin.faults()
