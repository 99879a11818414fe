"""The generated tests' own code, run in this process: pytest's start takes longer than most of its checks."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_HELPERS = ("_draw", "_checks", "_cases")


def _import(folder: Path, *names: str) -> dict[str, ModuleType]:
    """Modules of the emitted `tests/`, under names that are free again afterwards."""
    known = (*_HELPERS, *names)
    assert not any(name in sys.modules for name in known)
    sys.path.insert(0, str(folder))
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return {name: importlib.import_module(name) for name in known}
    finally:
        sys.dont_write_bytecode = written
        sys.path.remove(str(folder))
        for name in known:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()


class GeneratedTests:
    """The tests of an emitted package, as functions of a loaded `Model`."""

    def __init__(self, package: Path) -> None:
        self._modules = _import(package / "tests", "test_equivalence", "test_taps")
        self.cases = self._modules["_cases"].CASES

    def failures(self, model: Any, *, first: bool = False) -> list[str]:
        """The cases in which `test_outputs_equal_pytorch` fails; at most the first of them."""
        return list(self._failures(model, first))

    def _failures(self, model: Any, first: bool) -> Iterator[str]:
        for case in self.cases.all:
            try:
                self._modules["test_equivalence"].test_outputs_equal_pytorch(model, case)
            except AssertionError:
                yield case.name
                if first:
                    return

    def check_taps(self, model: Any) -> None:
        """Fails unless every module path was recorded, and has PyTorch's value."""
        taps = self._modules["test_taps"]
        taps.test_every_tap_is_recorded(model)
        for function, path in getattr(taps, "TAPS", ()):  # a package without taps has no tests of them
            taps.test_tap_equals_pytorch(model, function, path)
