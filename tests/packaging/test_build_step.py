"""Models that become part of a project's own wheel, through hatchling and through setuptools: the examples of
docs/build_step.md, built and installed without a network and without build isolation."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.packaging.support import run
from transpiler import project_build
from transpiler.errors import TranspileError
from transpiler.model_file import load_model_file
from transpiler.project import read_project
from transpiler.project_build import Built, is_current, put_in_place

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
COUNT = 'import os\n\nwith open(os.environ["BUILDS"], "a") as log:\n    log.write("built\\n")\n\n'


class Bench:
    """Copies of the examples that count how often they are built, and an environment that borrows this one's
    packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "venv/bin/python"
        venv.create(folder / "venv", symlinks=True)
        (site,) = (folder / "venv").glob("lib/*/site-packages")
        lent = [path for path in sys.path if path.endswith("site-packages")]
        text = "".join(f"import site; site.addsitedir({path!r})\n" for path in lent)
        (site / "lent.pth").write_text(f"{ROOT}\n{text}")

    def example(self, name: str, model: str) -> Path:
        """A copy of docs/examples/<name> whose file `model` says when it is run."""
        folder = self.folder / name
        shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
        file = folder / model
        head, docstring, rest = file.read_text().split('"""', 2)
        file.write_text(f'{head}"""{docstring}"""\n{COUNT}{rest}')
        return folder

    @property
    def builds(self) -> int:
        log = self.folder / "builds"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def run(self, *command: str | Path, cwd: Path | None = None, fails: bool = False, **variables: str) -> str:
        """The output of a command that sees nothing of this process's Python paths."""
        own = {"BUILDS": str(self.folder / "builds"), "TRANSPILE_BUILD_ISA": "native", **variables}
        return run(*command, cwd=cwd or self.folder, fails=fails, **own)

    def pip(self, command: str, *arguments: str | Path, fails: bool = False) -> str:
        offline = ("--no-index", "--no-deps", "--no-build-isolation")
        pip = (sys.executable, "-m", "pip", "--python", self.python)
        return self.run(*pip, command, *offline, *arguments, fails=fails)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("BUILDS", str(tmp_path / "builds"))
    monkeypatch.delenv("TRANSPILE_BUILD_DIR", raising=False)
    monkeypatch.setenv("TRANSPILE_BUILD_ISA", "native")
    return Bench(tmp_path)


