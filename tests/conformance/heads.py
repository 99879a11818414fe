"""Attention whose queries, keys and values are views of one tensor, as models write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.conformance.kernels import array_type
from transpiler.dims import Dim
from transpiler.group import Group, make_group
from transpiler.ir import Array, Node, TensorType, Value
from transpiler.ops.attention import Attention
from transpiler.ops.base import Op, rng
from transpiler.ops.compare import Cast
from transpiler.ops.dtypes import HALF, numpy_dtype
from transpiler.ops.halves import Widen
from transpiler.ops.shape import BroadcastTo, Reshape, Slice, Transpose


@dataclass(frozen=True)
class Heads:
    """`form`: "chunks" of [batch, length, 3 * heads * elements], "stacked" in [batch, length, 3, heads, elements], or
    a "cache" of [2, 1, heads, more keys, elements] whose first keys count, for queries of their own; half floats are
    widened on the way, and narrowed and widened again."""

    form: str
    dtype: str
    batch: int
    length: int
    keys: int
    heads: int
    elements: int
    op: Attention = field(default_factory=Attention)

    def group(self, label: str) -> tuple[Group, list[Array]]:
        made = _Nodes()
        b, n, s, h, e = self.batch, self.length, self.keys, self.heads, self.elements
        shapes: Mapping[str, list[tuple[int, ...]]] = {
            "chunks": [(b, n, 3 * h * e)],
            "stacked": [(b, n, 3, h, e)],
            "cache": [(b, n, h * e), (2, 1, h, s + 3, e)],
        }
        g = rng(f"heads{label}")
        inputs = [g.standard_normal(shape, np.float32).astype(numpy_dtype(self.dtype)) for shape in shapes[self.form]]
        values = [Value(f"x{number}", array_type(array)) for number, array in enumerate(inputs)]
        wide = [made.emit(Widen(), x) if self.dtype in HALF else x for x in values]
        operands = getattr(self, f"_{self.form}")(made, wide)
        if self.dtype in HALF:
            operands = [made.emit(Widen(), made.emit(Cast(self.dtype), x)) for x in operands]
        result = made.emit(Transpose((0, 2, 1, 3)), made.emit(self.op, *operands))
        result = made.emit(Cast(self.dtype), result) if self.dtype in HALF else result
        return make_group(tuple(made.nodes), (result,)), inputs

    def _chunks(self, made: _Nodes, wide: Sequence[Value]) -> list[Value]:
        size = self.heads * self.elements
        parts = []
        for which in range(3):
            cut = Slice((0, 0, which * size), (self.batch, self.length, (which + 1) * size), (1, 1, 1))
            split = made.emit(Reshape((self.batch, self.length, self.heads, self.elements)), made.emit(cut, wide[0]))
            parts.append(made.emit(Transpose((0, 2, 1, 3)), split))
        return parts

    def _stacked(self, made: _Nodes, wide: Sequence[Value]) -> list[Value]:
        shape = (self.batch, self.heads, self.length, self.elements)
        stacked = made.emit(Transpose((2, 0, 3, 1, 4)), wide[0])
        cuts = [made.emit(Slice((i, 0, 0, 0, 0), (i + 1, *shape), (1,) * 5), stacked) for i in range(3)]
        return [made.emit(Reshape(shape), cut) for cut in cuts]

    def _cache(self, made: _Nodes, wide: Sequence[Value]) -> list[Value]:
        b, n, s, h, e = self.batch, self.length, self.keys, self.heads, self.elements
        parts = [made.emit(Transpose((0, 2, 1, 3)), made.emit(Reshape((b, n, h, e)), wide[0]))]
        for i in range(2):
            cut = made.emit(Slice((i, 0, 0, 0, 0), (i + 1, 1, h, s, e), (1,) * 5), wide[1])
            parts.append(made.emit(BroadcastTo((b, h, s, e)), made.emit(Reshape((1, h, s, e)), cut)))
        return parts


class _Nodes:
    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def emit(self, op: Op, *operands: Value) -> Value:
        (type_,) = op.infer_types([value.type for value in operands])
        self.nodes.append(Node(op, operands, (Value(f"y{len(self.nodes)}", type_),)))
        return self.nodes[-1].output


def exact(group: Group, inputs: Sequence[Array]) -> Array:
    """The group's result in float64: nothing is rounded on the way."""
    values = {value.name: array.astype(np.float64) for value, array in zip(group.inputs, inputs, strict=True)}
    for node in group.nodes:
        operands = [values[value.name] for value in node.inputs]
        kept = isinstance(node.op, Widen | Cast)
        values[node.output.name] = operands[0] if kept else np.asarray(node.op.reference(*operands))
    return values[group.outputs[0].name]


class Chain:
    """Ops one after the other, from a value `x` on; `value` is the last one's."""

    def __init__(self, dtype: str, shape: Sequence[Dim]) -> None:
        self.value = Value("x", TensorType(dtype, tuple(shape)))
        self._made = _Nodes()

    def emit(self, op: Op) -> None:
        self.value = self._made.emit(op, self.value)

    def maker(self, value: Value) -> Node | None:
        """What computes a value; None for `x`."""
        return next((node for node in self._made.nodes if node.output.name == value.name), None)
