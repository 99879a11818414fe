"""MLP, transpiled from PyTorch: `Model()` runs it with numpy arrays."""

from __future__ import annotations

from .model import Model
from .runtime.errors import PackageError, TapError, WeightsError

__version__ = "0.1.0"
__all__ = ["Model", "PackageError", "TapError", "WeightsError", "__version__"]
