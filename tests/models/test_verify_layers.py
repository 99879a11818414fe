"""`python -m NAME verify --layers`: the error of every layer, and the first one that is off."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.redraw import redraw
from transpiler import transpile


class Net(nn.Module):
    """Four layers, one of them nested; `factor` is what the third layer's result is scaled by."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(16)
        self.block = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
        self.last = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(torch.relu(self.first(x)))
        hidden = self.block(hidden * self.factor)
        return self.last(torch.softmax(hidden, -1))


class Wrong(Net):
    factor = 1.01


INPUT = (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),)


def build(module: nn.Module, out: Path, **options: Any) -> Path:
    path: Path = transpile(redraw(module, 1), INPUT, name="net", out=out, **options).path
    return path


def verify(package: Path, *options: str, cwd: Path | None = None) -> tuple[int, list[str]]:
    """Exit code and lines of the command, in a process that sees the package only."""
    done = subprocess.run(
        [sys.executable, "-m", "net", "verify", "--layers", *options],
        cwd=cwd or package,
        env={**os.environ, "PYTHONPATH": str(package / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def table(lines: list[str]) -> dict[str, list[str]]:
    """Layer -> the other columns."""
    assert lines[0].split() == ["layer", "type", "error", "tolerance"]
    return {line.split()[0]: line.split()[1:] for line in lines[1 : lines.index("")]}


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(Net(), tmp_path_factory.mktemp("every"), taps="all")


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(Net(), tmp_path_factory.mktemp("fused"))


def test_every_layer_is_right(every: Path) -> None:
    code, lines = verify(every, "--data", "tests/data")
    assert code == 0
    assert list(table(lines)) == ["first", "norm", "block.0", "block.1", "block", "last"]
    assert lines[lines.index("") + 1 :] == [
        "6 layers compared on case 'drawn_1', in execution order: all within tolerance"
    ]
    head, first = lines[0], lines[1]
    assert head.index("tolerance") + len("tolerance") == len(first), "numbers are aligned to the right"


def test_the_first_bad_layer_is_named(every: Path, tmp_path: Path) -> None:
    wrong = build(Wrong(), tmp_path, taps="all")
    code, lines = verify(wrong, "--data", str(every / "tests/data"))
    assert code == 1
    rows = table(lines)
    assert [path for path, row in rows.items() if "OFF" in row] == ["block.0", "block.1", "block", "last"]
    assert [path for path, row in rows.items() if row[-1] == "layer"] == ["block.0"]
    verdict, fault = lines[lines.index("") + 1 :]
    assert verdict.endswith("4 off, the first is 'block.0'")
    assert "'block.0': " in fault
    assert "worst at [" in fault


def test_a_fused_package_names_the_first_bad_layer_that_is_left(fused: Path, tmp_path: Path) -> None:
    wrong = build(Wrong(), tmp_path)
    code, lines = verify(wrong, "--data", str(fused / "tests/data"))
    assert code == 1
    rows = table(lines)
    assert "first" not in rows
    assert next(path for path, row in rows.items() if "OFF" in row) == "block.1"
    assert any(line.startswith("2 more fused into the kernels of their neighbours: block.0, first") for line in lines)


def test_the_data_of_the_checkout_is_found(fused: Path, tmp_path: Path) -> None:
    assert verify(fused, cwd=tmp_path)[0] == 0


def test_no_data(fused: Path, tmp_path: Path) -> None:
    """As in an installed package."""
    installed = tmp_path / "installed"
    (installed / "src").mkdir(parents=True)
    shutil.copytree(fused / "src/net", installed / "src/net")
    code, lines = verify(installed)
    assert code == 1
    assert lines == [
        "error: PyTorch's values of the layers are not part of an installed package: give --data FOLDER, "
        "the folder tests/data of the project net that transpile wrote"
    ]
    assert verify(installed, "--data", "src")[1] == [
        "error: no src/cases.json: give the folder tests/data of the project"
    ]


def test_the_data_of_another_model(fused: Path, tmp_path: Path) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.fc(pixels)

    other = transpile(Other(), (torch.ones(2),), name="other", out=tmp_path).path
    code, lines = verify(fused, "--data", str(other / "tests/data"))
    assert code == 1
    assert "was recorded for another model: its inputs are [('pixels', 'float32', [2])]" in lines[0]
