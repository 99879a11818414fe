"""compute-sanitizer over every family of kernels. A process of its own runs them all, since starting one takes longer
than most kernels do; what a checker says belongs to the family that was at work. One that ends the process is left out
of the next."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cuda.gpu.calls import FACTS
from tests.cuda.gpu.kernels import folders
from tests.cuda.gpu.results import Part

# By tool its options. Memory that is poisoned counts as written: `initcheck` runs without.
TOOLS = {
    "memcheck": ("--padding", "64"),
    "racecheck": ("--racecheck-report", "all"),
    "synccheck": (),
    "initcheck": (),
}
MARK = "========="  # what its lines begin with
QUIET = ("ERROR SUMMARY: 0", "RACECHECK SUMMARY: 0", "COMPUTE-SANITIZER", "LEAK SUMMARY: 0")
KEPT = 40  # lines of what is said of a family
LONGEST = 300.0  # seconds of a process


def check(work: Path, part: Part, sanitizer: str | None) -> None:
    """Results "TOOL FAMILY" of a part. Left out: there is no tool, or it does not know the device."""
    names = [folder.name for folder in folders(work)]
    for tool in TOOLS:
        left = [name for name in names if part.open(f"{tool} {name}")]
        while left:
            if sanitizer is None:
                found: dict[str, Any] = {name: {"left_out": "there is no compute-sanitizer"} for name in left}
            elif time.monotonic() > part.end:
                part.left += len(left)
                break
            else:
                found = _run(work, sanitizer, tool, left, min(LONGEST, part.end - time.monotonic()))
            for name, item in found.items():
                units = json.loads((work / "kernels" / name / FACTS).read_text())["units"]
                part.add(
                    f"{tool} {name}", {**item, "units": units if tool == "memcheck" else {}}, len(TOOLS) * len(names)
                )
            left = [name for name in left if name not in found]
            if not found:
                part.left += len(left)
                break
    if part.left:
        print(f"{part.name}: {part.left} left, call it again", flush=True)


def _run(work: Path, sanitizer: str, tool: str, names: Sequence[str], seconds: float) -> dict[str, dict[str, Any]]:
    """What one process finds out of some families, until its time is over: then of those that it came to."""
    command = [
        sanitizer, "--tool", tool, *TOOLS[tool], sys.executable, "-u", "-m", "tests.cuda.on_gpu", "family",
        "--work", str(work), "--names", ",".join(names), *([] if tool != "initcheck" else ["--no-poison"]),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    started = time.monotonic()
    assert process.stdout is not None
    found: dict[str, dict[str, Any]] = {}
    current, said, other = "", [], []
    for line in process.stdout:
        if line.startswith("{"):
            told = json.loads(line)
            if "begins" in told:
                current, said = told["begins"], []
            else:
                found[current] = {"problems": [*told["problems"], *said[:KEPT]]}
                current = ""
        elif line.startswith(MARK):
            text = line.strip("= \n")
            if text and not any(quiet in text for quiet in QUIET):
                _keep(text, current, said, found)
        else:
            other.append(line.rstrip())
    code = process.wait()
    timer.cancel()
    late = time.monotonic() - started >= seconds
    text = "; ".join([*said, *other])
    if "Device not supported" in text or "not supported on this device" in text:
        return {name: {"left_out": f"{tool} does not support this device"} for name in names}
    if current and not late:  # it did not come to its end
        found[current] = {"problems": [f"the process ended with {code}", *said[:KEPT], *other[-10:]]}
    elif not found and not late:
        found[names[0]] = {"problems": [f"nothing ran: the process ended with {code}", *other[-10:]]}
    return found


def _keep(text: str, current: str, said: list[str], found: dict[str, dict[str, Any]]) -> None:
    """What is said at the end of the process is said of the last family."""
    if "SUMMARY" in text and (said or any(item["problems"] for item in found.values())):
        return
    if current:
        said.append(text)
    elif found:
        problems = next(reversed(found.values()))["problems"]
        if len(problems) < KEPT:
            problems.append(text)
