"""What a package runs kernel by kernel on one of its targets, and how weights are brought into its layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy.typing as npt

from .kernels import KernelLibrary

Array = npt.NDArray[Any]


class TargetPlan:
    """Base of generated classes, which add a method per function: `forward`, or `plan_<function>`.

    A package of one target has them in its `Model`, one of several in a `Plan` for each.
    """

    kernels: ClassVar[type[KernelLibrary]]

    @staticmethod
    def prepare(state: Mapping[str, Array], constants: Mapping[str, Array], out: Mapping[str, Array]) -> None:
        """Fill `out`, the tensors that the kernels read. Generated code sets it to a function of its own."""
        raise NotImplementedError
