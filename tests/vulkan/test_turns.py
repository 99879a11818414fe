"""Loops of more turns than Mesa's driver for processors lets a shader have: right, or reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm.script import tirx as T

from tests.conformance.test_ops_on_targets import check_samples
from tests.vulkan.device import Device, Pipeline
from tests.vulkan.kernels import TARGET, validation_errors
from transpiler import transpile
from transpiler.api import Package
from transpiler.errors import TranspileErrors
from transpiler.gpu.lowering import lower
from transpiler.ops.attention import Attention
from transpiler.ops.base import Sample
from transpiler.spirv.build import STATUS_TURNS, build_kernels
from transpiler.spirv.kernel import Kernel
from transpiler.spirv.turns import MAX_DIVERGENT_TURNS, MAX_TURNS, Turns
from transpiler.target import load_target


def test_turns_of_nested_loops() -> None:
    turns = Turns()
    with turns.loop(10):
        with turns.loop(5):
            pass
        with turns.loop(0):
            pass
    inner = (5 + 1) + (0 + 1)  # a loop ends by a turn without lanes
    assert turns.most == 10 * (1 + inner) + (1 + 2)
    with turns.loop(None, uniform=True):
        pass
    assert turns.most is None
    assert turns.allowed == MAX_TURNS
    with turns.loop(None):
        pass
    assert turns.allowed == MAX_TURNS
    with turns.loop(3), turns.loop(None):
        pass
    assert turns.allowed == MAX_DIVERGENT_TURNS


def loops(outer: int, inner: int) -> Kernel:
    """`y = y * 3 xor i * j` over all i and j."""

    @T.prim_func(s_tir=True)
    def nest(x: T.Buffer((2,), "int32"), y: T.Buffer((1,), "int32")):
        T.func_attr({"global_symbol": "nest", "tirx.noalias": True})
        block = T.launch_thread("blockIdx.x", 1)
        thread = T.launch_thread("threadIdx.x", 1)
        state = T.alloc_buffer((1,), "int32", scope="local")
        state[0] = block + thread
        for i in range(outer):
            for j in range(inner):
                state[0] = T.bitwise_xor(state[0] + x[0], i * j)
        y[0] = state[0]

    _, device_side = lower(tvm.IRModule({"nest": nest}), tvm.target.Target(TARGET))
    return build_kernels(device_side)["nest_kernel"]


def run(device: Device, kernel: Kernel) -> tuple[int, int]:
    """The result and the status."""
    x, y, status = np.array([3, 0], np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32)
    arrays = [{"x_ptr": x, "y_ptr": y}[item.name] for item in kernel.buffers] + [status] * kernel.counts
    pipeline = Pipeline(device, kernel.code, kernel.name, len(arrays), 0)
    pipeline.run(arrays, b"", (1, 1, 1))
    pipeline.close()
    return int(y[0]), int(status[0])


def expected(outer: int, inner: int) -> int:
    state = np.int32(0)
    for i in range(outer):
        for j in range(inner):
            state = np.int32((state + np.int32(3)) ^ np.int32(i * j))
    return int(state)


@pytest.mark.parametrize(("outer", "inner"), [(300, 100), (1, 70000), (70, 1500)])
def test_loops_are_unrolled_where_there_are_too_many(outer: int, inner: int, device: Device) -> None:
    kernel = loops(outer, inner)
    assert not kernel.counts
    assert run(device, kernel) == (expected(outer, inner), 0)


def test_what_a_driver_would_stop_is_reported(device: Device, validator: str, tmp_path: Path) -> None:
    """On devices without such a limit, the result is right."""
    kernel = loops(70000, 2)
    assert kernel.counts
    assert not validation_errors(kernel, tmp_path)
    result, status = run(device, kernel)
    if "llvmpipe" in device.name:
        assert status == STATUS_TURNS
    else:
        assert (result, status) == (expected(70000, 2), 0)


class Powers(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.matrix_exp(x)


def test_a_package_says_so(device: Device, tmp_path: Path) -> None:
    """One thread computes a matrix: 20 products of 4096 turns and more."""
    x = 0.01 * torch.randn(90, 90, generator=torch.Generator().manual_seed(8))

    def built() -> Package:
        return transpile(Powers(), (torch.zeros(90, 90),), target="vulkan", name="powers", out=tmp_path, test=False)

    if "llvmpipe" in device.name:
        with pytest.raises(
            TranspileErrors, match=r"cannot be verified on .* turns than this driver allows .*matrix_exp"
        ):
            built()
        return
    with built().load() as model:
        np.testing.assert_allclose(model(x.numpy()), torch.linalg.matrix_exp(x).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_over_many_keys(causal: bool, device: Device) -> None:
    """Without a mask the turns are known and few enough; with one they vary, and are counted."""
    rng = np.random.default_rng(9)
    q, k, v = (rng.standard_normal((1, 1, count, 64), np.float32) for count in (4096 if causal else 64, 4096, 4096))
    sample = Sample("long", Attention(causal=causal), (q, k, v))
    assert check_samples([sample], load_target("vulkan")) == []
