"""Tables of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks.models import MODELS

TITLES = {
    "ours": "ours",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "compile": "torch.compile",
    "aot": "AOTInductor",
    "eager": "PyTorch eager",
}
Result = Mapping[str, Any]


def time_text(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def best_peer(result: Result) -> str | None:
    peers = {peer: timing["median"] for peer, timing in result["timings"].items() if peer != "ours"}
    return min(peers, key=lambda peer: peers[peer]) if peers else None


def ratio(result: Result) -> float | None:
    """Our time over the best peer's."""
    best, ours = best_peer(result), result["timings"].get("ours")
    return ours["median"] / result["timings"][best]["median"] if best and ours else None


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
        lines.append("| model | " + " | ".join(TITLES[peer] for peer in peers) + " | ours / best | bar |")
        lines.append("|---" + "|---:" * (len(peers) + 2) + "|")
        for result in results:
            if result["threads"] == threads:
                lines.append(_row(result, peers))
    return "\n".join(lines[1:])


def _row(result: Result, peers: Sequence[str]) -> str:
    best, share, bar = best_peer(result), ratio(result), MODELS[result["model"]].bar
    cells = [MODELS[result["model"]].title]
    for peer in peers:
        timing = result["timings"].get(peer)
        text = time_text(timing["median"]) if timing else "failed" if peer in result["failures"] else ""
        cells.append(f"**{text}**" if peer == best else text)
    cells.append("" if share is None else f"{share:.2f}{'' if share <= bar else ' (!)'}")
    cells.append(f"{bar:g}")
    return "| " + " | ".join(cells) + " |"
