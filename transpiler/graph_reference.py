"""PyTorch's stand-in for a model that came as a graph: the numpy reference, in float32 and in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from transpiler.dims import evaluate
from transpiler.draw import integers, normal, numpy_dtype, seed_of
from transpiler.interpreter import RECORDED_STATE, run_graph
from transpiler.ir import Array, Graph, Node, Output, Program, Role, TensorType, Value, fixed_size
from transpiler.ops import dtypes
from transpiler.ops.index import Take
from transpiler.passes.simplify import dead_code

WIDE = {"float32": "float64", "float16": "float64", "bfloat16": "float64"}


class GraphReference:
    """`eager` and `run` with the signatures of `transpiler.reference`."""

    def __init__(self, program: Program, state: Mapping[str, Array], function: str | None = None) -> None:
        self.program, self.state = program, state
        self.graph = program.main if function is None else program.functions[function]
        self.wide = to_double(program)

    def eager(
        self,
        inputs: Sequence[Array],
        *,
        weights: Mapping[str, Array] | None = None,
        state: Mapping[str, Array] | None = None,
        seed: int = RECORDED_STATE[0],
    ) -> list[Array]:
        return self.run(inputs, weights=weights, state=state, seed=seed)[0]

    @property
    def is_random(self) -> bool:
        return any(item.role is Role.RNG for item in self.graph.inputs)

    def run(
        self,
        inputs: Sequence[Array],
        *,
        double: bool = False,
        capture_values: Sequence[str] = (),
        weights: Mapping[str, Array] | None = None,
        state: Mapping[str, Array] | None = None,
        seed: int = RECORDED_STATE[0],
    ) -> tuple[list[Array], dict[str, Array]]:
        def wide(array: Array) -> Array:
            return _widen(array) if double else array

        values: dict[str, Array] = {}
        weights = self.state if weights is None else weights
        held = {key: wide(array) for key, array in self._held(state or {}, double).items()}
        outputs = run_graph(
            self.wide if double else self.program,
            {key: wide(array) for key, array in weights.items()} if double else self._typed(weights),
            [wide(array) for array in inputs] if double else self._inputs(inputs),
            function=self.graph.name,
            values=values,
            state=held,
            rng=(seed, RECORDED_STATE[1]),
        )
        after = [held[key] for key in sorted(state or {})]
        return [*outputs, *after], {name: values[name] for name in capture_values}

    def _typed(self, weights: Mapping[str, Array] | None) -> Mapping[str, Array]:
        """Weights in the model's dtypes: bfloat16 may come as float32."""
        if weights is None:
            return self.state
        return {
            key: array.astype(self.state[key].dtype, copy=False) if key in self.state else array
            for key, array in weights.items()
        }

    def _held(self, state: Mapping[str, Array], double: bool) -> Mapping[str, Array]:
        """Buffers in the model's dtypes: bfloat16 comes as float32."""
        half = {item.key for item in self.graph.state_inputs() if item.value.dtype == "bfloat16" and not double}
        dtype = dtypes.numpy_dtype("bfloat16")
        return {key: array.astype(dtype) if key in half else array for key, array in state.items()}

    def _inputs(self, inputs: Sequence[Array]) -> list[Array]:
        users = self.graph.user_inputs()
        if len(users) != len(inputs):
            return list(inputs)
        return [
            array.astype(dtypes.numpy_dtype("bfloat16")) if item.value.dtype == "bfloat16" else array
            for item, array in zip(users, inputs, strict=True)
        ]

    def bounds(self) -> dict[str, tuple[int, int]]:
        """Integer inputs that look up a table directly: its valid indices."""
        keys = {item.value.name: item.key for item in self.graph.user_inputs()}
        found: dict[str, tuple[int, int]] = {}
        for node in self.graph.nodes:
            if isinstance(node.op, Take) and node.inputs[1].name in keys:
                size = fixed_size(node.inputs[0].shape[node.op.axis])
                found[keys[node.inputs[1].name]] = (0, size - 1)
        return found

    def examples(self) -> tuple[Array, ...]:
        """Drawn inputs: normal floats, integers within their bounds (0 and 1 where there are none)."""
        bounds = self.bounds()
        limits = self.graph.symbols.items()
        sizes = {name: max(item.low, min(4, item.high or 4)) for name, item in limits}
        drawn = []
        for item in self.graph.user_inputs():
            shape = tuple(evaluate(dim, sizes) for dim in item.value.shape)
            count, seed = int(np.prod(shape, dtype=np.int64)), seed_of(item.key)
            dtype = numpy_dtype(item.value.dtype)
            flat = normal(seed, count) if dtype.kind == "f" else integers(seed, count, *bounds.get(item.key, (0, 1)))
            drawn.append(flat.astype(dtype).reshape(shape))
        return tuple(drawn)


class RandomNumbers:
    """PyTorch on the package's random numbers: what they are comes from the numpy reference, all else from PyTorch.

    `random` maps the FX nodes that draw to the values that stand for them.
    """

    def __init__(self, program: Program, state: Mapping[str, Array], random: Mapping[str, str], function: str) -> None:
        self.random = random
        graph = program.functions[function]
        values = {value.name: value for value in graph.values()}
        ends = tuple(Output(values[name]) for name in sorted(set(random.values())))
        needed = dead_code(replace(graph, outputs=ends, taps={}, pinned=frozenset()))
        self.numpy = GraphReference(program.with_function(needed), state, function)

    def run(
        self,
        reference: Callable[..., Any],
        inputs: Sequence[Array],
        *,
        double: bool = False,
        capture_values: Sequence[str] = (),
        weights: Mapping[str, Array] | None = None,
        state: Mapping[str, Array] | None = None,
    ) -> Any:
        """`reference` with every random node's numbers replaced."""
        names = sorted(set(self.random.values()))
        copies = [array.copy() for array in inputs]
        _, values = self.numpy.run(copies, double=double, capture_values=names, weights=weights, state=state)
        given = {node: values[name] for node, name in self.random.items()}
        return reference(
            inputs, double=double, capture_values=capture_values, weights=weights, state=state, given=given
        )

    def outputs(self, reference: Callable[..., Any], inputs: Sequence[Array], **options: Any) -> Any:
        return self.run(reference, inputs, **options)[0]


def _widen(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.name in WIDE else array


def to_double(program: Program) -> Program:
    """The program with every float type and every `dtype` attribute widened to float64."""
    functions = {name: _graph_to_double(graph) for name, graph in program.functions.items()}
    return replace(
        program, functions=functions, constants={key: _widen(array) for key, array in program.constants.items()}
    )


def _value(value: Value) -> Value:
    return replace(value, type=TensorType(WIDE.get(value.dtype, value.dtype), value.shape))


def _graph_to_double(graph: Graph) -> Graph:
    nodes = []
    for node in graph.nodes:
        changes: dict[str, Any] = {
            item.name: WIDE[getattr(node.op, item.name)]
            for item in fields(node.op)
            if item.name == "dtype" and getattr(node.op, item.name) in WIDE
        }
        op = replace(node.op, **changes) if changes else node.op
        nodes.append(Node(op, tuple(map(_value, node.inputs)), tuple(map(_value, node.outputs))))
    return replace(
        graph,
        inputs=tuple(replace(item, value=_value(item.value)) for item in graph.inputs),
        nodes=tuple(nodes),
        outputs=tuple(replace(item, value=_value(item.value)) for item in graph.outputs),
    )
