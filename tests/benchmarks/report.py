"""What was measured as tables, as a page of the documentation, and as a chart."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.environments import python_of
from tests.benchmarks.models import MODELS

TITLES = {
    "ours": "ours",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "compile": "torch.compile",
    "aot": "AOTInductor",
    "eager": "PyTorch eager",
    "ncnn": "ncnn",
    "iree": "IREE",
}
Result = Mapping[str, Any]
# What the numbers of the page do not say themselves; to be rewritten with it.
NOTES = Path(__file__).parent / "notes.md"


def time_text(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def best_peer(result: Result) -> str | None:
    peers = {peer: timing["median"] for peer, timing in result["timings"].items() if peer != "ours"}
    return min(peers, key=lambda peer: peers[peer]) if peers else None


def ratio(result: Result) -> float | None:
    """Our time over the best peer's."""
    best, ours = best_peer(result), result["timings"].get("ours")
    return ours["median"] / result["timings"][best]["median"] if best and ours else None


# What a call may take beside its roofline, where that is what counts.
OVER_ROOFLINE = 1.1
CALL_SECONDS = 3e-6


@dataclass(frozen=True)
class Limit:
    """The most seconds that a model may take: its bar's share of the best peer, or what its roofline leaves of it."""

    seconds: float
    is_roofline: bool


def roofline(result: Result) -> float | None:
    """The least seconds of a call, its kernels one after the other, each by the operations of the chosen algorithm or
    the bytes at the measured rates, whichever take longer. None if it was not profiled."""
    return sum(kernel["least"] for kernel in result.get("kernels", ())) or None


def limit(result: Result) -> Limit | None:
    """The bar times the best peer's time; where that lies below the roofline, 10 % above the roofline and 3 µs.

    A roofline above our own time is no bound (caches keep more than it assumes, or the rates were measured beside other
    work): it does not count.
    """
    best, least = best_peer(result), roofline(result)
    if best is None:
        return None
    wanted = MODELS[result["model"]].bars[result["target"]] * result["timings"][best]["median"]
    ours = result["timings"].get("ours")
    if least is not None and wanted < least and not (ours and ours["median"] < least):
        return Limit(OVER_ROOFLINE * least + CALL_SECONDS, True)
    return Limit(wanted, False)


def ordered(results: Sequence[Result]) -> list[Result]:
    names = list(MODELS)
    return sorted(results, key=lambda result: (result["threads"], names.index(result["model"])))


def table(results: Sequence[Result]) -> str:
    """Markdown: a table per number of threads, the best peer in bold."""
    results = ordered(results)
    lines: list[str] = []
    peers = [peer for peer in TITLES if any(peer in result["timings"] for result in results)]
    for threads in sorted({result["threads"] for result in results}):
        lines += ["", f"**{threads} thread{'s' * (threads > 1)}**", ""]
        head = [*(TITLES[peer] for peer in peers), "ours / best", "bar", "roofline", "at most"]
        lines.append("| model | " + " | ".join(head) + " |")
        lines.append("|---" + "|---:" * len(head) + "|")
        for result in results:
            if result["threads"] == threads:
                lines.append(_row(result, peers))
    return "\n".join(lines[1:])


def _row(result: Result, peers: Sequence[str]) -> str:
    best, share, bar = best_peer(result), ratio(result), MODELS[result["model"]].bars[result["target"]]
    least, most = roofline(result), limit(result)
    cells = [MODELS[result["model"]].title]
    for peer in peers:
        timing = result["timings"].get(peer)
        text = time_text(timing["median"]) if timing else "failed" if peer in result["failures"] else ""
        cells.append(f"**{text}**" if peer == best else text)
    missed = most is not None and "ours" in result["timings"] and result["timings"]["ours"]["median"] > most.seconds
    cells.append("" if share is None else f"{share:.2f}{' (!)' if missed else ''}")
    cells.append(f"{bar:g}")
    cells.append(time_text(least) if least else "")
    cells.append("" if most is None else f"{time_text(most.seconds)}{' (roofline)' if most.is_roofline else ''}")
    return "| " + " | ".join(cells) + " |"


# --- the page ---------------------------------------------------------------------------------------------------

INTRODUCTION = """# Benchmarks

Whole calls from Python, numpy in and numpy out, float32, batch 1 unless a model says otherwise. All engines run the
same weights and inputs in one session: every engine has a process and a virtual environment of its own with the
versions pinned in `tests/benchmarks/requirements`, and they are called in turn in short slices whose first calls do
not count. Medians. The best other engine is in bold; *ours / best* compares with it, and the *bar* is the share that
the project has set itself. The *roofline* is the least time of a call at the machine's measured rates, its kernels one
after the other: operations of the algorithms that were chosen (the products and transforms of a Winograd
convolution, not the direct sum), or bytes, weights included (recurrent ones in every step), whichever take longer.
*At most* is the bar in time; where it would lie below the roofline, 10 % above the roofline and 3 µs, marked as
such. A roofline above our own time is no bound (caches keep more than it assumes) and does not count. (!) marks what
misses the limit. ONNX Runtime and OpenVINO read what `torch.onnx.export` writes; torch.compile and AOTInductor run
with freezing and max-autotune; OpenVINO is kept to float32. Weights are random, drawn so that activations neither
fade nor grow. An empty cell was not measured.

`python -m tests.benchmarks` repeats it; `report --write docs/benchmarks.md` writes this page.
"""


