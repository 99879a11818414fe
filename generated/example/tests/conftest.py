"""Options, the import blocker and the models under test. Needs numpy and pytest only."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _blocker import block

if TYPE_CHECKING:
    from example import Model

SOURCE = Path(__file__).parent.parent / "src"

block()
if SOURCE.is_dir():  # else the installed package is tested
    sys.path.insert(0, str(SOURCE))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--weights", metavar="FILE", help="test with these weights in place of the package's own"
    )
    parser.addoption(
        "--live",
        metavar="MODEL.py[:NAME]",
        default=os.environ.get("LIVE_MODEL"),
        help="compare with the PyTorch model that this file builds (also: LIVE_MODEL in the environment)",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Live PyTorch is compared with only where a source of the model is given."""
    return True if collection_path.name == "test_live_torch.py" and not config.getoption("--live") else None


def _isas() -> list[str]:
    from example import Model

    forced = os.environ.get("TRANSPILE_ISA")
    return [forced] if forced else Model.runnable_isas()


@pytest.fixture(scope="session")
def weights(request: pytest.FixtureRequest) -> str | None:
    value = request.config.getoption("--weights")
    return None if value is None else str(value)


@pytest.fixture(scope="session")
def model(weights: str | None) -> Model:
    """The model as its users call it."""
    from example import Model

    return Model(weights=weights)


@pytest.fixture(scope="session", params=_isas())
def each_isa(request: pytest.FixtureRequest, weights: str | None) -> Model:
    """The model on every instruction set that the package carries and this machine runs."""
    from example import Model

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSPILE_ISA", request.param)
        return Model(weights=weights)


@pytest.fixture(scope="session")
def kernel_by_kernel(weights: str | None) -> Model:
    """The same model run by model.py, one kernel call after the other."""
    from example import Model

    return Model(weights=weights, native=False)
