"""The neutral op graph: a functional, typed SSA form that no framework is needed to read.

A `Program` holds named functions that share weights. A `Graph` (one function) has inputs with a role, nodes in
execution order, and outputs. A `Node` applies one op (`transpiler.ops`) to values. Everything is frozen: a pass
takes a graph and returns a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from transpiler.dims import Dim, SymbolRange, is_static, product
from transpiler.errors import Location

if TYPE_CHECKING:
    from transpiler.ops.base import Op
    from transpiler.structure import Structure

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = (
    "float32", "float64", "float16", "bfloat16",
    "int8", "uint8", "int16", "int32", "int64", "bool",
)  # fmt: skip


class IRError(ValueError):
    """A graph breaks an invariant: a bug of a pass or of the importer, or a damaged file."""


class SymbolicShapeError(IRError):
    """A shape must be fixed where this was raised, and varies."""


def fixed_size(dim: Dim) -> int:
    """A size (or offset) that is known. Raises SymbolicShapeError if it varies."""
    if not isinstance(dim, int):
        raise SymbolicShapeError(f"size {dim} is symbolic")
    return dim


@dataclass(frozen=True)
class TensorType:
    """Element type and shape; a dim is an int or an expression over symbols."""

    dtype: str
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return all(is_static(dim) for dim in self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype in ("float32", "float64", "float16", "bfloat16")

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    @property
    def bytes(self) -> Dim:
        """Bytes of the dense tensor."""
        return product(self.shape) * self.item_bytes

    def static_shape(self) -> tuple[int, ...]:
        """The shape as plain ints. Raises SymbolicShapeError if a dim is symbolic."""
        if not self.is_static:
            raise SymbolicShapeError(f"shape {self.shape} is symbolic")
        return tuple(map(fixed_size, self.shape))

    def with_shape(self, shape: Iterable[Dim]) -> TensorType:
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Value:
    """One SSA value.

    `path` is the PyTorch module path whose output this is (`layer3.0.relu`, `fc#2` on a second call), `location` the
    user's source line, `hint` the user's own variable name. They take no part in equality: the name is the identity.
    """

    name: str
    type: TensorType
    path: str | None = field(default=None, compare=False)
    location: Location | None = field(default=None, compare=False)
    hint: str | None = field(default=None, compare=False)

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    def __str__(self) -> str:
        return f"%{self.name}"


class Role(StrEnum):
    """What an input is to its caller."""

    USER = "user"
    PARAMETER = "parameter"
    BUFFER = "buffer"
    STATE = "state"
    CONSTANT = "constant"
    SYMBOL = "symbol"
    RNG = "rng"


WEIGHT_ROLES = frozenset({Role.PARAMETER, Role.BUFFER, Role.CONSTANT})


@dataclass(frozen=True)
class Input:
    """An input of a function.

    `key` is the state_dict key of a parameter or buffer, the name in `Program.constants` of a constant, and the
    argument's flattened name of a user input. A state is named by the buffer that PyTorch keeps it in: it starts as
    `Program.constants[key]` if that exists (a buffer outside the state_dict), else as the state_dict's tensor.
    """

    value: Value
    role: Role
    key: str


@dataclass(frozen=True)
class Output:
    """An output: for the user (`state` is None) or the new content of the state input named by `state`."""

    value: Value
    state: str | None = None


@dataclass(frozen=True)
class Node:
    """One op applied to values."""

    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def output(self) -> Value:
        """The only output."""
        (value,) = self.outputs
        return value


@dataclass(frozen=True)
class Layout:
    """How a value stores a logical tensor.

    `blocked_channels` is the logical number of channels of an NCHW16c value, stored as
    [N, ceil(C/16), spatial..., 16]. `channels_last`: [N, C, spatial...] is stored as [N, spatial..., C]. Neither means
    that the value is stored as it is.
    """

    blocked_channels: int | None = None
    channels_last: bool = False


@dataclass(frozen=True)
class Tap:
    """A PyTorch module path's output: the value that holds it, its logical type and its layout."""

    value: str
    type: TensorType
    layout: Layout = Layout()


