"""A model.py as it is run."""

import sys
from pathlib import Path

import pytest
import torch

from tests.models.support import FOLDER
from transpiler.errors import TranspileError
from transpiler.local_modules import local_modules
from transpiler.model_file import load_model_file


def test_weights_that_a_file_draws_are_the_same_every_time(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text((FOLDER / "mlp.py").read_text())
    before = torch.random.get_rng_state()
    first = load_model_file(path).module.state_dict()
    torch.rand(3)
    second = load_model_file(path).module.state_dict()
    assert first
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(tensor.abs().max() > 0 for tensor in first.values())
    torch.random.set_rng_state(before)
    load_model_file(path)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's generator is left alone"


NET = """
from torch import nn
from {0} import FACTOR

class Net(nn.Module):
    def forward(self, x):
        return x * FACTOR

def example_inputs():
    import torch
    return (torch.ones(2),)
"""


def test_neighbours_are_those_of_the_file_and_as_they_are_now(tmp_path: Path) -> None:
    """Files of one process whose neighbours have the same name, and a neighbour that is edited in between."""
    x = torch.ones(1)
    for factor in (2, 3):
        folder = tmp_path / str(factor)
        folder.mkdir()
        (folder / "net.py").write_text(NET.format("factors_of_net"))
        (folder / "factors_of_net.py").write_text(f"FACTOR = {factor}")
        assert load_model_file(folder / "net.py").module(x).item() == factor
    assert load_model_file(tmp_path / "2/net.py").module(x).item() == 2
    (tmp_path / "2/factors_of_net.py").write_text("FACTOR = 40")
    assert load_model_file(tmp_path / "2/net.py").module(x).item() == 40


def test_a_module_of_the_process_is_not_taken_for_a_neighbour(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET.format("tests.unit"))
    (tmp_path / "tests/unit").mkdir(parents=True)
    for name in ("tests", "tests/unit"):
        (tmp_path / name / "__init__.py").write_text("FACTOR = 1")
    with pytest.raises(TranspileError, match=r"net\.py imports 'tests', which is .*; but this process has already"):
        load_model_file(tmp_path / "net.py")
    assert Path(str(sys.modules["tests"].__file__)).is_relative_to(FOLDER.parents[1])


def test_the_modules_that_a_file_is_made_of(tmp_path: Path) -> None:
    project = tmp_path / "project"
    files = {
        "pyproject.toml": "",
        "models/net.py": "import torch, os, math\nfrom parts import layer\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import typed\ndef late():\n    import lazy\nimport absent, net\n",
        "models/typed.py": "",
        "models/lazy.py": "import parts.deep.other",
        "models/parts/__init__.py": "from . import layer\nfrom ..above import thing",
        "models/parts/layer.py": "from .deep.leaf import name\nimport parts.native",
        "models/parts/deep/leaf.py": "syntax error",
        "models/parts/deep/other.py": "",
        "models/unused.py": "",
        "models/venv/lib/site-packages/absent.py": "",
        "models/os.py": "",
    }
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    found = {name: path.relative_to(project / "models").as_posix() for name, path in
             local_modules(project / "models/net.py").items()}  # fmt: skip
    assert found == {
        "lazy": "lazy.py",
        "parts": "parts/__init__.py",
        "parts.deep.leaf": "parts/deep/leaf.py",
        "parts.deep.other": "parts/deep/other.py",
        "parts.layer": "parts/layer.py",
    }
    assert local_modules(FOLDER / "mlp.py") == {}
