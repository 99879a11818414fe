"""One function of a package: its signature, and the arguments of a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from .arguments import TensorSpec
from .sizes import Shape, Sizes, Symbols

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Arguments:
    """The checked arrays of a call, and the sizes that vary, by name and for the library."""

    arrays: list[Array]
    sizes: Sizes
    symbols: bytes | None


class Function:
    """One function of a package: its place in the library, its signature, its methods in model.py."""

    def __init__(self, name: str, index: int, entry: Mapping[str, Any]) -> None:
        self.name = name
        self.index = index
        self.entry = entry
        self.inputs, self.outputs = (
            tuple(TensorSpec(item["name"], item["dtype"], item["shape"]) for item in entry[kind])
            for kind in ("inputs", "outputs")
        )
        self.symbols = Symbols(
            entry["symbols"], [(spec.name, spec.varying or Shape(spec.shape)) for spec in self.inputs]
        )
        self.plan = "forward" if name == "forward" else f"plan_{name}"
        self.bind = "_bind" if name == "forward" else f"_bind_{name}"
        self.gives_bfloat16 = any(spec.dtype == "bfloat16" for spec in self.outputs)
        # Nothing to be done but to check the inputs and to allocate the outputs.
        self.is_plain = not (self.symbols.all or entry["random"] or self.gives_bfloat16)

    def take(self, inputs: Iterable[Any]) -> Arguments:
        """The flat inputs, checked. Raises TypeError or ValueError."""
        arrays = [spec.take(value) for spec, value in zip(self.inputs, inputs, strict=True)]
        if not self.symbols.all:
            return Arguments(arrays, {}, None)
        sizes = self.symbols.bind(arrays)
        return Arguments(arrays, sizes, self.symbols.packed(sizes))
