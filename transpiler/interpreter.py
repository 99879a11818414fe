"""Runs a graph with the ops' numpy references: the meaning of a graph without torch and TVM. Slow, and
right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transpiler.dims import Dim, SymExpr, evaluate, free_symbols, symbol_places
from transpiler.ir import Array, Graph, IRError, Program, Role, TensorType, Value
from transpiler.ops import Op

# The seed and the call that tests are recorded with.
RECORDED_STATE = (0, 0)


def run_graph(
    program: Program,
    weights: Mapping[str, Array],
    inputs: Sequence[Array],
    *,
    function: str | None = None,
    values: dict[str, Array] | None = None,
    state: dict[str, Array] | None = None,
    rng: tuple[int, int] = RECORDED_STATE,
) -> tuple[np.ndarray[Any, Any], ...]:
    """The user outputs for flat user inputs; `values`, if given, receives every value by name.

    `weights` has a stored state_dict key for every parameter and buffer. `function` is `Program.main` by default.
    `state`, if given, holds the content of states by key and receives the new one; those that it lacks, or all if it
    is None, are as `initial_state` says. `rng` is the seed of the random numbers and how many calls were made with it.

    Raises:
        ValueError: an input's count, dtype or shape is not the graph's.
        KeyError: a weight is missing.
        IRError: an op's reference does not return what the op infers.
    """
    graph = program.main if function is None else program.functions[function]
    held = {**initial_state(program, weights), **(state or {})}
    users = graph.user_inputs()
    if len(inputs) != len(users):
        raise ValueError(f"{len(inputs)} inputs given, {len(users)} expected")
    symbols = bind_symbols([item.value for item in users], inputs)
    env: dict[str, Array] = {}
    given = iter(inputs)
    for item in graph.inputs:
        match item.role:
            case Role.USER:
                array = next(given)
            case Role.RNG:
                array = np.array(rng, np.int64)
            case Role.CONSTANT:
                array = program.constants[item.key]
            case Role.STATE:
                array = held[item.key]
            case Role.PARAMETER | Role.BUFFER:
                array = weights[program.aliases.get(item.key, item.key)]
            case role:
                raise IRError(f"input %{item.value.name} has role {role}, which the interpreter does not know")
        problem = _mismatch(array, item.value.type, symbols)
        if problem:
            raise ValueError(f"input {item.key!r} is {problem}")
        env[item.value.name] = array
    _run_nodes(graph, env, symbols)
    if values is not None:
        values.update(env)
    if state is not None:
        state.update({**held, **{key: np.array(env[value.name]) for key, value in graph.updates().items()}})
    return tuple(env[value.name] for value in graph.user_outputs())


def initial_state(program: Program, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The states before the first call, by key. Raises KeyError for one that `weights` lacks."""
    return {
        key: program.constants[key] if key in program.constants else weights[program.aliases.get(key, key)]
        for key in program.states()
    }


def _run_nodes(graph: Graph, env: dict[str, Array], symbols: Mapping[str, int]) -> None:
    for node in graph.nodes:
        op = bind_op(node.op, symbols)
        with np.errstate(all="ignore"):
            result = op.reference(*(env[value.name] for value in node.inputs))
        results = result if isinstance(result, tuple) else (result,)
        if len(results) != len(node.outputs):
            raise IRError(f"reference of {op.name} returns {len(results)} arrays, {len(node.outputs)} declared")
        for value, array in zip(node.outputs, results, strict=True):
            problem = _mismatch(np.asarray(array), value.type, symbols)
            if problem:
                raise IRError(f"reference of {op.name} gives %{value.name} as {problem}")
            env[value.name] = np.asarray(array)


def bind_symbols(values: Sequence[Value], arrays: Sequence[Array]) -> dict[str, int]:
    """Symbol values from the shapes of the inputs.

    Raises:
        ValueError: a symbol that no dimension determines.
    """
    places = symbol_places([value.shape for value in values])
    symbols = {
        name: (arrays[place.input].shape[place.dim] - place.offset) // place.scale for name, place in places.items()
    }
    wanted = {name for value in values for dim in value.shape for name in free_symbols(dim)}
    if missing := sorted(wanted - set(symbols)):
        raise ValueError(f"no input has the size {', '.join(missing)} as a dimension")
    return symbols


def bind_op(op: Op, symbols: Mapping[str, int]) -> Op:
    """The op with the symbolic sizes among its attributes replaced by numbers."""
    if op.is_static:
        return op
    changed = {key: _bind(value, symbols) for key, value in op.attributes().items()}
    return dataclasses.replace(op, **changed)


def _bind(value: Any, symbols: Mapping[str, int]) -> Any:
    if isinstance(value, tuple):
        return tuple(_bind(item, symbols) for item in value)
    return evaluate(value, symbols) if isinstance(value, SymExpr) else value


def _mismatch(array: Array, type_: TensorType, symbols: Mapping[str, int]) -> str:
    """What is wrong with an array, as text; empty if nothing is."""
    shape: tuple[Dim, ...] = tuple(evaluate(size, symbols) for size in type_.shape)
    if str(array.dtype) != type_.dtype or array.shape != shape:
        return f"{array.dtype}{list(array.shape)}, expected {type_.dtype}{list(shape)}"
    return ""
