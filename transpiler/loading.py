"""Importing an emitted package from its folder, without installing it."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_counter = itertools.count()


def load_package(folder: Path, name: str) -> Any:
    """The package's module, imported under a private name, so that rebuilt packages do not meet each other."""
    root = folder / "src" / name
    private = f"_transpiled_{next(_counter)}_{name}"
    spec = importlib.util.spec_from_file_location(private, root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module
    written = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(private, None)
        raise
    finally:
        sys.dont_write_bytecode = written
    return module


@contextmanager
def forced_isa(isa: str) -> Iterator[None]:
    """Packages that are loaded meanwhile use this instruction set."""
    before = os.environ.get("TRANSPILE_ISA")
    os.environ["TRANSPILE_ISA"] = isa
    try:
        yield
    finally:
        del os.environ["TRANSPILE_ISA"]
        if before is not None:
            os.environ["TRANSPILE_ISA"] = before
