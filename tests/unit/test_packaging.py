"""The wheel holds everything, and works on its own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_checkout_works_without_installing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "transpiler", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("transpile ")


@pytest.mark.slow
def test_the_wheel(tmp_path: Path) -> None:
    """Needs the network once, for the build backend."""
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for folder in ("templates", "targets", "schedules"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"transpiler/{path.relative_to(ROOT)}" in held
    assert "transpiler/py.typed" in held
    assert not [name for name in held if name.startswith(("tests/", "docs/")) or name.endswith(".pyc")]
    subprocess.run(
        [sys.executable, "-m", "transpiler", str(ROOT / "tests/models/mlp.py"), "-q", "--out", "out"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, check=True,
    )  # fmt: skip
    assert (tmp_path / "out/mlp/src/mlp/model.py").is_file()
