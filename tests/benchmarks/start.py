"""Fresh processes, from the interpreter's start to the first answer: ours against ONNX Runtime's.

`python -m tests.benchmarks.start [--models GLOB] [--rounds N]` after `python -m tests.benchmarks prepare`. Both run in
the environment of ONNX Runtime, in turn; medians of the seconds from before the imports to the first answer, and of the
most memory the process had. The package's modules are compiled, as `pip install` does; files are in the page cache.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks.__main__ import DEFAULT_WORK
from tests.benchmarks.environments import python_of
from tests.benchmarks.prepare import package_folder

MODELS = ("mnist", "mobilenet_v2", "resnet50")
SCRIPTS = {
    "ours": """
import sys, time
start = time.perf_counter()
import numpy as np
sys.path.insert(0, sys.argv[2] + "/src")
model = __import__(sys.argv[2].rsplit("/", 1)[1]).Model()
model(*np.load(sys.argv[1] + "/inputs.npz").values())
""",
    "onnxruntime": """
import sys, time
start = time.perf_counter()
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", providers=["CPUExecutionProvider"])
names = [item.name for item in session.get_inputs()]
session.run(None, dict(zip(names, np.load(sys.argv[1] + "/inputs.npz").values())))
""",
}
# getrusage() would count what the parent had before exec.
END = """
end = time.perf_counter()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(end - start, int(peak) / 1024)
"""


def measure(python: Path, folder: Path, package: Path, rounds: int) -> Mapping[str, tuple[float, float]]:
    """Engine -> seconds to the first answer, megabytes at the peak."""
    found: dict[str, list[tuple[float, float]]] = {engine: [] for engine in SCRIPTS}
    for _ in range(rounds + 1):
        for engine, script in SCRIPTS.items():
            command: list[str | Path] = [python, "-c", script + END, folder, package]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
            seconds, peak = map(float, done.stdout.split())
            found[engine].append((seconds, peak))
    return {
        engine: (statistics.median(item[0] for item in runs[1:]), statistics.median(item[1] for item in runs[1:]))
        for engine, runs in found.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.start", description=__doc__)
    parser.add_argument("--models", default="*", help=f"only those that match: {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    options = parser.parse_args()
    python = python_of("onnxruntime", options.work / "environments")
    print("| model | ours | ONNX Runtime | ours, memory | ONNX Runtime, memory |\n|---|---:|---:|---:|---:|")
    for name in MODELS:
        if not fnmatch.fnmatch(name, options.models):
            continue
        package = package_folder(options.work, name)
        subprocess.run([python, "-m", "compileall", "-q", package / "src"], check=True)
        times = measure(python, options.work / "models" / name, package, options.rounds)
        row = [f"{seconds:.3f} s" for seconds, _ in times.values()] + [f"{peak:.0f} MB" for _, peak in times.values()]
        print(f"| {name} | {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
