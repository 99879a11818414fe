"""The thread pool under several callers at once: every task runs once, errors arrive, nobody waits for ever."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from transpiler.c_compiler import c_compiler
from transpiler.resources import tree

SOURCE = Path(__file__).with_name("pool_stress.c")


def stress(folder: Path, callers: int, threads: int, seconds: float, *flags: str) -> tuple[int, int, int, int]:
    """(regions, wrong ones, threads inside of regions at once, threads of the process); a deadlock raises."""
    runtime = tree("templates") / "runtime" / "cpu"
    binary = folder / "stress"
    sources = [SOURCE, runtime / "pool.c"]
    subprocess.run(
        [*c_compiler().command, "-std=c11", "-O2", *flags, "-I", runtime, *sources, "-pthread", "-o", binary],
        check=True,
    )
    command = [binary, str(callers), str(threads), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    regions, wrong, inside, running = map(int, done.stdout.split())
    return regions, wrong, inside, running


@pytest.mark.parametrize(
    ("callers", "threads", "seconds"),
    [(1, 4, 0.3), (6, 3, 0.7), pytest.param(24, 16, 60, marks=pytest.mark.slow)],
)
def test_callers_at_once(tmp_path: Path, callers: int, threads: int, seconds: float) -> None:
    regions, wrong, inside, running = stress(tmp_path, callers, threads, seconds)
    assert regions > 100 * seconds
    assert wrong == 0
    # One caller has the workers, the others run alone; the main thread waits.
    assert inside <= callers + threads - 1
    assert running <= 1 + callers + threads - 1
