"""How things are timed: sides in turns, by the device's events, medians; seconds throughout."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Times = dict[str, float]
WARMING, LEAST, MOST, SECONDS = 3, 5, 60, 0.4


def in_turns(sides: Mapping[str, Callable[[], float]]) -> Times:
    """The median of each side's own reading of the device's clock."""
    first = [min(run() for _ in range(WARMING)) for run in sides.values()]
    turns = max(LEAST, min(MOST, int(SECONDS / max(max(first), 1e-6))))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, run in sides.items():
            taken[name].append(run())
    return {name: statistics.median(values) for name, values in taken.items()}


def events(run: Callable[[], Any]) -> float:
    """Seconds between two events of PyTorch's around a call."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def on_host(run: Callable[[], Any]) -> float:
    """Seconds of a call by the host's clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def facts() -> dict[str, str]:
    """Date, card, driver and what it was compared with."""
    from transpiler.gpu.here import cuda_device

    peers = f"PyTorch {torch.__version__}" if torch.cuda.is_available() else "none: this PyTorch has no CUDA"
    return {"date": time.strftime("%Y-%m-%d"), "card, capability, driver's CUDA": cuda_device(), "peers": peers}
