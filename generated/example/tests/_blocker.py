"""Proves that the package stands alone: what it must not need cannot be imported while the tests run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

BLOCKED = frozenset({"torch", "tvm", "tvm_ffi", "transpiler", "jinja2", "libcst"})


class Blocker:
    """An import hook that refuses `BLOCKED`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(
                f"{name} must not be needed by this package (blocked by tests/_blocker.py)", name=name
            )
        return None


_BLOCKER = Blocker()


def block() -> None:
    """Refuse imports of `BLOCKED` from now on."""
    if _BLOCKER not in sys.meta_path:
        sys.meta_path.insert(0, _BLOCKER)


@contextlib.contextmanager
def unblocked() -> Iterator[None]:
    """Allow them for a while: only the comparison with live PyTorch does that."""
    sys.meta_path.remove(_BLOCKER)
    try:
        yield
    finally:
        block()
