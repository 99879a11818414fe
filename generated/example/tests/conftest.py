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


@pytest.fixture(scope="session")
def weights(request: pytest.FixtureRequest) -> str | None:
    value = request.config.getoption("--weights")
    return None if value is None else str(value)


@pytest.fixture(scope="session")
def model(weights: str | None) -> Model:
    """The model as its users call it."""
    from example import Model

    return Model(weights=weights)


@pytest.fixture(scope="session")
def kernel_by_kernel(weights: str | None) -> Model:
    """The same model run by model.py, one kernel call after the other."""
    from example import Model

    return Model(weights=weights, native=False)