def machine() -> str:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} processors, Linux {platform.release().split('-')[0]}"


VULKAN = """## Vulkan without a GPU

Mesa's lavapipe computes Vulkan's kernels on the processor. What is compared is the time of all processors that an
engine's process uses for a call, numpy in and numpy out: how many threads lavapipe takes is not the engines' choice.
ncnn and IREE run the same weights in float32, ncnn with Winograd convolutions. What is fast here need not be on a GPU.
An engine fails whose result is not PyTorch's, or that would compute elsewhere; IREE was given up on ResNet-50, where
loading and the first calls take more than four minutes.

`python -m tests.benchmarks --target vulkan` repeats it.
"""


def _versions(results: Sequence[Result]) -> str:
    versions = {
        TITLES[peer]: timing["version"]
        for result in results
        for peer, timing in result["timings"].items()
        if peer != "ours"
    }
    return ", ".join(f"{peer} {version}" for peer, version in versions.items())


def _failures(results: Sequence[Result]) -> list[str]:
    """A line that says why engines failed, if any did."""
    found = [
        f"{TITLES[peer]} on {MODELS[result['model']].title}: {reason.removeprefix('RuntimeError: ')}"
        for result in ordered(results)
        for peer, reason in result["failures"].items()
    ]
    return [f"Failed: {'; '.join(found)}.\n"] if found else []


def of_target(results: Sequence[Result], target: str) -> list[Result]:
    return [result for result in results if result["target"] == target]


def page(results: Sequence[Result], name: str) -> str:
    """The text of docs/<name>.md."""
    cpu, vulkan = of_target(results, "cpu"), of_target(results, "vulkan")
    parts = [
        INTRODUCTION,
        f"Machine: {machine()}. {_versions(cpu)}.\n",
        f"![Time over that of the best other engine]({name}.png)\n",
        table(cpu) + "\n",
        NOTES.read_text(),
        *_kernels(cpu),
    ]
    if vulkan:
        parts += [VULKAN, _versions(vulkan) + ".\n", table(vulkan) + "\n", *_failures(vulkan)]
    return "\n".join(parts)


def _kernels(results: Sequence[Result]) -> list[str]:
    """The longest kernels of every model on one thread against the roofline."""
    profiled = [result for result in ordered(results) if result.get("rates") and result["threads"] == 1]
    if not profiled:
        return []
    parts = [
        "## Kernels on one thread\n",
        "The longest of each model; [performance](performance.md) explains the columns.\n",
    ]
    rates = profiled[0]["rates"]
    read = ", ".join(f"{rate * 1e-9:.0f}" for _, rate in rates["levels"])
    parts.append(
        f"This machine: {rates['flops'] * 1e-9:.0f} GFLOP/s of multiply-adds; "
        f"{read} GB/s read from L1, L2, L3 and memory.\n"
    )
    lines = ["| model | kernel | calls | time | share | GFLOP/s | of peak | GB/s | of roofline |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for result in profiled:
        total = sum(kernel["seconds"] for kernel in result["kernels"])
        for index, kernel in enumerate(result["kernels"][:5]):
            seconds, flops = kernel["seconds"], kernel["flops"] / kernel["seconds"]
            cells = [
                MODELS[result["model"]].title if index == 0 else "",
                f"`{kernel['kernel']}`",
                str(kernel["calls"]),
                time_text(seconds),
                f"{seconds / total:.0%}",
                f"{flops * 1e-9:.1f}",
                f"{flops / rates['flops']:.0%}",
                f"{kernel['bytes'] / seconds * 1e-9:.1f}",
                f"{kernel['least'] / seconds:.0%}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return [*parts, "\n".join(lines) + "\n"]


def chart(results: Sequence[Result]) -> dict[str, Any]:
    """What `chart.py` draws: per number of threads, every engine's time over the best peer's."""
    engines = {peer: name for peer, name in TITLES.items() if any(peer in result["timings"] for result in results)}
    panels = []
    for threads in sorted({result["threads"] for result in results}):
        rows = []
        for result in ordered(results):
            best = best_peer(result)
            if result["threads"] != threads or best is None:
                continue
            least = result["timings"][best]["median"]
            shares = {peer: timing["median"] / least for peer, timing in result["timings"].items()}
            rows.append({"title": MODELS[result["model"]].title, "shares": shares})
        panels.append({"title": f"{threads} thread{'s' * (threads > 1)}", "rows": rows})
    return {"engines": engines, "panels": panels}


def write(results: Sequence[Result], path: Path, environments: Path) -> None:
    """The page `path`, and beside it the numbers as JSON and the chart as PNG and SVG."""
    path.write_text(page(results, path.stem))
    numbers = path.with_suffix(".json")
    cpu = of_target(results, "cpu")
    everything = {"machine": machine(), "chart": chart(cpu), "results": ordered(results)}
    numbers.write_text(json.dumps(everything, indent=1) + "\n")
    script = Path(__file__).parent / "chart.py"
    command: list[str | Path] = [python_of("charts", environments), script, numbers, path.with_suffix("")]
    subprocess.run(command, check=True)
