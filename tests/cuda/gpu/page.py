"""The page made of results: what was measured, against what it is to be, and against the card's own rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cuda.gpu.results import Parts, is_bad, read

BEGIN, END = "<!-- cuda: begin -->", "<!-- cuda: end -->"
Items = Mapping[str, Mapping[str, Any]]
FIRST_CALL = 0.5  # seconds
KERNELS = ("products", "convolutions", "attention")
# The card's rate that bounds products of a precision, as `rates` names it.
RATES = {"bfloat16": "bfloat16 products", "float32": "float32 products"}
COPIES = "copies"


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def page(file: Path) -> str:
    """All results as Markdown."""
    found = read(file)
    parts = {name: content for name, content in found.items() if name.partition(".")[0] in ("check", "time", "tune")}
    facts: dict[str, Any] = {}
    for content in parts.values():
        facts |= content["facts"]
    lines = ["; ".join(f"{name}: {value}" for name, value in facts.items()) + ".", ""] if facts else []
    lines += bars(parts)
    lines += _checks(parts)
    floors = _Floors(parts.get("time.rates", {}).get("items", {}))
    sections = {"the card's rates": _rates(parts.get("time.rates"))}
    sections |= {name: _kernels(name, measured(parts, name), floors) for name in KERNELS}
    sections["whole models"] = _models(measured(parts, "models"), floors)
    lacking = [name for name, section in sections.items() if not section]
    lines += [f"Not measured: {', '.join(lacking)}.", ""] if lacking else []
    lines += [line for section in sections.values() for line in section]
    return "\n".join(lines) + "\n"


def measured(parts: Parts, name: str) -> Items:
    items = parts.get(f"time.{name}", {}).get("items", {})
    return {key: item for key, item in items.items() if "ours" in item}


# --- what is asked for


@dataclass(frozen=True)
class Bar:
    """What is asked of some measurements: the share that counts of each, how they are put together, and the least or
    the most that it may be."""

    text: str
    part: str
    wanted: float
    least: bool
    chosen: Callable[[str], bool]
    value: Callable[[Mapping[str, Any]], float | None]
    together: str = "worst"

    def line(self, parts: Parts) -> str:
        content = parts.get(f"time.{self.part}", {"items": {}})
        found = {key: self.value(item) for key, item in content["items"].items() if self.chosen(key)}
        values = {key: value for key, value in found.items() if value is not None and not math.isnan(value)}
        sign, digits = ("at least" if self.least else "at most"), f"{self.wanted:g}"
        if not values:
            return f"| {self.text} | {sign} {digits} | | not measured |"
        pick = min if self.least else max
        worst = pick(values, key=values.__getitem__)
        result = geometric_mean(values.values()) if self.together == "mean" else values[worst]
        met = result >= self.wanted if self.least else result <= self.wanted
        said = f"{result:.2f}" + (f" ({worst})" if self.together == "worst" and len(values) > 1 else "")
        lacking = len(found) - len(values) + (content.get("of", 0) - len(content["items"]))
        verdict = ("met" if met else "missed") + (f", {len(values)} measured, {lacking} not" if lacking > 0 else "")
        return f"| {self.text} | {sign} {digits} | {said} | {verdict} |"


def speed(item: Mapping[str, Any]) -> float | None:
    """Over the best peer's."""
    peers = item.get("peers") or {}
    return min(peers.values()) / item["ours"] if peers and "ours" in item else None


def share(item: Mapping[str, Any]) -> float | None:
    """Of the best peer's time."""
    over = speed(item)
    return None if over is None else 1 / over


def _small(key: str) -> bool:
    return key.startswith(("mlp_b1_", "lstm_b1_"))


BARS = (
    Bar("large bf16 GEMM (8192³), speed over cuBLAS", "products", 0.85, True, lambda key: key == "square8192", speed),
    Bar(
        "GEMMs of BERT, ViT and Llama-7B layers, batch 1 to 32, speed over cuBLAS: the worst", "products", 0.95, True,
        lambda key: key != "square8192", speed,
    ),
    Bar(
        "ResNet-50's convolutions in bf16, speed over cuDNN: geometric mean", "convolutions", 1.0, True,
        lambda key: True, speed, "mean",
    ),
    Bar("attention, speed over PyTorch's best: the worst", "attention", 0.9, True, lambda key: True, speed),
    Bar(
        "whole models, bf16 and float32, batch 1 and 32, time over the best of eager and torch.compile: the worst",
        "models", 0.9, False, lambda key: not _small(key), share,
    ),
    Bar("small models (MLP, LSTM) at batch 1, the same: the worst", "models", 0.5, False, _small, share),
    Bar(
        "first call after loading, seconds: the worst", "models", FIRST_CALL, False, lambda key: True,
        lambda item: item.get("first_call"),
    ),
)  # fmt: skip


