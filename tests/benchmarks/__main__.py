"""Packages against other engines: `python -m tests.benchmarks [all|prepare|run|report] [--target cpu|vulkan] ...`.

`prepare` makes environments, exports, compiles; `run` times, alternating all engines in one session, and prints a
table; `report` prints the table of earlier runs. `all`, the default, does the three. Results of every model are kept
as JSON in the work folder; a later run replaces those it repeats.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shlex
import sys
from pathlib import Path

from tests.benchmarks.measure import measure
from tests.benchmarks.models import models_of
from tests.benchmarks.prepare import PEERS_OF, prepare
from tests.benchmarks.report import Result, ratio, table, time_text, write

DEFAULT_WORK = Path.home() / ".cache" / "transpiler-benchmarks"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("all", "prepare", "run", "report"), default="all")
    parser.add_argument("--target", choices=PEERS_OF, default="cpu", help="[default: cpu]")
    parser.add_argument("--models", default="*", metavar="GLOB", help="only those that match, separated by commas")
    parser.add_argument("--peers", default="*", metavar="GLOB", help="only those that match, separated by commas")
    parser.add_argument(
        "--threads", type=int, action="append", help="[default: 1, and all processors; these alone for vulkan]"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing per model and number of threads")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="of report: a page with a chart beside it")
    parser.add_argument("--together", action="store_true", help="load all models at once: one wait for each lock")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="environments, exports, results")
    parser.add_argument("--while-loading", default="", metavar="COMMAND", help="holds a lock, such as 'flock FILE'")
    parser.add_argument("--while-timing", default="", metavar="COMMAND", help="the same, for an idle machine")
    return parser.parse_args()


def _matching(names: list[str], pattern: str) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatch(name, part) for part in pattern.split(","))]


def read_results(work: Path) -> list[Result]:
    results = [json.loads(path.read_text()) for path in sorted((work / "results").glob("*.json"))]
    return [{"target": "cpu", **result} for result in results]  # of before there were others


def main() -> int:
    options = _parse()
    work = options.work.resolve()
    processors = len(os.sched_getaffinity(0))
    threads = options.threads or (sorted({1, processors}) if options.target == "cpu" else [processors])
    models = _matching(models_of(options.target), options.models)
    peers = _matching(list(PEERS_OF[options.target]), options.peers)
    failed = []
    if options.command in ("all", "prepare"):
        for name in models:
            failed += prepare(work, name, peers, threads, target=options.target)
    if options.command in ("all", "run"):
        (work / "results").mkdir(parents=True, exist_ok=True)
        cases = [(name, count) for name in models for count in threads]
        size = len(cases) if options.together else 1
        for start in range(0, len(cases), size):
            results = measure(
                work,
                cases[start : start + size],
                peers,
                seconds=options.seconds,
                target=options.target,
                loading=shlex.split(options.while_loading),
                timing=shlex.split(options.while_timing),
            )
            for result in results:
                _keep(work, result.to_json())
    if options.command != "prepare":
        everything = read_results(work)
        shown = [item for item in everything if item["target"] == options.target and item["model"] in models]
        print(table([item for item in shown if item["threads"] in threads]))
        if options.write:
            write(everything, options.write, work / "environments")
    for text in failed:
        print(f"not prepared: {text}", file=sys.stderr)
    return 1 if failed else 0


def _keep(work: Path, result: Result) -> None:
    name = ".".join(
        [result["model"], *([] if result["target"] == "cpu" else [result["target"]]), str(result["threads"])]
    )
    path = work / "results" / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    _summary(result)


def _summary(result: Result) -> None:
    times = ", ".join(f"{peer} {time_text(timing['median'])}" for peer, timing in result["timings"].items())
    share = ratio(result)
    print(f"{result['model']}, {result['threads']} threads: {times}", file=sys.stderr)
    print(f"  ours / best: {share:.3f}" if share else "  no ratio", file=sys.stderr)
    for peer, reason in result["failures"].items():
        print(f"  {peer} failed: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
