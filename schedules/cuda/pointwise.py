"""Element-wise groups of large tensors: a thread takes neighbours that are 16 bytes of the smallest dtype.

All inputs that lie as the output does come in loads of 16 bytes (up to two of a wider dtype, 4 or 8 bytes of a narrower
one), the results go in one store; what is broadcast along them is read once. Half floats are computed in float32 as
everywhere. Limited by memory.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ir import Value
from transpiler.ops.base import Elementwise
from transpiler.ops.dtypes import numpy_dtype
from transpiler.target import Target

from ..fuse import Inline, lowered, merge_dims, needs_status, probe
from ..gpu.threads import each_thread
from ..gpu.workgroup import private
from ..scalar import Tir
from ..sizes import ceil_div, count, extent, is_empty, is_fixed
from ..tir import Buffer, KernelBuilder, flat_offset, unflatten
from ..vectors import held
from . import ptx

Expr = Any
LARGE = 1 << 16  # elements: with fewer, threads are what a device is short of
THREADS = 128


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if group.anchor_node is not None or len(group.outputs) != 1:
        return None
    if not all(isinstance(node.op, Elementwise) for node in group.nodes):
        return None
    shape = group.outputs[0].type.shape
    size = count(shape)
    if is_empty(shape) or (isinstance(size, int) and size < LARGE):
        return None
    vectors = _Vectors(group)
    if not vectors.fit:
        return None
    builder = KernelBuilder(
        name,
        [value.type for value in group.inputs],
        [group.outputs[0].type],
        checks_index=needs_status(group),
        noalias=False,  # what a thread reads of a buffer it reads before it writes there
    )
    with builder:
        cost = probe(group, builder, group.outputs[0]).cost
        vectors.emit(builder)
    return lowered(group, builder, flops=size * cost)


class _Vectors:
    """`lanes` neighbours of the output, and which inputs have as many."""

    def __init__(self, group: Group) -> None:
        self.group, self.output = group, group.outputs[0]
        self.shape = self.output.type.shape
        runs = merge_dims([value.type.shape for value in group.inputs], self.shape)
        self.run = runs[-1] if runs else []
        self.along = [value for value in group.inputs if self._is_along(value)]
        sizes = [_bytes(value) for value in (self.output, *self.along)]
        self.lanes = min(16 // min(sizes), 32 // max(sizes))
        # Of several runs each is of whole vectors: then no vector has elements of two.
        self.whole = count([self.shape[axis] for axis in self.run])
        self.single = len(runs) == 1
        self.fit = self.single or (isinstance(self.whole, int) and self.whole % self.lanes == 0)

    def _is_along(self, value: Value) -> bool:
        """Whether neighbours of the output meet neighbours of the input, not always the same element."""
        padded: tuple[Dim, ...] = (1,) * (len(self.shape) - len(value.type.shape)) + value.type.shape
        return any(padded[axis] != 1 for axis in self.run)

    def emit(self, builder: KernelBuilder) -> None:
        total = extent(count(self.shape))
        with each_thread(ceil_div(total, self.lanes), THREADS) as number:
            first = held(number * self.lanes)
            if not self.single or (is_fixed(total) and total % self.lanes == 0):
                self.vector(builder, first)
                return
            with T.If(first <= total - self.lanes):
                with T.Then():
                    self.vector(builder, first)
                with T.Else(), T.serial(0, total - first) as rest:
                    position = held(first + rest)
                    inline = Inline(self.group, builder, Tir(status=builder.status))
                    value = inline.value(self.output, unflatten(position, self.shape))
                    builder.outputs[0].store(position, value)

    def vector(self, builder: KernelBuilder, first: Expr) -> None:
        """The elements from `first` on."""
        index = [held(i) for i in unflatten(first, self.shape)]
        loaded: dict[str, Buffer] = {}
        along = {value.name for value in self.along}
        for value, buffer in zip(self.group.inputs, builder.inputs, strict=True):
            shape = value.type.shape
            own = index[len(index) - len(shape) :] if shape else []
            place = held(flat_offset([0 if size == 1 else i for i, size in zip(own, shape, strict=True)], shape))
            if value.name in along:
                loaded[value.name] = private(self.lanes, value.dtype)
                self.move(loaded[value.name], 0, buffer, place, _bytes(value))
            else:
                loaded[value.name] = private(1, value.dtype)
                loaded[value.name].store(0, buffer[place])
        results = private(self.lanes, self.output.dtype)
        with ptx.unrolled(self.lanes) as lane:

            def element(name: str) -> Any:
                return lambda _index: loaded[name][lane if name in along else 0]

            anchored = {value.name: element(value.name) for value in self.group.inputs}
            inline = Inline(self.group, builder, Tir(status=builder.status), anchored)
            results.store(lane, inline.value(self.output, index))
        self.move(builder.outputs[0], first, results, 0, _bytes(self.output))

    def move(self, to: Buffer, to_offset: Expr, source: Buffer, offset: Expr, size: int) -> None:
        """As many elements of `size` bytes as a thread has."""
        piece = min(ptx.CHUNK, self.lanes * size)
        for start in range(0, self.lanes, piece // size):
            ptx.move(to, to_offset + start, source, offset + start, piece)


def _bytes(value: Value) -> int:
    return int(numpy_dtype(value.dtype).itemsize)
