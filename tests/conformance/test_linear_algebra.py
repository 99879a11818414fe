"""Linear algebra as a model: what cannot be computed is an error at run time, as in PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from transpiler import transpile


class Inverse(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(x)


class Cholesky(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.cholesky(x)


@pytest.mark.parametrize("module", [Inverse(), Cholesky()], ids=["inverse", "cholesky"])
def test_matrix_that_has_none_raises(module: torch.nn.Module, tmp_path: Path) -> None:
    x = torch.eye(3).expand(2, 3, 3).clone()
    x[0] = torch.tensor([[4.0, 1, 0], [1, 3, 0.5], [0, 0.5, 2]])
    package = transpile(module, args=(x,), target="cpu", name="matrix", out=tmp_path, quiet=True, test=False)
    model = package.load()
    np.testing.assert_allclose(model(x.numpy()), module(x).numpy(), rtol=1e-5, atol=1e-6)
    x[1] = -1
    with pytest.raises(RuntimeError, match="singular or not positive definite"):
        model(x.numpy())
    with pytest.raises(RuntimeError):
        module(x)
