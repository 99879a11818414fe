"""docs/packaging.md: its Python is run, block by block in one folder, and its shell script."""

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.models.support import FOLDER
from tests.packaging.support import run
from transpiler import transpile

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/packaging.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_the_python_of_the_page(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "mlp.py", tmp_path / "model.py")
    script = "\n".join(blocks("python"))
    assert script.count("package.wheel(") == 3
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=path)
    assert [path.name for path in (tmp_path / "code").glob("*.safetensors")] == ["mlp-0.1.0.weights.cpu.safetensors"]
    assert not list((tmp_path / "bare").glob("*.safetensors"))


def test_the_program_in_cpp(tmp_path: Path) -> None:
    """Compiled against an unzipped wheel, as the page says; it prints what Python computes."""
    package = transpile(FOLDER / "mlp.py", name="mlp", isa="baseline", out=tmp_path / "build")
    package.wheel(tmp_path / "dist")
    (program,) = blocks("cpp")
    (tmp_path / "main.cpp").write_text(program)
    script = blocks("sh")[0].replace("unzip -q dist/mlp-*.whl -d", f"{sys.executable} -m zipfile -e dist/mlp-*.whl")
    printed = run("sh", "-ec", script, cwd=tmp_path)
    expected = package.load()(np.ones((8, 32), np.float32))[0]
    np.testing.assert_array_equal(np.array(printed.split(), np.float32), expected)


@pytest.mark.slow
def test_the_ci_job(tmp_path: Path) -> None:
    """With `transpile` and numpy of this environment; pip needs the network for nothing else."""
    shutil.copy(FOLDER / "mlp.py", tmp_path / "model.py")
    _, script = blocks("sh")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "transpile").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m transpiler "$@"\n')
    (tools / "transpile").chmod(0o755)
    (tools / "python").symlink_to(sys.executable)
    output = run("sh", "-c", script, cwd=tmp_path, PATH=os.pathsep.join([str(tools), os.environ["PATH"]]))
    assert "the sample passed" in output
