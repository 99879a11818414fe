"""How long a build takes: `python -m tests.benchmarks.build_time [--out FILE.json]`.

A one-layer model through the Python API in a warm process (no tests run), and the MNIST classifier by a cold command
with its tests. Each is the median of three.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
RUNS = 3
# The project's promises, in seconds.
LIMITS = {"one layer, warm process": 1.0, "MNIST, cold command with tests": 10.0}


def median(run: Callable[[int], None]) -> float:
    seconds = []
    for index in range(RUNS):
        start = time.perf_counter()
        run(index)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def warm(scratch: Path) -> float:
    import torch

    from transpiler import transpile

    def run(index: int) -> None:
        # Another size each time: nothing that an earlier build compiled is found again.
        width = 33 + index
        transpile(
            torch.nn.Linear(19, width).eval(), (torch.randn(5, 19),), name=f"linear{width}", out=scratch, isa="native"
        )

    run(100)
    return median(run)


def cold(scratch: Path) -> float:
    command = [sys.executable, "-m", "transpiler", str(ROOT / "tests/models/mnist.py"), "--target", "cpu", "-q"]

    def run(index: int) -> None:
        subprocess.run([*command, "--out", str(scratch / f"cold{index}")], cwd=ROOT, check=True)

    return median(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON with the numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        results = dict(zip(LIMITS, (warm(Path(scratch)), cold(Path(scratch))), strict=True))
    for name, seconds in results.items():
        print(f"{name}: {seconds:.2f} s (limit {LIMITS[name]:g} s)")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
