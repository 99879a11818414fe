"""Import timm without torchvision, whose wheel does not import beside a CPU build of PyTorch.

timm imports torchvision for two things that its models do not need: a batch norm class to compare types with, and
image transforms.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_NAMES = (
    "torchvision",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.datasets",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)


class _Stub(ModuleType):
    """A module in which every name is a class of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        filters = {item: item for item in ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")}
        return type(name, (), filters)


@contextlib.contextmanager
def _stubs() -> Iterator[None]:
    for name in _NAMES:
        sys.modules[name] = _Stub(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    try:
        yield
    finally:
        for name in _NAMES:
            del sys.modules[name]


def import_timm() -> Any:
    """The timm package. Raises ImportError if it is not installed."""
    with _stubs():
        import timm
    return timm
