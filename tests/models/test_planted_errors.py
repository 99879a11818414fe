"""Planted errors make the generated tests fail: a weight off by 1%, a dropped bias, an axis off by one,
swapped outputs.

A package with an error is judged by the tests that were generated for the right one. Most run in this process
(the emitted test functions themselves); what each kind of error does to a real pytest run is tested too.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.models import hf
from tests.models.generated import GeneratedTests
from tests.models.lstm import LSTMModel
from tests.models.lstm import example_inputs as lstm_inputs
from tests.models.redraw import redraw
from tests.models.support import Built, load
from transpiler import transpile
from transpiler.testing import run_generated_tests

FILES = (
    "mnist", "cifar", "basic_block", "unet", "lstm", "gru", "bi_gru", "module_dict", "module_list",
    "custom_function",
)  # fmt: skip


def _bert() -> Built:
    module, args, kwargs = hf.bert_tiny()
    return redraw(module, 1), args, kwargs


MODELS: dict[str, Callable[[], Built]] = {name: partial(load, name) for name in FILES}
MODELS["bert_tiny"] = _bert

# (model, key) -> why scaling it provably cannot change an output.
CANNOT_MATTER: dict[tuple[str, str], str] = {
    ("bert_tiny", "encoder.layer.0.attention.self.key.bias"): (
        "it adds q.b to every score of a softmax row, since q.(k + b) = q.k + q.b, and softmax ignores that"
    ),
}


def _transpile(built: Built, name: str, out: Path) -> Any:
    module, args, kwargs = built
    return transpile(module, args=args, kwargs=kwargs, target="cpu", name=name, out=out, quiet=True)


def _judge(package: Path, *arguments: str) -> tuple[str, ...]:
    """The failures of the comparison with PyTorch alone in a real run of the generated tests: a changed file is
    noticed elsewhere too."""
    report = run_generated_tests(package, arguments=("-k", "outputs_equal_pytorch", *arguments))
    assert report.passed + report.failed > 0, report.output
    return report.failures


@pytest.mark.parametrize("name", sorted(MODELS))
def test_each_weight_off_by_one_percent_and_each_bias_dropped(name: str, tmp_path: Path) -> None:
    built = MODELS[name]()
    package = _transpile(built, name, tmp_path)
    generated, model = GeneratedTests(package.path), package.load()
    state = {key: value.numpy().copy() for key, value in built[0].state_dict().items()}
    model.load_weights(state)
    assert generated.failures(model) == []

    unnoticed = set()
    for key, value in state.items():
        planted = [value * np.float32(1.01)] if value.dtype == np.float32 else []
        planted += [np.zeros_like(value)] if "bias" in key else []
        for wrong in planted:
            model.load_weights({**state, key: wrong})
            if not generated.failures(model, first=True):
                unnoticed.add(key)
    assert unnoticed == {key for model_name, key in CANNOT_MATTER if model_name == name}
    model.load_weights(state)
    assert generated.failures(model) == []


def test_a_weight_off_by_one_percent_fails_in_pytest(tmp_path: Path) -> None:
    built = load("mnist")
    package = _transpile(built, "mnist", tmp_path / "package")
    state = {key: value.clone() for key, value in built[0].state_dict().items()}
    same, scaled = tmp_path / "same.safetensors", tmp_path / "scaled.safetensors"
    save_file(state, same)
    save_file(state | {"conv2.weight": state["conv2.weight"] * 1.01}, scaled)
    assert _judge(package.path, "--weights", str(same)) == ()
    assert any("drawn_1" in failure for failure in _judge(package.path, "--weights", str(scaled)))


class Scores(nn.Module):
    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.axis = axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.fc(x), dim=self.axis)


class WrongAxis(Scores):
    def __init__(self) -> None:
        super().__init__(axis=2)


class WrongReduction(Scores):
    """The softmax is right on average only: it is normalised over the neighbouring axis of equal size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.fc(x).exp()
        return scores / scores.sum(dim=2, keepdim=True).transpose(1, 2)


class Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.fc(x))


class NoBias(Activated):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(nn.functional.linear(x, self.fc.weight))


class ConvBias(nn.Module):
    """Convolution and batch norm, whose folding is where a bias gets lost."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class ConvNoBias(ConvBias):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(nn.functional.conv2d(x, self.conv.weight))


class SwappedStates(LSTMModel):
    """The final states in the wrong order: same shapes, same magnitudes."""

    def forward(self, x: torch.Tensor, h0: torch.Tensor, c0: torch.Tensor) -> Any:
        last, out, (hn, cn) = super().forward(x, h0, c0)
        return last, out, (cn, hn)


def _draw(*shape: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.parametrize(
    ("right", "wrong", "inputs"),
    [
        pytest.param(Scores, WrongAxis, _draw(2, 6, 6), id="axis"),
        pytest.param(Scores, WrongReduction, _draw(2, 6, 6), id="reduced_axis"),
        pytest.param(Activated, NoBias, _draw(5, 6), id="bias"),
        pytest.param(ConvBias, ConvNoBias, _draw(2, 3, 8, 8), id="folded_bias"),
        pytest.param(LSTMModel, SwappedStates, lstm_inputs(), id="swapped_outputs"),
    ],
)
def test_a_wrong_program(
    right: type[nn.Module], wrong: type[nn.Module], inputs: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    good = _transpile((redraw(right(), 1), inputs, {}), "planted", tmp_path / "right")
    bad = _transpile((redraw(wrong(), 1), inputs, {}), "planted", tmp_path / "wrong")
    assert GeneratedTests(good.path).failures(good.load()) == []
    shutil.rmtree(bad.path / "tests")
    shutil.copytree(good.path / "tests", bad.path / "tests")
    failures = _judge(bad.path)
    assert any("drawn_1" in failure for failure in failures), failures