def test_weights_that_safetensors_opens_are_seen(tmp_path: Path) -> None:
    """Its compiled code raises no audit event."""
    text = (
        "from transpiler.watched import watch_safetensors; opened = set(); watch_safetensors(opened)\n"
        "import numpy as np; from safetensors import safe_open; from safetensors.numpy import load_file, save_file\n"
        "for name in 'ab': save_file({name: np.ones(3)}, name)\n"
        "assert list(load_file('a')) == ['a']\n"
        "with safe_open(filename='b', framework='np') as file: assert list(file.keys()) == ['b']\n"
        "print(*sorted(opened))"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [str(tmp_path / "a"), str(tmp_path / "b")]


def wheel_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert len(names) == len(set(names))
        return {name: archive.read(name) for name in names}


def test_hatchling(bench: Bench) -> None:
    folder = bench.example("build_hatch", "models/ratings.py")
    bench.pip("wheel", "-w", "out", folder)
    (wheel,) = (bench.folder / "out").glob("*.whl")
    assert wheel.name.startswith("shop-1.0-py3-none-")
    assert wheel.name.endswith("linux_x86_64.whl") or "manylinux" in wheel.name
    files = wheel_files(wheel)
    assert {"shop/__init__.py", "shop/ratings/__init__.py", "shop/ratings/manifest.json"} <= files.keys()
    assert any(name.startswith("shop/ratings/kernels/cpu/") and name.endswith(".so") for name in files)
    assert all(name.startswith(("shop/", "shop-1.0.dist-info/")) for name in files)
    assert b"Root-Is-Purelib: false" in files["shop-1.0.dist-info/WHEEL"]

    bench.pip("install", wheel)
    check_ratings(bench, folder)
    # Nothing has changed: nothing is transpiled, whatever is built.
    bench.pip("wheel", "-w", "again", folder)
    (again,) = (bench.folder / "again").glob("*.whl")
    assert again.read_bytes() == wheel.read_bytes()
    bench.pip("install", "--force-reinstall", "-e", folder)
    assert (folder / "src/shop/ratings/manifest.json").is_file()
    check_ratings(bench, folder)
    bench.pip("wheel", "-w", "third", folder)
    assert wheel_files(bench.folder / "third" / wheel.name) == files, "the editable install's copy is not in it twice"
    assert bench.builds == 1
    check_what_makes_it_stale(folder)

    # A file that the model imports has changed: it is built again, from the sdist too.
    (folder / "models/parts.py").write_text((folder / "models/parts.py").read_text() + "\nWIDTH = 1\n")
    bench.run(bench.python, "-c", "from hatchling.build import build_sdist; build_sdist('out')", cwd=folder)
    with tarfile.open(folder / "out/shop-1.0.tar.gz") as archive:
        assert {"shop-1.0/models/ratings.py", "shop-1.0/models/parts.py"} <= set(archive.getnames())
        archive.extractall(bench.folder / "sdist", filter="data")
    shutil.copytree(folder / "build", bench.folder / "sdist/shop-1.0/build")
    bench.pip("wheel", "-w", "fourth", bench.folder / "sdist/shop-1.0")
    assert bench.builds == 2


def check_ratings(bench: Bench, folder: Path) -> None:
    """What the installed package says is what PyTorch says."""
    x = np.random.default_rng(3).standard_normal((7, 12), np.float32)
    np.save(bench.folder / "x.npy", x)
    text = (
        "import numpy as np, shop, shop.ratings; x = np.load('x.npy'); print(shop.ratings.__file__);"
        "np.save('y.npy', shop.ratings.Model()(x)); np.save('best.npy', shop.best_rating(x))"
    )
    bench.run(bench.python, "-c", text)
    with torch.no_grad():
        expected = load_model_file(folder / "models/ratings.py", init={"hidden": 24}).module(torch.from_numpy(x))
    np.testing.assert_allclose(np.load(bench.folder / "y.npy"), expected.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.load(bench.folder / "best.npy"), expected.numpy().argmax(1) + 1)
    (bench.folder / "builds").write_text("built\n" * (bench.builds - 1))  # the model was run here, and not built


def check_what_makes_it_stale(folder: Path) -> None:
    """Every part of the stamp, changed and put back."""

    def current() -> bool:
        project = read_project(folder)
        return is_current(project, project.models[0])

    assert current()
    package = folder / "build/transpile/shop.ratings/ratings/src/ratings"
    for file, change in (
        (folder / "models/ratings.py", lambda text: text + "\n"),
        (folder / "models/parts.py", lambda text: text.replace("relu", "tanh")),
        (folder / "pyproject.toml", lambda text: text.replace("24", "25")),
        (folder / "pyproject.toml", lambda text: text + 'depends = ["models/*.py"]\n'),
        (package / "model.py", lambda text: text + "\n"),
    ):
        before = file.read_text()
        file.write_text(change(before))
        assert not current(), file
        file.write_text(before)
        assert current(), file
    (package / "graph.json").rename(package / "moved")
    assert not current()
    (package / "moved").rename(package / "graph.json")
    versions = metadata.version
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "version", lambda name: "0" if name == "torch" else versions(name))
        assert not current(), "another PyTorch"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(project_build, "_own_hash", lambda: "0")
        assert not current(), "another transpiler"
    assert current()


