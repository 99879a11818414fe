"""Modules of the runtime of emitted packages, without a package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from typing import Any

from transpiler.resources import tree

NAME = "_emitted_runtime"


@cache
def runtime(module: str) -> Any:
    """A module of the runtime, such as "vulkan.device"."""
    if NAME not in sys.modules:
        folder = tree("templates") / "package" / "src" / "__name__" / "runtime"
        spec = importlib.util.spec_from_file_location(
            NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    return importlib.import_module(f"{NAME}.{module}")
