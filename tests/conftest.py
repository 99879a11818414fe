"""One thread per process for PyTorch: the suite runs on two processes, and OpenMP threads that wait for a core spin.
No test reads or writes the user's tuning cache. Packages have one instruction set, unless a test names others.
Hypothesis draws the same examples in every run, and no load of the machine fails it."""

import os
from collections.abc import Iterator

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSPILE_BUILD_ISA", "native")
# `HYPOTHESIS_SEARCH=1` draws new ones, and many more of them.
if os.environ.get("HYPOTHESIS_SEARCH"):
    hypothesis.settings.register_profile("here", deadline=None, max_examples=3_000)
else:
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile(
        "here", deadline=None, max_examples=300, derandomize=True, suppress_health_check=slow
    )
hypothesis.settings.load_profile("here")


@pytest.fixture(scope="session", autouse=True)
def own_tuning_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSPILE_CACHE_DIR", str(tmp_path_factory.mktemp("tuning")))
        yield
