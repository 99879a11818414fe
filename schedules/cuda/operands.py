"""Operands of tensor-core products: which dtype they come in, and how they lie in memory.

Copies to shared memory are of 16 aligned bytes. Where the lines of a matrix do not begin at multiples of that, or where
a matrix would have to be transposed in pieces of 32 bits, a launch before the product writes it anew, with its lines
filled up with zeros: a pass over memory, which the product would pay for many times over with narrow copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group
from transpiler.ir import Node, Value
from transpiler.ops.compare import Cast
from transpiler.ops.dtypes import HALF
from transpiler.ops.halves import Widen

from ..fuse import Inline
from ..gpu.threads import each_thread
from ..scalar import Tir
from ..sizes import ceil_div, count, extent
from ..tir import Buffer, KernelBuilder, unflatten
from ..vectors import held
from .mma import DEPTHS, Chunks, Operand

Expr = Any
THREADS = 256  # of a launch that only copies


def widened(group: Group, value: Value) -> Value:
    """Where a value comes from: what is widened to float32 in the group's prologue, or the value itself."""
    for node in group.prologue:
        if node.output.name == value.name and _widens(node):
            return node.inputs[0]
    return value


def only_widens(group: Group) -> bool:
    """Whether all nodes before the anchor widen half floats that it takes."""
    return all(_widens(node) for node in group.prologue)


def _widens(node: Node) -> bool:
    return isinstance(node.op, Cast | Widen) and node.output.dtype == "float32" and node.inputs[0].dtype in HALF


def product_kind(group: Group, node: Node) -> str | None:
    """What tensor cores multiply the first two inputs of the anchor as; None if they have no such form."""
    (dtype, *others) = {widened(group, value).dtype for value in node.inputs[:2]}
    if others:
        return None
    if dtype in HALF:
        return dtype
    return "tf32" if dtype == "float32" and getattr(node.op, "precision", "") == "tf32" else None


def bias_of(group: Group, builder: KernelBuilder, node: Node) -> Callable[[Expr], Expr] | None:
    """The third input of the anchor in float32, by channel."""
    if len(node.inputs) < 3:
        return None

    def at(channel: Expr) -> Expr:
        s = Tir(statements=False)
        return s.cast(Inline(group, builder, s).value(node.inputs[2], [channel]), "float32")

    return at


@dataclass(frozen=True)
class Matrices:
    """`number` matrices of `lines` x `inner`, one behind the other, or (`across`) of `inner` x `lines`. `which` is the
    number of the one that a batch of the product takes."""

    kind: str
    number: Dim
    lines: Dim
    inner: Dim
    which: Callable[[Expr], Expr]
    across: bool = False

    @property
    def chunk(self) -> int:
        return DEPTHS[self.kind]

    @property
    def fits(self) -> bool:
        """Whether chunks of 16 bytes can be copied as they lie."""
        if self.across and self.kind == "tf32":
            return False
        along = self.lines if self.across else self.inner
        return isinstance(along, int) and along % self.chunk == 0

    @property
    def padded(self) -> Dim:
        """`inner`, filled up to whole chunks."""
        size: Dim = ceil_div(self.inner, self.chunk) * self.chunk
        return size

    @property
    def workspace(self) -> Dim:
        """Elements that `operand` takes of the workspace, whose parts begin at multiples of 16."""
        if self.fits:
            return 0
        size: Dim = ceil_div(self.number * self.lines * self.padded, 16) * 16
        return size

    def operand(self, buffer: Buffer, builder: KernelBuilder) -> Operand:
        """The operand; emits the launch that makes it, if there has to be one."""
        if self.fits:
            return self._strided(buffer, self.inner, across=self.across)
        packed = builder.scratch(self.number * self.lines * self.padded)
        self._pack(buffer, packed)
        return self._strided(packed, self.padded, across=False)

    def _strided(self, buffer: Buffer, inner: Dim, *, across: bool) -> Operand:
        lines, pitch = extent(self.lines), extent(inner)

        def chunks(batch: Expr, line: Expr) -> Chunks:
            start = held(self.which(batch) * (lines * pitch) + (line if across else line * pitch))
            return lambda k: (start + (k * lines if across else k), None)

        return Operand(buffer, chunks, across)

    def _pack(self, source: Buffer, target: Buffer) -> None:
        lines, inner, padded = extent(self.lines), extent(self.inner), extent(self.padded)
        with each_thread(extent(self.number) * lines * padded, THREADS) as position:
            matrix, line, k = (held(i) for i in unflatten(position, (extent(self.number), lines, padded)))
            start = matrix * (lines * inner)
            inside = held(T.min(k, inner - 1))
            place = start + (inside * lines + line if self.across else line * inner + inside)
            zero = tirx.const(0, "uint16" if source.dtype == "bfloat16" else source.dtype)
            target.store(position, tirx.Select(k < inner, source[held(place)], zero))


def broadcast(own: Sequence[Dim], batch: Sequence[Dim]) -> Callable[[Expr], Expr]:
    """The number of a matrix, among those of an operand with the batch dims `own`, for a batch of the result."""

    def which(number: Expr) -> Expr:
        index = unflatten(number, tuple(batch))[len(batch) - len(own) :]
        place: Expr = 0
        for position, size in zip(index, own, strict=True):
            place = place * extent(size) + (0 if size == 1 else position)
        return place

    return which if count(own) != 1 else lambda _: 0
