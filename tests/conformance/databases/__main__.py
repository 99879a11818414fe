"""The command: `python -m tests.conformance.databases`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import time
from pathlib import Path

from tests.conformance.databases.outcome import BAD, OUTCOMES, REFUSED, Results
from tests.conformance.databases.report import markdown, text, verdict
from tests.conformance.databases.samples import DATABASES, entries
from tests.conformance.databases.workers import Task, evaluate
from transpiler.target import load_target

ALL_DTYPES = ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool"]
SAVE_SECONDS = 20.0
ENTRIES = 64  # of one worker's life


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.databases", description=__doc__)
    parser.add_argument("--db", choices=DATABASES, action="append", help="a database; both by default")
    parser.add_argument("--dtype", default="float32", help="names with commas between, or all")
    parser.add_argument("--ops", default="", help="a regular expression for the whole of an entry's name")
    parser.add_argument("--samples", default="all", help="how many samples of each entry, or all")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument("--target", default="cpu", help="a target, or `none`: only the numpy references")
    parser.add_argument("--json", type=Path, default=Path("results/databases.json"), help="results, read and written")
    parser.add_argument("--again", choices=("no", "bad", "refused", "all"), default="no",
                        help="which known results to find out again")  # fmt: skip
    parser.add_argument("--write", type=Path, help="write the Markdown report; what was not run now stays in it")
    parser.add_argument("--commit", default="", help="what the results are of, for the report")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop then; the next run goes on")
    parser.add_argument("--quiet", action="store_true", help="no line per entry")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    results = Results.load(options.json)
    tasks = _tasks(options, results)
    asked = {entry.id for task in tasks for entry in task.entries}
    target = None if options.target == "none" else load_target(options.target)
    begun = saved = time.monotonic()
    done = 0
    try:
        for found, finished in evaluate(tasks, target, options.jobs):
            for result in found:
                results.add(result)
            for entry in finished:
                done += 1
                if not options.quiet:
                    mine = [item for item in results.by_id.values() if item.entry == entry.id]
                    print(f"[{done}/{len(asked)}] {entry.id}: {verdict(mine)}, {len(mine)} samples", flush=True)
            if time.monotonic() - saved > SAVE_SECONDS:
                results.save()
                saved = time.monotonic()
            if time.monotonic() - begun > options.seconds:
                print(f"stopped early: {done} of {len(asked)} entries are finished")
                break
    finally:
        results.save()
    shown = [item for item in results.by_id.values() if item.entry in asked]
    print(text(shown))
    if options.write:
        previous = options.write.read_text() if options.write.exists() else ""
        whole = options.samples == "all" and options.seconds == float("inf")
        options.write.write_text(markdown(results.by_id.values(), options.commit, previous, whole=whole))
    return int(any(item.outcome in BAD for item in shown))


def _tasks(options: argparse.Namespace, results: Results) -> list[Task]:
    wanted = None if options.samples == "all" else int(options.samples)
    dtypes = ALL_DTYPES if options.dtype == "all" else options.dtype.split(",")
    asked = [
        entry
        for database in options.db or DATABASES
        for dtype in dtypes
        for entry in entries(database, dtype, options.ops)
    ]
    if not asked:
        sys.exit(f"no entry matches {options.ops!r}")
    again = {"no": (), "bad": BAD, "refused": (*BAD, REFUSED), "all": OUTCOMES}[options.again]
    known: dict[str, set[str]] = {}
    for result in results.by_id.values():
        if result.outcome not in again:  # what is to be found out again keeps its outcome until then
            known.setdefault(result.entry, set()).add(result.id)
    chunks = [tuple(asked[start : start + ENTRIES]) for start in range(0, len(asked), ENTRIES)]
    return [Task(chunk, wanted, frozenset().union(*(known.get(entry.id, ()) for entry in chunk))) for chunk in chunks]


if __name__ == "__main__":
    sys.exit(main())
