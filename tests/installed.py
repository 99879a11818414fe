"""What tests need beside Python packages: who has it not skips those tests, but may not miss it unnoticed in CI."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

# Set where everything is installed, as `.ci/run` does.
EVERYTHING = "TRANSPILER_TESTS_EVERYTHING_INSTALLED"


def missing(what: str) -> NoReturn:
    """Skip the test that needs what is not installed here; fail it where everything should be."""
    if os.environ.get(EVERYTHING):
        pytest.fail(f"{what}, though {EVERYTHING} is set")
    pytest.skip(what)