def test_setuptools(bench: Bench) -> None:
    folder = bench.example("build_setuptools", "mail_model.py")
    settings = folder / "pyproject.toml"
    settings.write_text(settings.read_text() + 'bundle-weights = "separate"\nversion = "2.1"\n')
    bench.pip("wheel", "-w", "out", folder)
    (wheel,) = (bench.folder / "out").glob("mail_filter-1.0-py3-none-*linux*_x86_64.whl")
    files = wheel_files(wheel)
    assert {"mail_filter/__init__.py", "mail_model/__init__.py", "mail_model/manifest.json"} <= files.keys()
    assert all(name.startswith(("mail_filter/", "mail_model/", "mail_filter-1.0.dist-info/")) for name in files)
    kept = folder / "build/transpile/mail_model"
    assert [path.name for path in kept.glob("*.safetensors")] == ["mail_model-2.1.weights.cpu.safetensors"]
    assert "mail_model/weights.cpu.safetensors" not in files
    text = "import mail_filter, mail_model; print(mail_model.__file__, mail_filter.wanted(range(20)))"
    bench.pip("install", wheel)
    assert "was installed without its weights" in bench.run(bench.python, "-c", text, fails=True)
    assert str(bench.folder / "venv") in bench.run(bench.python, "-c", text, TRANSPILE_WEIGHTS=str(kept))
    bench.pip("install", "--force-reinstall", "-e", folder)
    shown = bench.run(bench.python, "-c", text, TRANSPILE_WEIGHTS=str(kept))
    assert str(folder / "build") in shown, "an editable install finds the package where it is kept"
    build = "import setuptools.build_meta as backend; backend.build_sdist('dist')"
    bench.run(bench.python, "-c", build, cwd=folder)
    with tarfile.open(folder / "dist/mail_filter-1.0.tar.gz") as archive:
        assert "mail_filter-1.0/mail_model.py" in archive.getnames()
    assert bench.builds == 1
    project = read_project(folder)
    assert is_current(project, project.models[0])
    (kept / "mail_model-2.1.weights.cpu.safetensors").unlink()
    assert not is_current(project, project.models[0])


BROKEN = """\"\"\"An operator that is told to be another one than it is.\"\"\"

import torch
from torch import nn

from transpiler.extension import register_op
from transpiler.ops.elementwise import Add


@torch.library.custom_op("broken::thrice", mutates_args=())
def thrice(x: torch.Tensor) -> torch.Tensor:
    return x * 3


thrice.register_fake(torch.empty_like)
register_op("broken::thrice", lambda context, x: context.emit(Add(), x, x))


class Net(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return thrice(x)


def example_inputs() -> tuple[torch.Tensor]:
    return (torch.randn(4, 12),)
"""


def test_failed_equivalence_fails_the_build(bench: Bench) -> None:
    folder = bench.example("build_hatch", "models/ratings.py")
    (folder / "models/ratings.py").write_text(BROKEN)
    text = (folder / "pyproject.toml").read_text().replace("init = { hidden = 24 }\n", "")
    (folder / "pyproject.toml").write_text(text.replace('dynamic = ["visits.0=customers:1..256"]\n', ""))
    output = bench.pip("wheel", "-w", "out", folder, fails=True)
    assert "The model 'shop.ratings' (models/ratings.py) could not be built" in output
    assert "Error: The generated tests failed: " in output
    assert re.search(r"failed: test_equivalence::test_outputs_equal_pytorch\[\w+-drawn_1\]", output)
    assert "E       AssertionError" in output, "what pytest printed"
    assert not list((bench.folder / "out").glob("*.whl"))
    project = read_project(folder)
    assert not is_current(project, project.models[0])


@pytest.mark.parametrize("name", ["build_hatch", "build_setuptools"])
def test_a_wrong_key_fails_the_build(bench: Bench, name: str) -> None:
    folder = bench.example(name, "models/ratings.py" if name == "build_hatch" else "mail_model.py")
    (folder / "pyproject.toml").write_text((folder / "pyproject.toml").read_text() + 'tune = "quickly"\n')
    output = bench.pip("wheel", "-w", "out", folder, fails=True)
    assert "tool.transpile.models[0].tune: expected none, fast or full, got 'quickly'" in output
    assert "Traceback" not in output
    assert bench.builds == 0


def test_what_is_not_ours_is_not_replaced(bench: Bench) -> None:
    folder = bench.example("build_hatch", "models/ratings.py")
    kept = folder / "src/shop/ratings/__init__.py"
    kept.parent.mkdir()
    kept.write_text("precious")
    spec = read_project(folder).models[0]
    built = Built(spec, folder / "build/transpile/shop.ratings/ratings")
    with pytest.raises(TranspileError, match="was not made by transpile"):
        put_in_place(built, folder / "src/shop")
    with pytest.raises(TranspileError, match="goes into the package 'shop', which is not here"):
        put_in_place(built, folder / "src/shopping")
    assert kept.read_text() == "precious"
