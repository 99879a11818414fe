"""A package where there is nothing but numpy: installed with pip into a fresh virtual environment, run, and its own
tests run; then what its folder promises: clean, typed, the same bytes every time."""

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.models import hf
from tests.models.redraw import redraw
from tests.models.support import FOLDER, load
from transpiler import transpile
from transpiler.api import Package

ABSENT = ("torch", "tvm", "tvm_ffi", "transpiler", "jinja2", "libcst", "safetensors", "hatchling")


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """The output of a command that sees nothing of this process's Python paths; it must succeed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, "PYTHONDONTWRITEBYTECODE": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Package]:
    """Packages by the names of models, each transpiled once."""

    @cache
    def made(name: str) -> Package:
        if name == "bert_tiny":
            module, args, kwargs = hf.bert_tiny()
            module = redraw(module, 1)
        else:
            module, args, kwargs = load(name)
        return transpile(module, args, kwargs, name=name, out=tmp_path_factory.mktemp(name), test=name == "mnist")

    return made


@pytest.fixture(scope="module")
def mnist(build: Callable[[str], Package]) -> Package:
    """The MNIST classifier, transpiled and tested."""
    return build("mnist")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, mnist: Package) -> Path:
    """The Python of an environment with numpy and the package, and nothing else."""
    folder = tmp_path_factory.mktemp("alone") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, f"numpy=={np.__version__}", cwd=folder)
    # No network, and no build tools either: the package brings its own build backend.
    run(*pip, "--no-index", mnist.path, cwd=folder)
    return python


def test_nothing_else_is_installed(alone: Path, tmp_path: Path) -> None:
    text = "import importlib.util as u, sys; print([name for name in sys.argv[1:] if u.find_spec(name)])"
    assert run(alone, "-c", text, *ABSENT, cwd=tmp_path).strip() == "[]"
    listed = run(alone, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check", cwd=tmp_path)
    names = {line.partition("==")[0] for line in listed.splitlines()}
    assert names - {"pip", "setuptools"} == {"numpy", "mnist"}


def test_it_is_used_as_its_readme_says(alone: Path, mnist: Package, tmp_path: Path) -> None:
    text = (
        "import sys, numpy as np; from mnist import Model; x = np.load(sys.argv[1]); "
        "np.save(sys.argv[2], Model()(x)); assert 'site-packages' in sys.modules['mnist'].__file__"
    )
    x = np.random.default_rng(0).standard_normal((1, 1, 28, 28), np.float32)
    np.save(tmp_path / "x.npy", x)
    run(alone, "-c", text, tmp_path / "x.npy", tmp_path / "y.npy", cwd=tmp_path)
    assert np.array_equal(np.load(tmp_path / "y.npy"), mnist.load()(x))


@pytest.mark.parametrize(
    ("command", "shown"),
    [("info", "image"), ("verify", "the sample passed"), ("bench", "median"), ("profile", "total")],
)
def test_commands(alone: Path, tmp_path: Path, command: str, shown: str) -> None:
    assert shown in run(alone, "-m", "mnist", command, cwd=tmp_path)


def test_its_own_tests_pass_there(alone: Path, mnist: Package, tmp_path: Path) -> None:
    """pytest is lent: a folder beside the environment, so that the environment itself stays bare."""
    lent = tmp_path / "lent"
    pip = (alone, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", lent)
    run(*pip, "--no-deps", "pytest", "pluggy", "iniconfig", "packaging", "pygments", cwd=tmp_path)
    output = run(
        alone, "-m", "pytest", "-q", "-p", "no:cacheprovider", mnist.path / "tests", cwd=tmp_path,
        PYTHONPATH=str(lent),
    )  # fmt: skip
    last = output.strip().splitlines()[-1]
    assert "passed" in last
    assert "failed" not in last
    assert "error" not in last


# --- the folder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "lstm", "bert_tiny"])
def test_it_is_formatted_clean_and_typed(name: str, build: Callable[[str], Package], tmp_path: Path) -> None:
    package = build(name)
    for command in (
        ("ruff", "format", "--check", "--no-cache", "."),
        ("ruff", "check", "--no-cache", "."),
        ("mypy", "--strict", "--cache-dir", str(tmp_path / "mypy")),
    ):
        run(sys.executable, "-m", *command, cwd=package.path)


_COMMAND = "import sys; from transpiler.cli import main; main()"


def test_same_input_same_bytes(tmp_path: Path) -> None:
    """Two processes with different hash seeds, two folders: every file of the package and its wheel are the same,
    whatever the folder's name."""
    weights = tmp_path / "mnist.safetensors"
    from safetensors.torch import save_file

    save_file(load("mnist")[0].state_dict(), weights)
    folders = [tmp_path / "one", tmp_path / "another/place"]
    for seed, folder in enumerate(folders):
        run(
            sys.executable, "-c", _COMMAND, FOLDER / "mnist.py", "--weights", weights, "--out", folder, "-q",
            "--no-test", "--wheel", cwd=FOLDER.parent.parent, PYTHONHASHSEED=str(seed + 1),
            PYTHONPATH=str(FOLDER.parent.parent),
        )  # fmt: skip
    first, second = (_files(folder) for folder in folders)
    assert sorted(first) == sorted(second)
    assert len([name for name in first if name.endswith(".whl")]) == 1
    assert [name for name in first if first[name] != second[name]] == []
    for folder in folders:
        assert not [name for name, data in first.items() if str(folder).encode() in data]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["mnist", "lstm"])
def test_four_callers_at_once(name: str, build: Callable[[str], Package]) -> None:
    """A model that may use two threads, called from four: every result is that of a lone call."""
    _, args, _ = load(name)
    model = build(name).load(threads=2)
    rng = np.random.default_rng(0)
    inputs = [[rng.standard_normal(item.shape, np.float32) for item in args] for _ in range(4)]
    expected = [model.infer(*arrays) for arrays in inputs]

    def call(index: int) -> bool:
        return all(
            np.array_equal(got, want)
            for _ in range(50)
            for got, want in zip(model.infer(*inputs[index]), expected[index], strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(4)))
