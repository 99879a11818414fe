"""Transpile PyTorch models into standalone Python packages, proved equal to PyTorch by generated tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transpiler.api import Package, transpile

__version__ = "0.1.0"
__all__ = ["Package", "__version__", "transpile"]


def __getattr__(name: str) -> Any:
    # Lazy: `import transpiler` alone must not cost the import of torch.
    if name in ("transpile", "Package"):
        from transpiler import api

        return getattr(api, name)
    raise AttributeError(f"module 'transpiler' has no attribute {name!r}")
