"""The README's Python is run, and what it says about its results is checked."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from tests.models.mnist import MnistClassifier
from transpiler import transpile
from transpiler.cli import main

ROOT = Path(__file__).parents[2]
SPECTRAL = """
import torch


class Spectral(torch.nn.Module):
    def forward(self, x):
        return torch._standard_gamma_grad(torch._standard_gamma_grad(x, x), x)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Spectral()

    def forward(self, x):
        return self.block(x), torch.linalg.eigvals(x).abs()


def example_inputs():
    return (torch.rand(4, 4),)
"""


def block(start: str) -> str:
    """The Python block of the README that begins with `start`."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return next(text for text in found if text.startswith(start))


def test_using_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    package = transpile(ROOT / "tests/models/mnist.py", out=tmp_path)
    assert block("    def forward(self, k: Kernels") in (package.path / "src/mnist/model.py").read_text()
    monkeypatch.syspath_prepend(str(package.path / "src"))
    save_file(MnistClassifier().state_dict(), "new.safetensors")
    *lines, last = block("import numpy as np\nfrom mnist").strip().splitlines()
    names: dict[str, Any] = {}
    try:
        exec("\n".join(lines), names)
        model = names["model"]
        assert f"# {model.taps}: module paths" in "\n".join(lines)
        assert model.tap("pool")(names["image"]).shape == (1, 32, 14, 14)
        call, said = last.split("# ValueError: ")
        with pytest.raises(ValueError, match=re.escape(said)):
            exec(call, names)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mnist"]:
            del sys.modules[name]


def test_the_python_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(block("import torch\nfrom transpiler"), names)
    assert names["package"].path == Path("packages/perceptron")
    with torch.no_grad():
        np.testing.assert_allclose(names["y"], names["model"](names["x"]).numpy(), atol=1e-6)


def test_what_an_unsupported_model_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("spectral.py").write_text(SPECTRAL)
    result = CliRunner().invoke(main, ["spectral.py", "--quiet"], prog_name="transpile")
    assert result.exit_code == 1
    (shown,) = re.findall(
        r"```\n\$ transpile spectral\.py\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL
    )
    assert result.stderr == shown
