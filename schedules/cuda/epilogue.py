"""Writing runs of an anchor's result through the group's epilogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transpiler.group import Group
from transpiler.ops.compare import Cast
from transpiler.ops.dtypes import numpy_dtype
from transpiler.ops.halves import Widen

from ..fuse import Inline
from ..gpu.workgroup import private
from ..scalar import Tir
from ..sizes import extents
from ..strided import moved_result, result_steps
from ..tir import Buffer, KernelBuilder, flat_offset
from . import ptx

Expr = Any


class RunEpilogue:
    """Stores elements of the anchor's result, given in float32, after applying the nodes behind it.

    A result in half floats is rounded once: where it is widened again at once, what comes behind takes the float32.
    """

    def __init__(self, group: Group, builder: KernelBuilder) -> None:
        assert group.anchor_node is not None
        self.group, self.builder = group, builder
        self.result = group.anchor_node.output
        self.output = group.outputs[0]
        self.widened = [
            node.output.name
            for node in group.epilogue
            if isinstance(node.op, Cast | Widen)
            and node.output.dtype == "float32"
            and node.inputs[0].name == self.result.name
        ]

    @property
    def bytes(self) -> int:
        """Of an element of the output."""
        return int(numpy_dtype(self.output.dtype).itemsize)

    def store_run(self, index: Callable[[Expr], Sequence[Expr]], value: Callable[[Expr], Expr], size: int) -> None:
        """Elements 0 .. size - 1, which lie side by side, at once; their place is a multiple of `size`."""
        target = self.builder.outputs[0]
        if size == 1:
            target.store(self._place(index(0)), self._final(index(0), value(0)))
            return
        run = private(size, self.output.dtype)
        with ptx.unrolled(size) as e:
            run.store(e, self._final(index(e), value(e)))
        ptx.move(target, self._place(index(0)), run, 0, size * self.bytes)

    def _place(self, index: Sequence[Expr]) -> Expr:
        if moved_result(self.group) is None:
            return flat_offset(index, self.output.shape)
        places = zip(index, extents(result_steps(self.group)), strict=True)
        return sum((position * step for position, step in places), 0)

    def _final(self, index: Sequence[Expr], value: Expr) -> Expr:
        s = Tir(status=self.builder.status)
        value = s.bind(value)
        if self.output.name == self.result.name:
            return s.cast(value, self.result.dtype)
        anchored = {name: lambda _index: value for name in self.widened}
        anchored[self.result.name] = lambda _index: s.cast(value, self.result.dtype)
        return Inline(self.group, self.builder, s, anchored).value(self.output, list(index))


@dataclass(frozen=True)
class Sums:
    """Where float32 sums go as they are, in the place of an epilogue: a buffer of that shape."""

    buffer: Buffer
    shape: Sequence[int]

    @property
    def bytes(self) -> int:
        return 4

    def store_run(self, index: Callable[[Expr], Sequence[Expr]], value: Callable[[Expr], Expr], size: int) -> None:
        """Elements 0 .. size - 1, which lie side by side, at once; their place is a multiple of `size`."""
        place = flat_offset(index(0), self.shape)
        if size == 1:
            self.buffer.store(place, value(0))
            return
        run = private(size)
        with ptx.unrolled(size) as e:
            run.store(e, value(e))
        ptx.move(self.buffer, place, run, 0, size * self.bytes)
