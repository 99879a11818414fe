"""Operators from outside: registered ones are compiled and equal PyTorch, others are refused with what to do."""

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from transpiler import extension, transpile
from transpiler.errors import TranspileErrors
from transpiler.extension import register_op
from transpiler.ops.elementwise import Add, Mul

EXAMPLE = Path(__file__).parents[2] / "docs/examples/custom_op/model.py"


def operator(name: str) -> Any:
    """x * x + x as an operator that PyTorch cannot look into."""

    @torch.library.custom_op(f"outside::{name}", mutates_args=())
    def run(x: torch.Tensor) -> torch.Tensor:
        return x * x + x

    run.register_fake(torch.empty_like)
    return run


class Net(nn.Module):
    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.run(x))


def test_the_example(tmp_path: Path) -> None:
    """An element-wise one, fused into the linear layer, and a reduction; the generated tests pass."""
    package = transpile(EXAMPLE, out=tmp_path, name="custom", test=True)
    assert package.report.tests is not None
    assert package.report.tests.failed == 0
    assert package.report.kernels == 2
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    clipped, energy = package.load()(x)
    assert np.abs(clipped).max() < 0.5
    np.testing.assert_allclose(energy, np.square(clipped.astype(np.float64)).sum(-1), rtol=1e-5)


def test_a_model_file_may_be_run_again(tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert transpile(EXAMPLE, out=tmp_path, name=name).report.kernels == 2


def test_a_composition(tmp_path: Path) -> None:
    run = operator("composed")
    register_op("outside::composed", lambda context, x: context.emit(Add(), context.emit(Mul(), x, x), x))
    x = torch.randn(3, 5)
    got = transpile(Net(run), (x,), out=tmp_path, name="composed").load()(x.numpy())
    np.testing.assert_allclose(got, torch.relu(x * x + x).numpy(), rtol=1e-6, atol=1e-7)


def test_an_unknown_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TranspileErrors, match=r"(?s)'outside\.unknown\.default'.*register_op") as caught:
        transpile(Net(operator("unknown")), (torch.ones(2),), out=tmp_path)
    assert caught.value.problems[0].locations[0].text == "return torch.relu(self.run(x))"


def test_entry_points_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Entry:
        name = "mylib"

        def load(self) -> None:
            loaded.append(self.name)

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()] if group == "transpiler.ops" else [])
    extension.load_installed.cache_clear()
    extension.load_installed()
    extension.load_installed()
    extension.load_installed.cache_clear()
    assert loaded == ["mylib"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("relu", "no qualified name"), ("aten::relu", "PyTorch's own"), ("::x", "no qualified name")],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_op(name, lambda context, x: x)
