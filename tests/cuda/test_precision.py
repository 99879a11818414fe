"""Packages of lower precision over the stand-in for the driver: the words of the other targets, as exact as PyTorch's
autocast, and the error that was measured is in the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.precise import MODELS
from tests.models.test_precision import DTYPES, Half, build, check
from transpiler import transpile
from transpiler.api import Package

pytestmark = pytest.mark.usefixtures("driver")
CASES = [(name, precision) for name in sorted(MODELS) for precision in sorted(DTYPES)]


def assert_measured(package: Package, precision: str, eps: float) -> None:
    """The error in the manifest is as large as some roundings of the type, which those of float32 are not."""
    manifest: Any = json.loads((package.path / "src" / package.name / "manifest.json").read_text())
    assert manifest["precision"] == precision
    assert manifest["built"]["cuda"]["error"]
    for entry in manifest["built"]["cuda"]["error"]:
        assert eps / 256 < entry["rms_relative_error"] < 4 * eps
        assert 0 < entry["max_abs_error"] <= entry["tolerance"]


@pytest.mark.parametrize(
    ("name", "precision"),
    [pytest.param(*case, marks=[] if case == ("perceptron", "float16") else [pytest.mark.slow]) for case in CASES],
)
def test_half_floats(name: str, precision: Half, tmp_path: Path) -> None:
    package = build(name, precision, tmp_path, target="cuda", arch="sm_80", isa=())
    assert_measured(package, precision, float(torch.finfo(DTYPES[precision]).eps))
    check(name, precision, package)


def test_tf32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    package = transpile(
        nn.Linear(64, 48).eval(), (torch.randn(24, 64),), target="cuda", arch="sm_80", name="layer", out=tmp_path,
        precision="tf32",
    )  # fmt: skip
    assert_measured(package, "tf32", 2.0**-10)
    assert package.test().failed == 0
    with package.load() as model:  # the operands of products are rounded, not the weights
        assert {array.dtype for array in model._running().weights.values()} == {np.dtype(np.float32)}