@dataclass(frozen=True)
class Graph:
    """One function.

    `in_structure`/`out_structure` say how the flat user inputs and outputs nest for the caller. `taps` maps a PyTorch
    module path to the value that holds its output; it keeps no value alive, except for the paths in `pinned`, whose
    values stay stored like outputs.
    """

    name: str
    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]
    in_structure: Structure | None = None
    out_structure: Structure | None = None
    symbols: Mapping[str, SymbolRange] = field(default_factory=dict)
    taps: Mapping[str, Tap] = field(default_factory=dict)
    pinned: frozenset[str] = frozenset()

    def user_inputs(self) -> tuple[Input, ...]:
        return tuple(item for item in self.inputs if item.role is Role.USER)

    def call_inputs(self) -> tuple[Input, ...]:
        """What a call is given: the user's inputs, then the state of the random generator if there is one."""
        return (*self.user_inputs(), *(item for item in self.inputs if item.role is Role.RNG))

    def weight_inputs(self) -> tuple[Input, ...]:
        return tuple(item for item in self.inputs if item.role in WEIGHT_ROLES)

    def state_inputs(self) -> tuple[Input, ...]:
        return tuple(item for item in self.inputs if item.role is Role.STATE)

    def updates(self) -> dict[str, Value]:
        """State key -> its new content. A state that is not among them stays as it is."""
        return {item.state: item.value for item in self.outputs if item.state is not None}

    def user_outputs(self) -> tuple[Value, ...]:
        return tuple(item.value for item in self.outputs if item.state is None)

    def values(self) -> Iterator[Value]:
        """Every value in definition order."""
        for item in self.inputs:
            yield item.value
        for node in self.nodes:
            yield from node.outputs

    def producers(self) -> dict[str, Node]:
        """Value name -> the node that defines it."""
        return {value.name: node for node in self.nodes for value in node.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """Value name -> the nodes that use it, in order, once each."""
        users: dict[str, list[Node]] = {value.name: [] for value in self.values()}
        for node in self.nodes:
            for name in dict.fromkeys(value.name for value in node.inputs):
                users[name].append(node)
        return users

    def kept_names(self) -> frozenset[str]:
        """Values that must be stored: the outputs, and those of pinned taps."""
        pinned = (tap.value for path, tap in self.taps.items() if path in self.pinned)
        return frozenset(item.value.name for item in self.outputs).union(pinned)

    def with_nodes(self, nodes: Iterable[Node]) -> Graph:
        return replace(self, nodes=tuple(nodes))


@dataclass(frozen=True)
class Program:
    """Functions that share weights and state.

    `constants` are tensors that the model holds outside its state_dict (lifted literals, non-persistent buffers).
    `aliases` maps a tied state_dict key to the key that stores the tensor.
    """

    functions: Mapping[str, Graph]
    constants: Mapping[str, Array] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def main(self) -> Graph:
        """`forward`, or the first function where there is none."""
        return self.functions.get("forward") or next(iter(self.functions.values()))

    def with_main(self, graph: Graph) -> Program:
        return self.with_function(graph)

    def with_function(self, graph: Graph) -> Program:
        """The program with the function of the graph's name replaced, at the same place."""
        return replace(self, functions={**self.functions, graph.name: graph})

    def states(self) -> dict[str, Value]:
        """State key -> its value in the first function that has it; the same order in every build."""
        found: dict[str, Value] = {}
        for graph in self.functions.values():
            for item in graph.state_inputs():
                found.setdefault(item.key, item.value)
        return found


def substitute(graph: Graph, mapping: Mapping[str, Value]) -> Graph:
    """The graph with every use of a value named in `mapping` replaced (chains are followed); definitions stay."""

    def resolve(value: Value) -> Value:
        while value.name in mapping:
            value = mapping[value.name]
        return value

    nodes = tuple(replace(node, inputs=tuple(resolve(value) for value in node.inputs)) for node in graph.nodes)
    outputs = tuple(replace(item, value=resolve(item.value)) for item in graph.outputs)
    taps = {
        path: replace(tap, value=resolve(mapping[tap.value]).name) if tap.value in mapping else tap
        for path, tap in graph.taps.items()
    }
    return replace(graph, nodes=nodes, outputs=outputs, taps=taps)


def verify(graph: Graph) -> None:
    """Check the invariants every pass must keep.

    Names are unique identifiers and defined before use, every node's outputs have the types its op infers, every
    output is defined.

    Raises:
        IRError: names the node and what is wrong.
    """
    defined: dict[str, Value] = {}

    def define(value: Value, by: str) -> None:
        if not value.name.isidentifier():
            raise IRError(f"{graph.name}: {by} defines {value.name!r}, which is not an identifier")
        if value.name in defined:
            raise IRError(f"{graph.name}: {by} defines %{value.name} a second time")
        if value.dtype not in DTYPES:
            raise IRError(f"{graph.name}: {by} defines %{value.name} of unknown dtype {value.dtype!r}")
        defined[value.name] = value

    def use(value: Value, by: str) -> None:
        if value.name not in defined:
            raise IRError(f"{graph.name}: {by} uses %{value.name} before its definition")
        if defined[value.name].type != value.type:
            raise IRError(
                f"{graph.name}: {by} uses %{value.name} as {value.type}, defined as {defined[value.name].type}"
            )

    for item in graph.inputs:
        define(item.value, f"{item.role} input")
    for node in graph.nodes:
        label = f"{node.op.name} -> {', '.join(map(str, node.outputs))}"
        for value in node.inputs:
            use(value, label)
        inferred = node.op.infer_types([value.type for value in node.inputs])
        actual = tuple(value.type for value in node.outputs)
        if inferred != actual:
            raise IRError(f"{graph.name}: {label} infers {_types(inferred)}, but is declared {_types(actual)}")
        for value in node.outputs:
            define(value, label)
    for output in graph.outputs:
        use(output.value, "output")
    _verify_states(graph)


def _verify_states(graph: Graph) -> None:
    """Every state comes in once, and goes out at most once, as the same type."""
    types: dict[str, TensorType] = {}
    for item in graph.state_inputs():
        if item.key in types:
            raise IRError(f"{graph.name}: the state {item.key!r} is an input twice")
        types[item.key] = item.value.type
    written: set[str] = set()
    for output in graph.outputs:
        if output.state is None:
            continue
        if output.state not in types:
            raise IRError(f"{graph.name}: {output.value} updates {output.state!r}, which is not a state of it")
        if output.state in written:
            raise IRError(f"{graph.name}: the state {output.state!r} is updated twice")
        if output.value.type != types[output.state]:
            raise IRError(
                f"{graph.name}: the state {output.state!r} is {types[output.state]}, its update {output.value.type}"
            )
        written.add(output.state)


def _types(types: Iterable[TensorType]) -> str:
    return ", ".join(map(str, types))
