"""How many threads a package takes by default: control groups of both versions, on files made here."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from transpiler.resources import tree


@pytest.fixture(scope="module")
def processors() -> ModuleType:
    path = tree("templates") / "package" / "src" / "__name__" / "runtime" / "processors.py"
    spec = importlib.util.spec_from_file_location("processors_of_a_package", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


CASES = {
    "version 2, in its own namespace": ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
    "version 2, no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    "version 2, the host's path in a container": ("0::/system/docker-1\n", {"cpu.max": "400000 100000\n"}, 4.0),
    "version 2, a parent has less": (
        "0::/a/b\n",
        {"a/cpu.max": "200000 100000", "a/b/cpu.max": "300000 100000"},
        2.0,
    ),
    "version 2, above the namespace": ("0::/../../x\n", {"x/cpu.max": "50000 100000"}, 0.5),
    "version 1": (
        "4:memory:/\n3:cpu,cpuacct:/\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        2.5,
    ),
    "version 1, by the joint name": (
        "3:cpu,cpuacct:/job\n",
        {"cpu,cpuacct/job/cpu.cfs_quota_us": "100000", "cpu,cpuacct/job/cpu.cfs_period_us": "50000"},
        2.0,
    ),
    "version 1, no limit": ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    "no control groups": ("", {}, None),
    "damaged": ("nonsense\n0::/\n", {"cpu.max": "many of them"}, None),
    "a period of nothing": ("0::/\n", {"cpu.max": "100000 0"}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_quota(processors: ModuleType, tmp_path: Path, case: str) -> None:
    groups, files, expected = CASES[case]
    write(tmp_path, {"membership": groups, **{f"root/{name}": text for name, text in files.items()}})
    assert processors.cpu_quota(tmp_path / "root", tmp_path / "membership") == expected


@pytest.mark.parametrize(
    ("processors_of_process", "quota", "limit", "expected"),
    [(8, None, "", 8), (8, 2.9, "", 2), (8, 0.5, "", 1), (8, 16.0, "", 8), (8, 4.0, "3", 3), (2, None, "0", 1),
     (2, None, "64", 2)],
)  # fmt: skip
def test_default(
    processors: ModuleType, monkeypatch: pytest.MonkeyPatch, processors_of_process: int, quota: float | None,
    limit: str, expected: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors_of_process)))
    monkeypatch.setattr(processors, "cpu_quota", lambda: quota)
    monkeypatch.setenv("TRANSPILE_THREADS", limit)
    assert processors.default_threads() == expected
    for wrong in ("all", "-1", "1e3", "²"):
        monkeypatch.setenv("TRANSPILE_THREADS", wrong)
        with pytest.raises(ValueError, match=r"TRANSPILE_THREADS=.*: expected a number of threads"):
            processors.default_threads()
