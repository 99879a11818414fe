"""The runtime of packages, for the transpiler's own use of a GPU: the same code as in a package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from typing import Any

from transpiler.resources import tree

NAME = "transpiler.package_runtime"


@cache
def _package() -> None:
    folder = tree("templates") / "package" / "src" / "__name__" / "runtime"
    spec = importlib.util.spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


def import_runtime(name: str) -> Any:
    """The module `runtime.<name>` of packages. Raises ImportError for what is not there."""
    _package()
    return importlib.import_module(f"{NAME}.{name}")
