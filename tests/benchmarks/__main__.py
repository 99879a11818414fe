"""Packages against other engines: `python -m tests.benchmarks [all|prepare|run|report] [--models GLOB] [--peers GLOB]`.

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
from tests.benchmarks.models import MODELS
from tests.benchmarks.prepare import PEERS, prepare
from tests.benchmarks.report import Result, ratio, table, time_text, write

DEFAULT_WORK = Path.home() / ".cache" / "transpiler-benchmarks"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("all", "prepare", "run", "report"), default="all")
    parser.add_argument("--models", default="*", help=f"only those that match: {', '.join(MODELS)}")
    parser.add_argument("--peers", default="*", help=f"only those that match: {', '.join(PEERS)}")
    parser.add_argument("--threads", type=int, action="append", help="[default: 1, and all processors]")
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
    return [json.loads(path.read_text()) for path in sorted((work / "results").glob("*.json"))]


def main() -> int:
    options = _parse()
    work = options.work.resolve()
    threads = options.threads or sorted({1, len(os.sched_getaffinity(0))})
    models, peers = _matching(list(MODELS), options.models), _matching(list(PEERS), options.peers)
    failed = []
    if options.command in ("all", "prepare"):
        for name in models:
            failed += prepare(work, name, peers, threads)
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
                loading=shlex.split(options.while_loading),
                timing=shlex.split(options.while_timing),
            )
            for result in results:
                _keep(work, result.to_json())
    if options.command != "prepare":
        results = [item for item in read_results(work) if item["model"] in models and item["threads"] in threads]
        print(table(results))
        if options.write:
            write(results, options.write, work / "environments")
    for text in failed:
        print(f"not prepared: {text}", file=sys.stderr)
    return 1 if failed else 0


def _keep(work: Path, result: Result) -> None:
    path = work / "results" / f"{result['model']}.{result['threads']}.json"
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
