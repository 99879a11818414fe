"""The stand-in for NVIDIA's driver, in this process and in those that a test starts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.cuda import standin


@pytest.fixture(scope="session")
def standin_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Starts the stand-in; the file that faults of all processes are written to."""
    log = tmp_path_factory.mktemp("standin") / "faults"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in standin.environment().items():
            patch.setenv(name, value)
        patch.setenv("STANDIN_LOG", str(log))
        standin.loaded()
        yield log


@pytest.fixture
def driver(standin_log: Path) -> Iterator[ModuleType]:
    """The stand-in, which has nothing to complain of when the test ends."""
    standin.faults()
    standin_log.write_text("")
    yield standin
    gc.collect()
    assert standin.faults() == ""
    assert standin_log.read_text() == ""
