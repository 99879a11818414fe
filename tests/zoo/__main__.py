"""`python -m tests.zoo [--only REGEX] [--jobs N] [--json FILE [--resume]] [--write docs/architectures.md]`.

Every architecture runs in a worker process with a time limit, so that a crash or a hang is a result like any other.
Exits 1 if one is neither equal to PyTorch nor refused as `tests/zoo/expected.py` says.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.zoo.entry import Entry
from tests.zoo.expected import REFUSALS, REFUSED
from tests.zoo.registry import entries
from tests.zoo.run import Result
from tests.zoo.table import table

ROOT = Path(__file__).parents[2]
LIMIT = 240.0
LOCK = threading.Lock()


class Worker:
    """A process that runs one architecture after the other; a new one after a crash or a time-out."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def run(self, name: str, limit: float) -> Result:
        if self.process is None:
            command = [sys.executable, "-m", "tests.zoo.worker"]
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            process.stdin.write(name + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if line:
            return Result(**json.loads(line))
        self.process = None
        code = process.wait()
        if late.is_set():
            return Result(name, "timeout", seconds=limit, reason=f"longer than {limit:g} s")
        return Result(name, "crash", reason=f"the process ended with {code}")

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def run_all(
    chosen: Sequence[Entry], jobs: int, limit: float, budget: float, done: Callable[[Result], None]
) -> list[Result]:
    """The results in the order of `chosen`, of those that began within `budget` seconds; `done` is called with each
    as it comes."""
    local = threading.local()
    start = time.monotonic()
    workers: list[Worker] = []

    def one(entry: Entry) -> Result | None:
        if time.monotonic() - start > budget:
            return None
        if not hasattr(local, "worker"):
            local.worker = Worker()
            workers.append(local.worker)
        result: Result = local.worker.run(entry.name, limit)
        reason = f"  {result.reason[:160]}" if result.reason else f"  {result.error:.2g} of {result.tolerance:.2g}"
        print(f"{result.outcome:9} {entry.name:28} {result.seconds:6.1f} s{reason}", flush=True)
        done(result)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        results = [result for result in pool.map(one, chosen) if result is not None]
    for worker in workers:
        worker.close()
    return results


def _read(path: Path | None) -> dict[str, Result]:
    """Earlier results of architectures that still exist."""
    if path is None or not path.exists():
        return {}
    names = {item.name for item in entries()}
    return {item["name"]: Result(**item) for item in json.loads(path.read_text()) if item["name"] in names}


def unexpected(results: Sequence[Result]) -> list[str]:
    """Outcomes that the table of expected refusals does not have, and refusals that did not happen."""
    lines = []
    for result in results:
        pattern = REFUSED.get(result.name)
        if pattern is None and result.outcome != "equal":
            lines.append(f"{result.name}: {result.outcome}: {result.reason}")
        elif pattern is not None and (result.outcome not in REFUSALS or not re.search(pattern, result.reason)):
            lines.append(f"{result.name}: {result.outcome} ({result.reason}), expected a refusal: {pattern}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a regular expression that finds names, libraries or families")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds per architecture")
    parser.add_argument("--json", type=Path, help="keeps the results of this and earlier runs, failures in full")
    parser.add_argument("--resume", action="store_true", help="skip what the JSON file has")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which nothing is started")
    parser.add_argument("--write", type=Path, help="write the table")
    parser.add_argument("--list", action="store_true", help="names only")
    options = parser.parse_args()
    chosen = [item for item in entries() if re.search(options.only, f"{item.name} {item.library} {item.family}")]
    if options.list:
        print("\n".join(item.name for item in chosen))
        return 0
    kept = _read(options.json)
    if options.resume:
        chosen = [item for item in chosen if item.name not in kept]

    def done(result: Result) -> None:
        with LOCK:
            kept[result.name] = result
            if options.json:
                options.json.write_text(json.dumps([item.as_dict() for item in kept.values()], indent=1) + "\n")

    results = run_all(chosen, options.jobs, options.limit, options.budget, done)
    if options.write:
        shown = [item for item in entries() if item.name in kept]
        options.write.write_text(table(shown, [kept[item.name] for item in shown]))
    wrong = unexpected(results)
    equal = sum(item.outcome == "equal" for item in results)
    refused = sum(item.outcome in REFUSALS for item in results)
    print(f"{len(results)} architectures: {equal} equal to PyTorch, {refused} refused, {len(wrong)} not as expected")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
