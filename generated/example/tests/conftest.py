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


# What the package is built for; tests run on each.
TARGETS = ["cpu"]
MISSING: dict[str, str] = {}


def _isas() -> list[tuple[str, str]]:
    """(target, instruction set) of all that run here."""
    from example import Model

    forced = os.environ.get("TRANSPILE_ISA")
    pairs = []
    for target in TARGETS:
        own = (
            []
            if target in MISSING
            else [forced]
            if forced and target == "cpu"
            else Model.runnable_isas(target)
        )
        pairs += [(target, isa) for isa in own or ["none"]]
    return pairs


def _only(target: str) -> str:
    if target in MISSING:
        pytest.skip(f"missing hardware: {MISSING[target]}")
    return target


@pytest.fixture(scope="session")
def weights(request: pytest.FixtureRequest) -> str | None:
    value = request.config.getoption("--weights")
    return None if value is None else str(value)


@pytest.fixture(scope="session", params=TARGETS if len(TARGETS) > 1 else None)
def device(request: pytest.FixtureRequest) -> str:
    """Every target of the package, one after the other; one that this machine lacks is skipped."""
    return _only(getattr(request, "param", TARGETS[0]))


@pytest.fixture(scope="session")
def model(weights: str | None, device: str) -> Model:
    """The model as its users call it."""
    from example import Model

    return Model(weights=weights, device=device)


@pytest.fixture(
    scope="session", params=_isas(), ids=lambda pair: pair[1] if len(TARGETS) == 1 else "-".join(pair)
)
def each_isa(request: pytest.FixtureRequest, weights: str | None) -> Model:
    """The model on every instruction set, or variant, that the package carries and this machine runs."""
    from example import Model

    target, isa = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSPILE_ISA", isa)
        return Model(weights=weights, device=_only(target))


@pytest.fixture(scope="session")
def kernel_by_kernel(weights: str | None, device: str) -> Model:
    """The same model run by model.py, one kernel call after the other."""
    from example import Model

    return Model(weights=weights, device=device, native=False)
