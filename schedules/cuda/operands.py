"""Operands of products: which dtype they come in, and how they lie in memory.

Copies to shared memory are of 16 aligned bytes. Where the lines of a matrix do not begin at multiples of that, or where
its elements have to be widened, a launch before the product writes it anew, with its lines filled up with zeros: a pass
over memory, which the product would pay for many times over with narrow copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim, dim_max
from transpiler.group import Group
from transpiler.ir import Node, Value
from transpiler.ops.compare import Cast
from transpiler.ops.dtypes import HALF
from transpiler.ops.halves import Widen

from ..fuse import Inline
from ..gpu.threads import each_thread
from ..gpu.workgroup import private
from ..scalar import Tir
from ..sizes import Extent, ceil_div, count, extent
from ..tir import Buffer, KernelBuilder, unflatten
from ..vectors import held
from . import ptx
from .product import DEPTHS, Chunks, Operand, Tensor

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
    """What the first two inputs of the anchor are multiplied as; None for other dtypes."""
    dtypes = {widened(group, value).dtype for value in node.inputs[:2]}
    if not dtypes <= {"float32", *HALF}:
        return None
    if len(dtypes) == 1 and dtypes <= set(HALF):
        return dtypes.pop()
    return "tf32" if getattr(node.op, "precision", "") == "tf32" else "float32"


def stored_dtype(kind: str) -> str:
    """Of operands in memory."""
    return kind if kind in HALF else "float32"


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
    dtype: str
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
        if self.dtype != stored_dtype(self.kind):
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

        return Operand(buffer, chunks, across, self._tensor(buffer, inner, across=across))

    def _tensor(self, buffer: Buffer, inner: Dim, *, across: bool) -> Tensor:
        size = ptx.CHUNK // self.chunk
        # A summed dim that varies may be empty, which no tensor is; nobody copies any of it then.
        inner = dim_max(inner, 1 if across else self.chunk)
        sizes = (self.lines, inner) if across else (inner, self.lines)

        def places(batch: Expr, line: Expr) -> Callable[[Expr], Sequence[Expr]]:
            which = held(self.which(batch))
            return lambda k: (line, k, which) if across else (k, line, which)

        return Tensor(buffer, (*sizes, self.number), (sizes[0] * size, sizes[0] * sizes[1] * size), places)

    def _pack(self, source: Buffer, target: Buffer) -> None:
        number, lines, inner = extent(self.number), extent(self.lines), extent(self.inner)
        per_line = ceil_div(inner, self.chunk)
        # Neighbouring threads read neighbours.
        turns = (number, per_line, lines) if self.across else (number, lines, per_line)

        def chunk(position: Expr) -> tuple[Expr, Callable[[Expr], Expr]]:
            matrix, *rest = (held(i) for i in unflatten(position, turns))
            part, line = rest if self.across else rest[::-1]
            start = matrix * (lines * inner)

            def element(e: Expr) -> Expr:
                k = held(part * self.chunk + e)
                inside = held(T.min(k, inner - 1))
                place = start + (inside * lines + line if self.across else line * inner + inside)
                return or_zero(k < inner, source[held(place)], target.dtype)

            return ((matrix * lines + line) * per_line + part) * self.chunk, element

        write_chunks(count(turns), target, self.chunk, chunk)


def write_chunks(
    number: Extent, target: Buffer, size: int, chunk: Callable[[Expr], tuple[Expr, Callable[[Expr], Expr]]]
) -> None:
    """A launch with a thread for each chunk: `chunk(position)` gives the place and the elements."""
    with each_thread(number, THREADS) as position:
        place, element = chunk(position)
        elements = private(size, target.dtype)
        with ptx.unrolled(size) as e:
            elements.store(e, element(e))
        ptx.move(target, held(place), elements, 0, ptx.CHUNK)


def or_zero(condition: Expr, value: Expr, dtype: str) -> Expr:
    """`value` in `dtype` where the condition holds, 0 elsewhere."""
    s = Tir()
    return s.select(condition, s.cast(value, dtype), s.const(0, dtype))


def broadcast(own: Sequence[Dim], batch: Sequence[Dim]) -> Callable[[Expr], Expr]:
    """The number of a matrix, among those of an operand with the batch dims `own`, for a batch of the result."""

    def which(number: Expr) -> Expr:
        index = unflatten(number, tuple(batch))[len(batch) - len(own) :]
        place: Expr = 0
        for position, size in zip(index, own, strict=True):
            place = place * extent(size) + (0 if size == 1 else position)
        return place

    return which if count(own) != 1 else lambda _: 0
