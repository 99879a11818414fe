"""Where the time of a call goes: every kernel against what this machine can do."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .sizes import Sizes, parse_size

# Of a cache that is read again and again: fuller than this, and parts of it are pushed out in between.
USABLE = 0.75


@dataclass(frozen=True)
class Rates:
    """Measured with the threads of a model: `flops` multiply-adds as operations per second; of every level of
    memory, nearest first, the bytes it holds (0: any amount) and the bytes read from it per second."""

    flops: float
    levels: tuple[tuple[float, float], ...]

    def bandwidth(self, size: float) -> float:
        """Bytes per second of the first level that holds `size` bytes beside what else is in use."""
        return next(rate for capacity, rate in self.levels if capacity * USABLE >= size or capacity == 0)

    def __str__(self) -> str:
        read = ", ".join(f"{rate * 1e-9:.0f}" for _, rate in self.levels)
        return f"{self.flops * 1e-9:.0f} GFLOP/s; {read} GB/s read from L1, L2, L3, memory"


@dataclass(frozen=True)
class Event:
    """A kernel call: seconds from the start of the model's call, and the user's source line.

    `helpers` are the threads beside the caller's that took part: from the start of the first part to the end
    of the last.
    """

    kernel: str
    start: float
    end: float
    source: str
    helpers: Mapping[int, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelTime:
    """What `calls` calls of a kernel take together: seconds, operations, bytes moved at least, and the least
    time that the machine's rates allow: of arithmetic, of memory."""

    kernel: str
    calls: int
    seconds: float
    flops: float
    bytes: float
    arithmetic: float
    memory: float

    @property
    def least(self) -> float:
        return max(self.arithmetic, self.memory)

    def __add__(self, other: KernelTime) -> KernelTime:
        """Both together, under the name of the first."""
        return KernelTime(
            self.kernel,
            self.calls + other.calls,
            self.seconds + other.seconds,
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.arithmetic + other.arithmetic,
            self.memory + other.memory,
        )


def kernel_times(
    runs: Sequence[Sequence[Event]], manifest: Mapping[str, Any], sizes: Sizes, rates: Rates | None
) -> list[KernelTime]:
    """Of every call of the plan, the median of the runs.

    Weights are read from the level that holds all of the model's, and again from the one that holds the
    kernel's; other values from the one that holds those of the kernel. Without rates the least times are 0.
    """
    kernels, all_weights = manifest["kernels"], manifest["weights"]["bytes"]
    times = []
    for events in zip(*runs, strict=True):
        name = events[0].kernel
        work, moved, weights, again = (
            parse_size(str(kernels[name].get(key, 0)))(sizes)
            for key in ("flops", "bytes", "weight_bytes", "reread_bytes")
        )
        others = max(moved - weights, 0)
        memory = arithmetic = 0.0
        if rates is not None:
            memory = weights / rates.bandwidth(all_weights) + others / rates.bandwidth(others)
            memory += again / rates.bandwidth(weights)
            arithmetic = work / rates.flops
        seconds = statistics.median(event.end - event.start for event in events)
        times.append(KernelTime(name, 1, seconds, work, moved + again, arithmetic, memory))
    return times


def by_kernel(times: Iterable[KernelTime]) -> list[KernelTime]:
    """The calls of every kernel together, the longest first."""
    together: dict[str, KernelTime] = {}
    for time in times:
        together[time.kernel] = together[time.kernel] + time if time.kernel in together else time
    return sorted(together.values(), key=lambda time: -time.seconds)


def table(times: Sequence[KernelTime]) -> Iterator[str]:
    """Lines of text, the last one for all of them."""
    total = KernelTime("total", 0, 0.0, 0.0, 0.0, 0.0, 0.0)
    least = 0.0
    for time in times:
        total, least = total + time, least + time.least
    width = max([len(time.kernel) for time in times] + [6])
    yield (
        f"{'kernel':{width}}  {'calls':>5}  {'time':>10}  {'share':>6}  {'GFLOP/s':>8}  {'GB/s':>7}  "
        f"{'of roofline':>11}  bound by"
    )
    for time in times:
        bound = "arithmetic" if time.arithmetic >= time.memory else "memory"
        yield _line(time, width, total.seconds, time.least) + f"  {bound if time.least else 'unknown'}"
    yield _line(total, width, total.seconds, least)


def _line(time: KernelTime, width: int, total: float, least: float) -> str:
    per_second = 1.0 / time.seconds if time.seconds else 0.0
    return (
        f"{time.kernel:{width}}  {time.calls:5}  {time_text(time.seconds):>10}  "
        f"{time.seconds / (total or 1.0):6.1%}  {time.flops * per_second * 1e-9:8.1f}  "
        f"{time.bytes * per_second * 1e-9:7.1f}  {least * per_second:11.1%}"
    )


def trace(events: Sequence[Event], manifest: Mapping[str, Any], sizes: Sizes) -> str:
    """One run in the JSON format of Chrome's tracing, which Perfetto (ui.perfetto.dev) reads.

    Every thread has a lane, the caller's is the first.
    """
    kernels = manifest["kernels"]

    def span(event: Event, thread: int, start: float, end: float) -> dict[str, Any]:
        times = {"ts": start * 1e6, "dur": (end - start) * 1e6}
        return {"name": event.kernel, "cat": "kernel", "ph": "X", **times, "pid": 0, "tid": thread}

    items = [
        {
            **span(event, 0, event.start, event.end),
            "args": {
                "call": index,
                "source": event.source,
                "computes": kernels[event.kernel]["summary"],
                "flops": parse_size(str(kernels[event.kernel]["flops"]))(sizes),
                "bytes": parse_size(str(kernels[event.kernel]["bytes"]))(sizes),
            },
        }
        for index, event in enumerate(events)
    ]
    items += [
        span(event, thread, start, end) for event in events for thread, (start, end) in event.helpers.items()
    ]
    threads = sorted({0, *(thread for event in events for thread in event.helpers)})
    items += [
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": thread, "args": {"name": f"thread {thread}"}}
        for thread in threads
    ]
    return json.dumps({"displayTimeUnit": "ns", "traceEvents": items}, indent=1) + "\n"


def time_text(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"
