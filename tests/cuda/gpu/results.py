"""Where results are kept, so that a call that was cut off goes on where it stopped, and the page made of them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- cuda: begin -->", "<!-- cuda: end -->"
# The bars of the project: ours over the peer's speed (kernels), ours over the best peer's time (models).
BARS = {"square8192": 0.85, "products": 0.95, "convolutions": 1.0, "attention": 0.9}


class Part:
    """The results of a part by item, in a file that is written after each of them. `end`: when to stop beginning new
    ones (`time.monotonic`)."""

    def __init__(self, folder: Path, name: str, end: float = math.inf, only: str = "") -> None:
        self.name, self.end, self.only = name, end, only
        self.file = folder / "results" / f"{name}.json"
        self.items: dict[str, Any] = json.loads(self.file.read_text())["items"] if self.file.exists() else {}
        self.left = 0

    def run(self, todo: Iterable[tuple[str, Callable[[], Any]]], facts: Mapping[str, Any] | None = None) -> None:
        """Items that have no result yet. An exception is a result, too: {"failed": its text}; it is tried again."""
        for key, work in todo:
            known = self.items.get(key)
            if self.only not in key or (known is not None and "failed" not in known):
                continue
            if time.monotonic() > self.end:
                self.left += 1
                continue
            try:
                self.items[key] = work()
            except Exception as error:
                self.items[key] = {"failed": f"{type(error).__name__}: {error}"[:2000]}
            print(f"{self.name} {key}: {json.dumps(self.items[key])[:400]}", flush=True)
            self._write(facts or {})
        if self.left:
            print(f"{self.name}: {self.left} left, call it again", flush=True)

    def _write(self, facts: Mapping[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        old = json.loads(self.file.read_text())["facts"] if self.file.exists() else {}
        content = {"facts": {**old, **facts}, "items": self.items}
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(self.file)

    @property
    def failed(self) -> list[str]:
        return [key for key, item in self.items.items() if "failed" in item or item.get("problems")]


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def page(folder: Path) -> str:
    """All results as Markdown."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))}
    lines: list[str] = []
    facts: dict[str, Any] = {}
    for content in found.values():
        facts |= content["facts"]
    if facts:
        lines += ["; ".join(f"{name}: {value}" for name, value in facts.items()) + ".", ""]
    for name in ("products", "convolutions", "attention"):
        lines += _kernels(name, found.get(f"time.{name}"))
    lines += _models(found.get("time.models"))
    lines += _rates(found.get("time.rates"))
    lines += _checks({name: content for name, content in found.items() if name.startswith("check.")})
    return "\n".join(lines) + "\n"


def _kernels(name: str, content: Mapping[str, Any] | None) -> list[str]:
    items = {} if content is None else {key: item for key, item in content["items"].items() if "ours" in item}
    if not items:
        return [f"Not measured: {name}.", ""]
    peers = sorted({peer for item in items.values() for peer in item["peers"]})
    head = [f"**{name}, bfloat16**", "", "| | ours | " + " | ".join(peers) + " | speed over the best | TFLOP/s |"]
    lines = [*head, "|---|" + "---:|" * (len(peers) + 3)]
    ratios = []
    for key, item in items.items():
        texts = [_time(item["peers"].get(peer)) for peer in peers]
        ratio = min(item["peers"].values(), default=math.nan) / item["ours"]
        ratios += [] if math.isnan(ratio) else [ratio]
        speed = item["flops"] / item["ours"] * 1e-12
        mark = "" if math.isnan(ratio) or ratio >= BARS.get(key, BARS[name]) else " (!)"
        lines.append(f"| {key} | {_time(item['ours'])} | {' | '.join(texts)} | {ratio:.2f}{mark} | {speed:.1f} |")
    mean = f"Geometric mean of the speed over the best peer's: {geometric_mean(ratios):.2f}." if ratios else "No peers."
    return [*lines, "", mean, ""]


def _models(content: Mapping[str, Any] | None) -> list[str]:
    items = {} if content is None else {key: item for key, item in content["items"].items() if "ours" in item}
    if not items:
        return ["Not measured: whole models.", ""]
    peers = sorted({peer for item in items.values() for peer in item["peers"]})
    lines = ["**models**", "", "| | ours | " + " | ".join(peers) + " | ours / best | at most | first call |"]
    lines.append("|---|" + "---:|" * (len(peers) + 4))
    for key, item in items.items():
        ratio = item["ours"] / min(item["peers"].values(), default=math.nan)
        mark = " (!)" if ratio > item["bar"] else ""
        first = "" if item.get("first_call") is None else f"{item['first_call']:.2f} s"
        texts = " | ".join(_time(item["peers"].get(peer)) for peer in peers)
        lines.append(f"| {key} | {_time(item['ours'])} | {texts} | {ratio:.2f}{mark} | {item['bar']} | {first} |")
    return [*lines, ""]


def _rates(content: Mapping[str, Any] | None) -> list[str]:
    items = {} if content is None else content["items"]
    texts = [f"{key}: {item['value']:.1f} {item['unit']}" for key, item in items.items() if "value" in item]
    return [f"Measured rates: {', '.join(texts)}.", ""] if texts else ["Not measured: the card's rates.", ""]


def _checks(contents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not contents:
        return ["Not run: the checks."]
    lines = []
    for name, content in contents.items():
        items = content["items"]
        bad = [key for key, item in items.items() if "failed" in item or item.get("problems")]
        left_out = [key for key, item in items.items() if "left_out" in item]
        said = f"{len(items) - len(bad) - len(left_out)} passed"
        said += f", {len(bad)} failed ({', '.join(bad)})" if bad else ""
        said += f", {len(left_out)} left out ({', '.join(left_out)})" if left_out else ""
        lines.append(f"- {name.removeprefix('check.')}: {said}")
    return lines


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def write_page(folder: Path, page_file: Path) -> None:
    """Put the results between the marks of a page. Raises ValueError: it has none."""
    text = page_file.read_text()
    start, end = text.find(BEGIN), text.find(END)
    if not 0 <= start < end:
        raise ValueError(f"{page_file} has no {BEGIN} ... {END}")
    page_file.write_text(f"{text[: start + len(BEGIN)]}\n{page(folder)}{text[end:]}")
