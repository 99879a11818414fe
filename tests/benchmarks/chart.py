"""The bar chart of a report: `python chart.py FILE.json OUT`, in the environment `charts`, writes OUT.png and OUT.svg.

A bar is an engine's time over that of the best peer, so that models of microseconds and of seconds fit into one chart.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib
from matplotlib import pyplot

COLOURS = ("#1b6ca8", "#7f8c8d", "#b2bec3", "#e0a458", "#c97b63", "#dcd6cc")
LONGEST = 3.0


def draw(axes: Any, title: str, rows: list[dict[str, Any]], engines: dict[str, str]) -> None:
    """`rows` hold a model's title and its engines' times over the best peer's."""
    height = 0.8 / len(engines)
    for index, (engine, name) in enumerate(engines.items()):
        for row, item in enumerate(rows):
            share = item["shares"].get(engine)
            if share is None:
                continue
            place = row + (index - (len(engines) - 1) / 2) * height
            label = name if row == 0 else None
            axes.barh(place, min(share, LONGEST), height * 0.92, color=COLOURS[index], label=label)
            if engine == "ours" or share > LONGEST:
                x = min(share, LONGEST)
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
                axes.text(x + 0.02, place, f"{share:.2f}", va="center", fontsize=6.5, bbox=box)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [item["title"] for item in rows], fontsize=8)
    axes.set_xlim(0, LONGEST + 0.25)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("time / time of the best other engine (less is better)", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    source, target = sys.argv[1:]
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"  # the same picture, the same bytes
    with open(source, encoding="utf-8") as file:
        chart = json.load(file)["chart"]
    panels = chart["panels"]
    rows = max(len(panel["rows"]) for panel in panels)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(6 * len(panels), 1.6 + 0.62 * rows), squeeze=False)
    for part, panel in zip(axes[0], panels, strict=True):
        draw(part, panel["title"], panel["rows"], chart["engines"])
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(f"{target}.png", dpi=130, metadata={"Software": None})
    figure.savefig(f"{target}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
