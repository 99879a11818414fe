"""What is made for each target: one module per name in `targets/`, whose `BACKEND` says how its kernels are compiled.

The runtime of a target is `templates/package/src/__name__/runtime/<target>/`, whose `library` opens its devices.
"""

from __future__ import annotations

import importlib

from transpiler.backends.base import Backend, Job, kernel_places

__all__ = ["Backend", "Job", "backend", "kernel_places"]


def backend(target: str) -> Backend:
    """The backend of a known target."""
    found = importlib.import_module(f"transpiler.backends.{target}").BACKEND
    assert isinstance(found, Backend)
    return found
