"""TIR expressions -> values. One method per node; a node without one is refused.

An expression becomes a tuple of lanes. Lanes that are equal (a broadcast, an index shared by all) are computed once,
as the module numbers its values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import sym, tirx

from . import functions
from .arithmetic import Arithmetic, Value
from .control import choose
from .dtypes import DType, parse, unsupported
from .memory import QUAD, Memory, Storage

Lanes = tuple[Value, ...]


def dtype_of(node: Any) -> tuple[DType, int]:
    """The dtype and the lanes of an expression."""
    type_ = node.ty
    return parse(str(type_.dtype if hasattr(type_, "dtype") else type_))


def _is_quad(index: Any) -> bool:
    """Whether these are QUAD elements side by side from a multiple of QUAD on, as far as its form shows."""
    if not isinstance(index, tirx.Ramp) or int(index.lanes) != QUAD:
        return False
    if not (isinstance(index.stride, tirx.IntImm) and int(index.stride.value) == 1):
        return False
    known = sym.Analyzer().modular_set(index.base)
    return int(known.coeff) % QUAD == 0 and int(known.base) % QUAD == 0


class Expressions:
    """`visit` finds the method that is named after a node's class."""

    def __init__(self, s: Arithmetic, memory: Memory) -> None:
        self.s, self.memory = s, memory
        self.variables: dict[Any, Lanes] = {}
        self.storages: dict[Any, Storage] = {}

    def visit(self, node: Any) -> Lanes:
        kind = type(node).__name__
        method: Callable[[Any], Lanes] | None = getattr(self, f"_{kind}", None)
        if method is None:
            raise unsupported(f"the expression {kind}: {node}")
        return method(node)

    def scalar(self, node: Any) -> Value:
        (value,) = self.visit(node)
        return value

    def _map(self, function: Callable[..., Value], *nodes: Any) -> Lanes:
        """`function` lane by lane; scalars among vectors are spread."""
        lanes = [self.visit(node) for node in nodes]
        width = max(len(item) for item in lanes)
        spread = [item if len(item) == width else item * width for item in lanes]
        return tuple(function(*values) for values in zip(*spread, strict=True))

    # --- leaves
    def _Var(self, node: Any) -> Lanes:
        if node not in self.variables:
            raise unsupported(f"the variable {node.name}, which nothing defines")
        return self.variables[node]

    def _IntImm(self, node: Any) -> Lanes:
        return (self.s.const(int(node.value), dtype_of(node)[0]),)

    def _FloatImm(self, node: Any) -> Lanes:
        return (self.s.const(float(node.value), dtype_of(node)[0]),)

    # --- operators
    def _Add(self, node: Any) -> Lanes:
        return self._map(self.s.add, node.a, node.b)

    def _Sub(self, node: Any) -> Lanes:
        return self._map(self.s.sub, node.a, node.b)

    def _Mul(self, node: Any) -> Lanes:
        return self._map(self.s.mul, node.a, node.b)

    def _Div(self, node: Any) -> Lanes:
        return self._map(self.s.divide, node.a, node.b)

    def _Mod(self, node: Any) -> Lanes:
        return self._map(self.s.remainder, node.a, node.b)

    def _FloorDiv(self, node: Any) -> Lanes:
        return self._map(self.s.floor_divide, node.a, node.b)

    def _FloorMod(self, node: Any) -> Lanes:
        return self._map(self.s.floor_remainder, node.a, node.b)

    def _Min(self, node: Any) -> Lanes:
        return self._map(self.s.minimum, node.a, node.b)

    def _Max(self, node: Any) -> Lanes:
        return self._map(self.s.maximum, node.a, node.b)

    def _compare(self, node: Any) -> Lanes:
        name = type(node).__name__.lower()
        return self._map(lambda x, y: self.s.compare(name, x, y), node.a, node.b)

    _EQ = _NE = _LT = _LE = _GT = _GE = _compare

    def _And(self, node: Any) -> Lanes:
        """Both sides are evaluated, as by TVM's LLVM code generator."""
        return self._map(self.s.logical_and, node.a, node.b)

    def _Or(self, node: Any) -> Lanes:
        return self._map(self.s.logical_or, node.a, node.b)

    def _Not(self, node: Any) -> Lanes:
        return self._map(self.s.logical_not, node.a)

    def _bits(self, node: Any) -> Lanes:
        name = type(node).__name__.removeprefix("Bitwise").lower()
        return self._map(lambda x, y: self.s.bitwise(name, x, y), node.a, node.b)

    _BitwiseAnd = _BitwiseOr = _BitwiseXor = _bits

    def _BitwiseNot(self, node: Any) -> Lanes:
        return self._map(self.s.bitwise_not, node.a)

    def _LShift(self, node: Any) -> Lanes:
        return self._map(self.s.shift_left, node.a, node.b)

    def _RShift(self, node: Any) -> Lanes:
        return self._map(self.s.shift_right, node.a, node.b)

    def _Cast(self, node: Any) -> Lanes:
        dtype, _ = dtype_of(node)
        return self._map(lambda x: self.s.cast(x, dtype), node.value)

    def _Select(self, node: Any) -> Lanes:
        """Both sides are evaluated; TVM puts what must not be into `if_then_else`."""
        return self._map(self.s.select, node.condition, node.true_value, node.false_value)

    def _Let(self, node: Any) -> Lanes:
        self.variables[node.var] = self.visit(node.value)
        return self.visit(node.body)

    # --- vectors
    def _Broadcast(self, node: Any) -> Lanes:
        return (self.scalar(node.value),) * int(node.lanes)

    def _Ramp(self, node: Any) -> Lanes:
        base, stride = self.scalar(node.base), self.scalar(node.stride)
        return tuple(
            self.s.add(base, self.s.mul(stride, self.s.const(lane, stride.dtype))) if lane else base
            for lane in range(int(node.lanes))
        )

    def _Shuffle(self, node: Any) -> Lanes:
        lanes = [lane for vector in node.vectors for lane in self.visit(vector)]
        return tuple(lanes[int(index)] for index in node.indices)

    def _call_vectorlow(self, node: Any, vector: Any) -> Lanes:
        lanes = self.visit(vector)
        return lanes[: len(lanes) // 2]

    def _call_vectorhigh(self, node: Any, vector: Any) -> Lanes:
        lanes = self.visit(vector)
        return lanes[len(lanes) // 2 :]

    def _call_vectorcombine(self, node: Any, low: Any, high: Any) -> Lanes:
        return (*self.visit(low), *self.visit(high))

    # --- memory
    def _BufferLoad(self, node: Any) -> Lanes:
        return self.load(node.buffer if hasattr(node, "buffer") else node.source, node.indices)

    _TensorLoad = _BufferLoad

    def load(self, buffer: Any, indices: Any) -> Lanes:
        storage = self.storage(buffer)
        if storage.has_quads and len(indices) == 1 and _is_quad(indices[0]):
            return self.memory.load_quad(storage, self.scalar(indices[0].base))
        index = self.index(indices)
        return tuple(self.memory.load(storage, lane) for lane in index)

    def storage(self, buffer: Any) -> Storage:
        if buffer not in self.storages:
            raise unsupported(f"the buffer {buffer.name}, which nothing declares")
        return self.storages[buffer]

    def index(self, indices: Any) -> Lanes:
        if len(indices) != 1:
            raise unsupported("an index of several dimensions", hint="run FlattenBuffer first")
        return self.visit(indices[0])

    # --- calls
    def _Call(self, node: Any) -> Lanes:
        name, arguments = str(node.op.name).split(".")[-1], list(node.args)
        if name in ("call_pure_extern", "call_extern"):
            name, arguments = str(arguments[0].value), arguments[1:]
        method: Callable[..., Lanes] | None = getattr(self, f"_call_{name}", None)
        if method is not None:
            return method(node, *arguments)
        if functions.known(name) is None:
            special = name.removeprefix("tp_math_")
            what = f"the function {special} of {dtype_of(node)[0]}" if special != name else f"the call {node}"
            raise unsupported(what)
        return self._map(lambda *x: functions.call(self.s, name, *x), *arguments)

    def _call_buffer_load(self, node: Any, buffer: Any, *indices: Any) -> Lanes:
        return self.load(buffer, indices)

    def _call_if_then_else(self, node: Any, condition: Any, then: Any, otherwise: Any) -> Lanes:
        return choose(self.s, self.scalar(condition), lambda: self.visit(then), lambda: self.visit(otherwise))

    def _call_likely(self, node: Any, condition: Any) -> Lanes:
        return self.visit(condition)

    def _call_reinterpret(self, node: Any, x: Any) -> Lanes:
        dtype, _ = dtype_of(node)
        return self._map(lambda value: self.s.reinterpret(value, dtype), x)

    def _call_large_uint_imm(self, node: Any, low: Any, high: Any) -> Lanes:
        return (self.s.const(int(low.value) | int(high.value) << 32, dtype_of(node)[0]),)

    def _call_infinity(self, node: Any) -> Lanes:
        return (self.s.const(float("inf"), dtype_of(node)[0]),)

    def _call_shift_left(self, node: Any, x: Any, bits: Any) -> Lanes:
        return self._map(self.s.shift_left, x, bits)

    def _call_shift_right(self, node: Any, x: Any, bits: Any) -> Lanes:
        return self._map(self.s.shift_right, x, bits)

    def _call_bitwise_and(self, node: Any, x: Any, y: Any) -> Lanes:
        return self._map(lambda a, b: self.s.bitwise("and", a, b), x, y)

    def _call_bitwise_or(self, node: Any, x: Any, y: Any) -> Lanes:
        return self._map(lambda a, b: self.s.bitwise("or", a, b), x, y)

    def _call_bitwise_xor(self, node: Any, x: Any, y: Any) -> Lanes:
        return self._map(lambda a, b: self.s.bitwise("xor", a, b), x, y)

    def _call_bitwise_not(self, node: Any, x: Any) -> Lanes:
        return self._map(self.s.bitwise_not, x)