def bars(parts: Parts) -> list[str]:
    lines = ["| what is asked for | | measured | |", "|---|---|---|---|"]
    return [*lines, *(bar.line(parts) for bar in BARS), ""]


# --- tables


class _Floors:
    """The least time that something can take on the card, by its measured rates; None: they are not measured."""

    def __init__(self, rates: Items) -> None:
        self._rates = {name: item["value"] for name, item in rates.items() if item.get("value")}

    def seconds(self, item: Mapping[str, Any], precision: str) -> float | None:
        copies, products = self._rates.get(COPIES), self._rates.get(RATES[precision])
        if copies is None or products is None or not item.get("bytes"):
            return None
        return float(max(item["bytes"] / (copies * 1e9), item["flops"] / (products * 1e12)))

    def text(self, item: Mapping[str, Any], precision: str) -> str:
        floor = self.seconds(item, precision)
        return "" if floor is None else f"{floor / item['ours']:.0%}"


def _kernels(name: str, items: Items, floors: _Floors) -> list[str]:
    if not items:
        return []
    peers = sorted({peer for item in items.values() for peer in item["peers"]})
    head = f"| | ours | {_cells(peers)}speed over the best | TFLOP/s | of the roofline |"
    lines = [f"**{name}, bfloat16**", "", head, "|---|" + "---:|" * (len(peers) + 4)]
    ratios = []
    for key, item in items.items():
        texts = _cells([_time(item["peers"].get(peer)) for peer in peers])
        ratio = speed(item)
        ratios += [] if ratio is None else [ratio]
        over = "" if ratio is None else f"{ratio:.2f}"
        rate = item["flops"] / item["ours"] * 1e-12
        roof = floors.text(item, "bfloat16")
        lines.append(f"| {key} | {_time(item['ours'])} | {texts}{over} | {rate:.1f} | {roof} |")
    mean = f"Geometric mean of the speed over the best peer's: {geometric_mean(ratios):.2f}." if ratios else "No peers."
    return [*lines, "", mean, ""]


def _models(items: Items, floors: _Floors) -> list[str]:
    if not items:
        return []
    peers = sorted({peer for item in items.values() for peer in item["peers"]})
    lines = ["**models**", "", f"| | ours | {_cells(peers)}ours / best | of the roofline | loading | first call |"]
    lines.append("|---|" + "---:|" * (len(peers) + 5))
    for key, item in items.items():
        ratio = share(item)
        texts = _cells([_time(item["peers"].get(peer)) for peer in peers])
        seconds = ["" if item.get(name) is None else f"{item[name]:.2f} s" for name in ("load", "first_call")]
        over = "" if ratio is None else f"{ratio:.2f}"
        roof = floors.text(item, key.rpartition("_")[2])
        lines.append(f"| {key} | {_time(item['ours'])} | {texts}{over} | {roof} | {' | '.join(seconds)} |")
    return [*lines, ""]


def _cells(texts: Sequence[str]) -> str:
    return "".join(f"{text} | " for text in texts)


def _rates(content: Mapping[str, Any] | None) -> list[str]:
    items = {} if content is None else content["items"]
    texts = [f"{key}: {item['value']:.1f} {item['unit']}" for key, item in items.items() if "value" in item]
    return [f"Measured rates of the card: {'; '.join(texts)}.", ""] if texts else []


def _checks(parts: Parts) -> list[str]:
    contents = {name: content for name, content in parts.items() if name.startswith("check.")}
    if not contents:
        return ["Not run: the checks.", ""]
    lines = []
    for name, content in contents.items():
        items, of = content["items"], content.get("of", 0)
        bad = [key for key, item in items.items() if is_bad(item)]
        left_out = [key for key, item in items.items() if "left_out" in item]
        said = f"{len(items) - len(bad) - len(left_out)} passed"
        said += f", {len(bad)} failed ({', '.join(bad)})" if bad else ""
        said += f", {len(left_out)} left out ({items[left_out[0]]['left_out']})" if left_out else ""
        said += f", {of - len(items)} not run" if of > len(items) else ""
        lines.append(f"- {name.removeprefix('check.')}: {said}{_units(items.values())}")
    return [*lines, ""]


def _units(items: Iterable[Mapping[str, Any]]) -> str:
    total: dict[str, int] = {}
    for item in items:
        for unit, count in item.get("units", {}).items():
            total[unit] = total.get(unit, 0) + count
    return "; kernels with " + ", ".join(f"{unit}: {count}" for unit, count in total.items()) if total else ""


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def write_page(file: Path, page_file: Path) -> None:
    """Put the results between the marks of a page. Raises ValueError: it has none."""
    text = page_file.read_text()
    start, end = text.find(BEGIN), text.find(END)
    if not 0 <= start < end:
        raise ValueError(f"{page_file} has no {BEGIN} ... {END}")
    page_file.write_text(f"{text[: start + len(BEGIN)]}\n{page(file)}{text[end:]}")
