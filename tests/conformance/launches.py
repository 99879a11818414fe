"""Kernels that are lists of launches, called by name with numpy arrays: what `KernelLibrary` is for the CPU."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from tests.conformance.kernels import raise_status
from transpiler.dims import evaluate
from transpiler.gpu.launches import Launch, Scalar
from transpiler.group import Lowered
from transpiler.ir import Array
from transpiler.ops.dtypes import numpy_dtype

GUARD = 64  # bytes behind every buffer that must stay as they are
_FORMATS = {"int": {32: "i", 64: "q"}, "uint": {32: "I", 64: "Q"}, "float": {32: "f", 64: "d"}}


class Refused(Exception):
    """The target has no code for a kernel; the text is the reason."""


class LaunchLibrary(ABC):
    """Built kernels, callable by name with numpy arrays. `refused` has the reasons of those that cannot be built."""

    def __init__(self, kernels: Sequence[Lowered]) -> None:
        self.kernels = {item.kernel.name: item.kernel for item in kernels}
        self.launches: dict[str, tuple[Launch, ...]] = {}
        self.refused: dict[str, str] = {}

    @abstractmethod
    def launch(self, name: str, launch: Launch, memory: Sequence[Array], symbols: Mapping[str, int]) -> None:
        """One launch of the kernel `name` on its buffers, bytes each."""

    def run(
        self, name: str, *inputs: Array, sizes: Mapping[str, int] | None = None, threads: int = 2
    ) -> tuple[Array, ...]:
        """Outputs of one call; raises what the kernel reported. Memory that it writes starts as NaN bits."""
        if name in self.refused:
            raise Refused(self.refused[name])
        kernel, symbols = self.kernels[name], sizes or {}
        shapes = [tuple(evaluate(dim, symbols) for dim in type_.shape) for type_ in kernel.outputs]
        dtypes = [numpy_dtype(type_.dtype) for type_ in kernel.outputs]
        lengths = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
        read = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in inputs]
        written = [np.full(length, 0xFF, np.uint8) for length in lengths]
        workspace = evaluate(kernel.workspace, symbols)
        rest = [np.full(workspace, 0xFF, np.uint8)] if kernel.workspace != 0 else []
        reports = kernel.checks_index or any(launch.counts for launch in self.launches[name])
        status = [np.zeros(4, np.uint8)] if reports else []
        guard = np.full(GUARD, 0xA5, np.uint8)
        memory = [np.concatenate([part, guard]) for part in chain(read, written, rest, status)]
        for launch in self.launches[name]:
            self.launch(name, launch, memory, symbols)
        for number, array in enumerate(memory):
            assert (array[-GUARD:] == 0xA5).all(), f"{name} wrote past the end of buffer {number}"
        for old, new in zip(read, memory, strict=False):
            assert np.array_equal(old, new[:-GUARD]), f"{name} wrote to an input"
        if reports:
            raise_status(int(memory[-1][:4].view(np.int32)[0]), name)
        results = memory[len(read) : len(read) + len(written)]
        return tuple(
            array[:-GUARD].copy().view(dtype).reshape(shape)
            for array, dtype, shape in zip(results, dtypes, shapes, strict=True)
        )


def scalar_bytes(scalar: Scalar, symbols: Mapping[str, int]) -> bytes:
    """A scalar argument as the device reads it."""
    value = scalar.value if isinstance(scalar.value, float) else evaluate(scalar.value, symbols)
    return struct.pack("<" + _FORMATS[scalar.dtype.rstrip("0123456789")][scalar.bits], value)
