"""The emulator itself: what it runs, and the errors that it has to find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cuda.emulator import EmulationError, Emulator

REVERSE = """
extern "C" __global__ void __launch_bounds__(64) reverse(int* __restrict__ x, int* __restrict__ y, int shift);
extern "C" __global__ void __launch_bounds__(64) reverse(int* __restrict__ x, int* __restrict__ y, int shift) {
  __shared__ int kept[64];
  kept[((int)threadIdx.x)] = x[((int)blockIdx.x) * 64 + ((int)threadIdx.x)];
  BARRIER
  y[((int)blockIdx.x) * 64 + ((int)threadIdx.x)] = kept[63 - ((int)threadIdx.x)] + shift;
}
"""
SUM = """
extern "C" __global__ void __launch_bounds__(32) warp_sum(float* __restrict__ x);
extern "C" __global__ void __launch_bounds__(32) warp_sum(float* __restrict__ x) {
  float value = x[threadIdx.x];
  for (int step = 16; step; step /= 2) value += __shfl_down_sync(~0u, value, step);
  if (threadIdx.x == 0) x[0] = value;
}
"""


def reversed_blocks(text: str, folder: Path, order: int) -> np.ndarray:
    x, y = np.arange(192, dtype=np.int32), np.zeros(192, np.int32)
    Emulator(text, folder).launch("reverse", (3, 1, 1), (64, 1, 1), [x, y], [np.int32(5).tobytes()], order)
    return y


@pytest.mark.parametrize("order", [1, -1])
def test_threads_meet_at_barriers(order: int, tmp_path: Path) -> None:
    got = reversed_blocks(REVERSE.replace("BARRIER", "__syncthreads();"), tmp_path, order)
    assert np.array_equal(got, np.arange(192).reshape(3, 64)[:, ::-1].ravel() + 5)


def test_a_missing_barrier_shows_in_both_orders(tmp_path: Path) -> None:
    """Half of the threads read what nobody has written yet: the other half in the other order."""
    results = []
    for order in (1, -1):
        folder = tmp_path / str(order)
        folder.mkdir()
        results.append(reversed_blocks(REVERSE.replace("BARRIER", ""), folder, order))
    expected = np.arange(192).reshape(3, 64)[:, ::-1].ravel() + 5
    wrong = [got != expected for got in results]
    assert [int(item.sum()) for item in wrong] == [96, 96]
    assert not (wrong[0] & wrong[1]).any()


def test_a_barrier_that_not_all_reach_is_a_deadlock(tmp_path: Path) -> None:
    text = REVERSE.replace("BARRIER", "if (threadIdx.x < 8) __syncthreads();")
    with pytest.raises(EmulationError, match=r"deadlock in block \(0, 0, 0\): 8 of 64 threads wait"):
        reversed_blocks(text, tmp_path, 1)


def test_values_move_within_a_warp(tmp_path: Path) -> None:
    x = np.arange(32, dtype=np.float32)
    Emulator(SUM, tmp_path).launch("warp_sum", (1, 1, 1), (32, 1, 1), [x])
    assert x[0] == 31 * 16
