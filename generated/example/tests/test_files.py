"""The files are those that were built, damage is noticed, and nothing but numpy is needed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from _blocker import BLOCKED

import example

ROOT = Path(example.__file__).parent
MANIFEST = json.loads((ROOT / "manifest.json").read_text())


def _python(*arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(root.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_every_file_has_its_hash() -> None:
    files = MANIFEST["files"]
    assert files, "the manifest lists no files"
    for name, digest in files.items():
        path = ROOT / name.removeprefix("src/example/")
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, f"{name} was changed"


def test_nothing_but_numpy_is_imported(device: str) -> None:
    code = f"import sys, example; example.Model(device={device!r}); print(sorted({set(BLOCKED)!r} & set(sys.modules)))"
    done = _python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["info", "verify"])
def test_command_line(command: str) -> None:
    done = _python("-m", "example", command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


# What a model on a target reads: code (but Python, which is checked before), the library for C programs, weights.
PATTERNS = [
    (target, pattern)
    for target in MANIFEST["targets"]
    for pattern in (f"kernels/{target}/**/*.[!p]*", "lib/*.so", "weights*.safetensors")
    if any(ROOT.glob(pattern)) and (target == "cpu" or not pattern.startswith("lib"))
]


@pytest.mark.parametrize(("device", "pattern"), PATTERNS, indirect=["device"])
def test_a_damaged_file_is_noticed(tmp_path: Path, device: str, pattern: str) -> None:
    copy = tmp_path / ROOT.name
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("__pycache__"))
    files = sorted(copy.glob(pattern))
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
    done = _python("-c", f"import example; example.Model(device={device!r})", root=copy)
    assert done.returncode == 1, "a truncated file must raise, not load or crash"
    assert any(path.name in done.stderr for path in files), done.stderr
