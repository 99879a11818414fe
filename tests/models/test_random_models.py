"""Models that draw random numbers: refused, or with --rng a package with a seed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transpiler import transpile
from transpiler.api import Package
from transpiler.errors import TranspileErrors


class Noisy(nn.Module):
    """Dropout, noise, and what is chosen by chance, each used further on."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 16)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor, rng: Tensor) -> dict[str, Tensor]:
        hidden = F.dropout(torch.relu(self.fc(x)), 0.3, training=True)
        scores = self.out(hidden + torch.randn_like(hidden) * 0.1)
        return {
            "scores": scores + rng,
            "chosen": torch.multinomial(torch.softmax(scores, -1), 2),
            "mask": torch.bernoulli(torch.sigmoid(scores)),
            "shuffled": x[torch.randperm(6)],
            "level": torch.randint(3, 9, (5,)),
            "plain": x * 2,
        }


def inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 8, generator=generator), torch.randn(4, generator=generator)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The generated tests run as part of it: PyTorch on the same numbers, moments, sequences."""
    torch.manual_seed(0)
    return transpile(Noisy(), inputs(), name="noisy", out=tmp_path_factory.mktemp("noisy"), rng=True, test=True)


def call(model: Any) -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = model(*(item.numpy() for item in inputs()))
    return result


def test_its_generated_tests_pass(noisy: Package) -> None:
    assert noisy.report.tests is not None
    assert noisy.report.tests.failed == 0
    for error in noisy.report.errors.values():
        assert error.max_abs_error <= error.tolerance < 1e-3


def test_seeds_and_calls(noisy: Package) -> None:
    model = noisy.load()
    first, second = call(model), call(model)
    assert (first["scores"] != second["scores"]).all()
    assert (first["plain"] == second["plain"]).all()
    model.seed(0)
    assert all((a == b).all() for a, b in zip(first.values(), call(model).values(), strict=True))
    again = call(noisy.load(seed=0, native=False, threads=1))
    assert all((a == b).all() for a, b in zip(first.values(), again.values(), strict=True))
    assert (call(noisy.load(seed=-1))["scores"] != first["scores"]).all()
    assert sorted(first["shuffled"][:, 0]) == sorted(inputs()[0][:, 0].tolist())


def test_what_it_says_about_itself(noisy: Package) -> None:
    manifest = json.loads((noisy.path / "src/noisy/manifest.json").read_text())
    assert manifest["rng"]["generator"] == "philox4x32-10"
    assert [item["name"] for item in manifest["inputs"]] == ["x", "rng"]
    assert "not with PyTorch's generator" in (noisy.path / "README.md").read_text()
    for command in ("info", "verify", "profile"):
        done = subprocess.run([sys.executable, "-m", "noisy", command], cwd=noisy.path / "src", capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_planted_errors_are_noticed(tmp_path: Path) -> None:
    """A wrong probability passes no comparison of values or moments."""

    class Right(nn.Module):
        rate = 0.5

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, self.rate, True) * 2

    class Wrong(Right):
        rate = 0.6

    x = (torch.ones(64, 64),)
    good = transpile(Right(), x, name="planted", out=tmp_path / "right", rng=True)
    bad = transpile(Wrong(), x, name="planted", out=tmp_path / "wrong", rng=True)
    assert good.test().failed == 0
    for file in (good.path / "tests/data").iterdir():
        (bad.path / "tests/data" / file.name).write_bytes(file.read_bytes())
    failures = bad.test().failures
    assert any("test_moments_equal_pytorch" in name for name in failures)
    assert any("test_outputs_equal_pytorch" in name for name in failures)


def test_a_graph_file_keeps_its_generator(noisy: Package, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(Noisy().state_dict(), tmp_path / "weights.safetensors")
    graph = tmp_path / "noisy.graph.json"
    graph.write_bytes((noisy.path / "src/noisy/graph.json").read_bytes())
    package = transpile(graph, weights=tmp_path / "weights.safetensors", name="noisy", out=tmp_path, test=True)
    first, second = call(noisy.load()), call(package.load())
    assert all((a == b).all() for a, b in zip(first.values(), second.values(), strict=True))


def test_refused_without_the_option(tmp_path: Path) -> None:
    with pytest.raises(TranspileErrors, match="draws random numbers; --rng") as caught:
        transpile(Noisy(), inputs(), out=tmp_path)
    assert len(caught.value.problems) > 1
    assert all(problem.locations for problem in caught.value.problems)


def test_a_model_without_random_numbers_has_no_seed(tmp_path: Path) -> None:
    package = transpile(nn.Linear(3, 4), (torch.ones(2, 3),), name="plain", out=tmp_path, rng=True)
    model = package.load()
    with pytest.raises(ValueError, match="draws no random numbers"):
        model.seed(1)
    with pytest.raises(ValueError, match="draws no random numbers"):
        package.load(seed=1)
    assert not (package.path / "tests/test_random.py").exists()
