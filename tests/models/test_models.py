"""Models end to end: transpiled, their generated tests pass, and fresh inputs agree with float64 PyTorch."""

from pathlib import Path
from typing import Any

import pytest

from tests.models import hf
from tests.models.layers import LAYERS
from tests.models.redraw import redraw
from tests.models.support import FILES, Built, assert_equal_to_pytorch, load
from transpiler import transpile


def transpile_and_check(built: Built, name: str, out: Path, **options: Any) -> Any:
    """The package, after its own tests and the independent check."""
    module, args, kwargs = built
    package = transpile(module, args=args, kwargs=kwargs, target="cpu", name=name, out=out, quiet=True, **options)
    report = package.test()
    assert report.failed == 0, report.output
    assert report.passed > 0
    assert_equal_to_pytorch(package.load(), built, seed=2)
    return package


@pytest.mark.parametrize("name", FILES)
def test_file(name: str, tmp_path: Path) -> None:
    transpile_and_check(load(name), name, tmp_path)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layer(name: str, tmp_path: Path) -> None:
    module, inputs = LAYERS[name]()
    transpile_and_check((redraw(module, 1), inputs, {}), f"layer_{name}", tmp_path)


@pytest.mark.parametrize("name", sorted(hf.FAST))
def test_transformers(name: str, tmp_path: Path) -> None:
    module, args, kwargs = hf.FAST[name]()
    transpile_and_check((redraw(module, 1), args, kwargs), name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(hf.SLOW))
def test_transformers_large(name: str, tmp_path: Path) -> None:
    module, args, kwargs = hf.SLOW[name]()
    transpile_and_check((redraw(module, 1), args, kwargs), name, tmp_path)
