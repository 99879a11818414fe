"""Operators whose loops their users write. See docs/custom_operators.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transpiler.ir import TensorType
from transpiler.ops.base import Opaque

if TYPE_CHECKING:
    from transpiler.target import Target


class CustomKernel(Opaque):
    """Base of an op that brings a kernel of its own, written in TIR.

    Beside `kernel` it has what every op has: `infer`, the type rule, and `reference`, its meaning in numpy.
    """

    def kernel(self, inputs: Sequence[TensorType], outputs: Sequence[TensorType], target: Target) -> Any:
        """A `tvm.tirx.PrimFunc` whose parameters are one buffer per input, then one per output.

        Each buffer is contiguous and has the shape and dtype of its type; bool is int8. Every element of the outputs
        has to be written; memory that the function allocates is its own, and a parallel loop runs on the model's
        threads. Half floats arrive as float32. `target.isa` says for which instruction set it is compiled.

        The types are static; sizes that vary are refused before.
        """
        raise NotImplementedError(self.name)


class KernelError(Exception):
    """The kernel of a `CustomKernel` cannot be used; the text names the op."""
