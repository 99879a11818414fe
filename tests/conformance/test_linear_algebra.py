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
    with pytest.raises(RuntimeError, match="singular, not positive definite or not finite"):
        model(x.numpy())
    with pytest.raises(RuntimeError):
        module(x)


class Decompositions(torch.nn.Module):
    """Results that do not depend on the signs of the vectors."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        q, r = torch.linalg.qr(x)
        values, vectors = torch.linalg.eigh(x.mT @ x)
        return (u * s[..., None, :]) @ v, s, q @ r, q, values, vectors * values[..., None, :] @ vectors.mT


def test_decompositions(tmp_path: Path) -> None:
    x = torch.randn(3, 9, 6, generator=torch.Generator().manual_seed(0))
    package = transpile(Decompositions(), args=(x,), target="cpu", name="decompositions", out=tmp_path, quiet=True)
    report = package.test()
    assert report.failed == 0, report.output
    y = torch.randn(3, 9, 6, generator=torch.Generator().manual_seed(1))
    model = package.load()
    y[:, :, 5] = y[:, :, 0]  # rank 5
    ours, theirs = model(y.numpy()), Decompositions()(y.double())
    for mine, exact in zip(ours, theirs, strict=True):
        if exact.shape[-2:] != (9, 6) or exact is theirs[0] or exact is theirs[2]:
            np.testing.assert_allclose(mine, exact.numpy(), rtol=1e-5, atol=3e-5)
    y[1, 2, 3] = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        model(y.numpy())
