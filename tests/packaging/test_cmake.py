"""`find_package(transpiler)`: the C++ program of docs/examples/cmake_program, built, run, changed and installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from transpiler.model_file import load_model_file

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/cmake_program"
COUNT = 'import os\n\nwith open(os.environ["BUILDS"], "a") as log:\n    log.write("built\\n")\n'


def run(*command: str | Path, fails: bool = False, text: str = "", **variables: str) -> str:
    done = subprocess.run(
        list(map(str, command)), input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=400, env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def cmake() -> str:
    """The program: of this environment (PyPI has it), else of the system."""
    own = Path(sys.executable).parent / "cmake"
    return str(own) if own.exists() else shutil.which("cmake") or "cmake"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "a project"
    shutil.copytree(EXAMPLE, folder)
    source = folder / "ratings.py"
    head, docstring, rest = source.read_text().split('"""', 2)
    source.write_text(f'{head}"""{docstring}"""\n\n{COUNT}{rest}')
    return folder


def configure(project: Path, build: Path, *more: str, fails: bool = False) -> str:
    where = run(sys.executable, "-m", "transpiler", "cmake-dir").strip()
    found = (f"-Dtranspiler_DIR={where}", f"-DPython3_EXECUTABLE={sys.executable}")
    return run(cmake(), "-S", project, "-B", build, *found, *more, fails=fails)


def test_the_example(project: Path, tmp_path: Path) -> None:
    build, counter = tmp_path / "build", tmp_path / "builds"

    def make(fails: bool = False) -> int:
        run(cmake(), "--build", build, BUILDS=str(counter), fails=fails)
        return len(counter.read_text().splitlines())

    configure(project, build, f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'installed'}")
    assert make() == 1
    x = np.random.default_rng(1).standard_normal((3, 12), np.float32)
    numbers = " ".join(map(str, x.reshape(-1).tolist()))
    shown = run(build / "rate", "3", text=numbers)
    got = np.array([line.split() for line in shown.splitlines()], np.float32)
    with torch.no_grad():
        expected = load_model_file(EXAMPLE / "ratings.py", init={"hidden": 24}).module(torch.from_numpy(x))
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert "error: " in run(build / "rate", "300", text="1 " * 3600, fails=True), "more customers than allowed"

    run(cmake(), "--install", build)
    shutil.move(build, tmp_path / "elsewhere")
    assert run(tmp_path / "installed/bin/rate", "3", text=numbers) == shown
    shutil.move(tmp_path / "elsewhere", build)

    assert make() == 1, "nothing has changed"
    parts = project / "parts.py"
    parts.write_text(parts.read_text().replace("torch.relu", "torch.tanh"))
    assert make() == 2, "what the model imports has changed"
    assert run(build / "rate", "3", text=numbers) != shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("transpile_model(NAME net)", "transpile_model: SOURCE is missing"),
        ("transpile_model(NAME net SOURCE gone.py)", "transpile_model: SOURCE: there is no"),
        ("transpile_model(NAME net/../x SOURCE ratings.py)", "cannot be the name of a package"),
        ("transpile_model(NAME net SOURCE ratings.py WEIGTHS w.pt)", "transpile_model: unknown: WEIGTHS;w.pt"),
    ],
)
def test_wrong_calls(project: Path, tmp_path: Path, text: str, message: str) -> None:
    (project / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.20)\nproject(p LANGUAGES NONE)\nfind_package(transpiler REQUIRED)\n{text}\n"
    )
    assert message in " ".join(configure(project, tmp_path / "build", fails=True).split())
