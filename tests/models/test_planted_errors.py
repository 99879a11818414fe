"""Planted errors make the generated tests fail: a weight off by 1%, an axis off by one, a dropped bias,
swapped outputs.

A package with an error is judged by the tests that were generated for the right one.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.models import hf
from tests.models.redraw import redraw
from tests.models.support import Built, load
from transpiler import transpile
from transpiler.testing import run_generated_tests

MODELS: dict[str, Callable[[], Built]] = {
    name: lambda name=name: load(name)  # type: ignore[misc]
    for name in (
        "mnist",
        "basic_block",
        "unet",
        "lstm",
        "bi_gru",
        "module_dict",
        "module_list",
        "custom_function",
    )
}


def _bert() -> Built:
    module, args, kwargs = hf.bert_tiny()
    return redraw(module, 1), args, kwargs


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
    """The failures of the comparison with PyTorch alone: a changed file is noticed elsewhere too."""
    report = run_generated_tests(package, arguments=("-k", "outputs_equal_pytorch", *arguments))
    assert report.passed + report.failed > 0, report.output
    return report.failures


@pytest.mark.parametrize("name", sorted(MODELS))
def test_each_weight_off_by_one_percent(name: str, tmp_path: Path) -> None:
    built = MODELS[name]()
    package = _transpile(built, name, tmp_path / "package")
    state = {key: value.detach().clone().contiguous() for key, value in built[0].state_dict().items()}
    save_file(state, tmp_path / "same.safetensors")
    assert _judge(package.path, "--weights", str(tmp_path / "same.safetensors")) == ()

    unnoticed = []
    for key, value in state.items():
        if not value.is_floating_point():
            continue
        save_file(state | {key: value * 1.01}, tmp_path / "scaled.safetensors")
        if not _judge(package.path, "-x", "--weights", str(tmp_path / "scaled.safetensors")):
            unnoticed.append(key)
    assert unnoticed == [key for model, key in CANNOT_MATTER if model == name]


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


class NoBias(Scores):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(nn.functional.linear(x, self.fc.weight), dim=self.axis)


class WrongReduction(Scores):
    """The softmax is right on average only: it is normalised over the neighbouring axis of equal size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.fc(x).exp()
        return scores / scores.sum(dim=2, keepdim=True).transpose(1, 2)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.second = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.first(x), self.second(x)


class Swapped(Two):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = super().forward(x)
        return second, first


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


@pytest.mark.parametrize(
    ("right", "wrong", "shape"),
    [
        (Scores, WrongAxis, (2, 6, 6)),
        (Scores, WrongReduction, (2, 6, 6)),
        (Scores, NoBias, (2, 6, 6)),
        (ConvBias, ConvNoBias, (2, 3, 8, 8)),
        (Two, Swapped, (5, 6)),
    ],
    ids=["axis", "reduced_axis", "bias", "folded_bias", "swapped_outputs"],
)
def test_a_wrong_program(
    right: type[nn.Module], wrong: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    example = (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)
    good = _transpile((redraw(right(), 1), example, {}), "planted", tmp_path / "right")
    bad = _transpile((redraw(wrong(), 1), example, {}), "planted", tmp_path / "wrong")
    assert _judge(good.path) == ()
    shutil.rmtree(bad.path / "tests")
    shutil.copytree(good.path / "tests", bad.path / "tests")
    failures = _judge(bad.path)
    assert any("drawn_1" in name for name in failures), failures
