"""One thread per process for PyTorch: the suite runs on two processes, and OpenMP threads that wait for a core spin.
No test reads or writes the user's tuning cache. Packages have one instruction set, unless a test names others."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSPILE_BUILD_ISA", "native")


@pytest.fixture(scope="session", autouse=True)
def own_tuning_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSPILE_CACHE_DIR", str(tmp_path_factory.mktemp("tuning")))
        yield
