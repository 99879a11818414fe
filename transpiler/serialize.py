"""The JSON form of a program, with its large constants in a safetensors file beside it.

Everything that is read is checked before it is used: names, dtypes, ops and the types of their attributes,
sizes, references. Nothing is evaluated, and what comes out has passed the graph verifier.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transpiler import structure
from transpiler.attributes import MAX_RANK, bad_graph, check_dtype, check_identifier, check_text, make_op
from transpiler.dims import Dim, SymbolRange, SymExpr, free_symbols, parse_dim
from transpiler.errors import Location, TranspileError
from transpiler.ir import Array, Graph, Input, IRError, Node, Output, Program, Role, TensorType, Value, verify
from transpiler.naming import check_function_name
from transpiler.ops import OpError

FORMAT = "transpiler-graph"
VERSION = 1
INLINE_BYTES = 1024
MAX_BYTES = 256 * 1024 * 1024
MAX_ELEMENTS = 2**31 - 1  # of one value: kernels count in 32 bits


# --- files --------------------------------------------------------------------------------------------------


def save_graph(path: str | Path, program: Program) -> None:
    """Write `model.graph.json`, and `model.graph.safetensors` if there are constants above 1 KiB."""
    from safetensors.numpy import save_file

    path = Path(path)
    large = {key: np.ascontiguousarray(a) for key, a in program.constants.items() if a.nbytes > INLINE_BYTES}
    if large:
        save_file(large, path.with_suffix(".safetensors"))
    path.write_text(json.dumps(to_json(program), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_graph(path: str | Path) -> Program:
    """Read what `save_graph` wrote.

    Raises:
        TranspileError: "no-such-file"; "bad-graph" for anything that is not a valid graph;
        "unreadable-weights" for
            the constants.
    """
    from transpiler.weights import load_weights

    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise bad_graph(f"{path.name} is larger than {MAX_BYTES >> 20} MiB")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TranspileError("no-such-file", f"No such file: {path}") from None
    except (ValueError, RecursionError) as error:
        raise bad_graph(f"{path.name} is not JSON ({error})") from error
    beside = path.with_suffix(".safetensors")
    return from_json(data, load_weights(beside) if beside.exists() else {})


# --- writing ------------------------------------------------------------------------------------------------


def to_json(program: Program) -> dict[str, Any]:
    """The program as JSON values; constants above 1 KiB are named only."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "functions": {name: _graph(graph) for name, graph in program.functions.items()},
        "constants": {key: _constant(array) for key, array in sorted(program.constants.items())},
        "aliases": dict(sorted(program.aliases.items())),
    }


def _constant(array: Array) -> dict[str, Any]:
    entry: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.nbytes <= INLINE_BYTES:
        wide = array.astype(np.float32) if str(array.dtype) == "bfloat16" else array
        entry["data"] = [attribute_to_json(item) for item in wide.reshape(-1).tolist()]
    return entry


def _graph(graph: Graph) -> dict[str, Any]:
    return {
        "inputs": [{**_value(i.value), "role": str(i.role), "key": i.key} for i in graph.inputs],
        "nodes": [
            {
                "op": node.op.name,
                "attributes": {key: attribute_to_json(item) for key, item in node.op.attributes().items()},
                "inputs": [value.name for value in node.inputs],
                "outputs": [_value(value) for value in node.outputs],
            }
            for node in graph.nodes
        ],
        "outputs": [{"value": item.value.name, "state": item.state} for item in graph.outputs],
        "symbols": {name: [bounds.low, bounds.high] for name, bounds in graph.symbols.items()},
        "in_structure": structure.to_json(graph.in_structure) if graph.in_structure is not None else None,
        "out_structure": structure.to_json(graph.out_structure) if graph.out_structure is not None else None,
    }


def _value(value: Value) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": value.name,
        "dtype": value.dtype,
        "shape": [size if isinstance(size, int) else str(size) for size in value.shape],
    }
    if value.path is not None:
        entry["path"] = value.path
    if value.hint is not None:
        entry["hint"] = value.hint
    if value.location is not None:
        at = value.location
        entry["location"] = [at.file, at.line, at.function, at.text, at.module_path]
    return entry


def attribute_to_json(value: Any) -> Any:
    """Sizes become {"dim": text}, infinite floats and NaN {"float": text}, tuples lists."""
    if isinstance(value, SymExpr):
        return {"dim": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, tuple):
        return [attribute_to_json(item) for item in value]
    return value


# --- reading ------------------------------------------------------------------------------------------------


def from_json(data: Any, constants: Mapping[str, Array] | None = None) -> Program:
    """Inverse of `to_json`; `constants` holds the arrays that are named only.

    Raises:
        TranspileError: "bad-graph".
    """
    top = _object(data, "the file")
    if top.get("format") != FORMAT:
        raise bad_graph(f'"format" is {top.get("format")!r}, expected {FORMAT!r}')
    if top.get("version") != VERSION:
        raise bad_graph(f"version {top.get('version')!r} is not known; this program reads version {VERSION}")
    arrays = dict(_read_constants(_object(top.get("constants"), "constants"), constants or {}))
    aliases = {
        check_text(key, "alias", empty=False): check_text(value, "alias", empty=False)
        for key, value in _object(top.get("aliases"), "aliases").items()
    }
    functions = {
        check_function_name(check_identifier(name, "function")): _read_graph(name, _object(item, "a function"))
        for name, item in _object(top.get("functions"), "functions").items()
    }
    return check_program(Program(functions, arrays, aliases))


def check_program(program: Program) -> Program:
    """The program, if its graphs verify, its constants are there, and its functions agree about what they share.

    Raises:
        TranspileError: "bad-graph".
    """
    if not program.functions:
        raise bad_graph("there is no function")
    shared: dict[tuple[str, str], tuple[TensorType, str]] = {}
    for graph in program.functions.values():
        _check_graph(graph, program.constants)
        for item in graph.inputs:
            if item.role not in (Role.PARAMETER, Role.BUFFER, Role.STATE, Role.CONSTANT):
                continue
            kind = "constant" if item.role is Role.CONSTANT else "weight"
            fact = item.value.type, "state" if item.role is Role.STATE else "weight"
            if item.role is Role.STATE and item.key in program.constants:
                array = program.constants[item.key]
                if TensorType(str(array.dtype), array.shape) != item.value.type:
                    raise bad_graph(f"the state {item.key!r} is not of its constant's type")
            if item.role is Role.CONSTANT and item.key in program.states():
                raise bad_graph(f"{item.key!r} is a constant in {graph.name} and a state in another function")
            if shared.setdefault((kind, item.key), fact) != fact:
                raise bad_graph(f"the functions disagree about the {kind} {item.key!r}")
    return program


def _check_graph(graph: Graph, constants: Mapping[str, Array]) -> None:
    for item in graph.inputs:
        if item.role is Role.CONSTANT:
            if item.key not in constants:
                raise bad_graph(f"constant {item.key!r} is missing")
            array = constants[item.key]
            if TensorType(str(array.dtype), array.shape) != item.value.type:
                raise bad_graph(f"constant {item.key!r} is {array.dtype}{list(array.shape)}, not {item.value.type}")
    for value in graph.values():
        if value.type.is_static and math.prod(value.type.static_shape()) > MAX_ELEMENTS:
            raise bad_graph(f"%{value.name} is {value.type}; a value has at most {MAX_ELEMENTS} elements")
        for size in value.shape:
            if unknown := sorted(free_symbols(size) - set(graph.symbols)):
                raise bad_graph(f"%{value.name} has the unknown symbol {', '.join(unknown)}")
    for flat, nesting, what in (
        (len(graph.user_inputs()), graph.in_structure, "inputs"),
        (len(graph.user_outputs()), graph.out_structure, "outputs"),
    ):
        if nesting is not None and sorted(structure.leaves(nesting)) != list(range(flat)):
            raise bad_graph(f"the structure of the {what} does not name each of the {flat} once")
    try:
        verify(graph)
    except (IRError, OpError, TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError) as error:
        raise bad_graph(str(error)) from error


def _read_constants(entries: Mapping[str, Any], given: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    from transpiler.ops.dtypes import numpy_dtype

    for key, entry in entries.items():
        check_text(key, "constant", empty=False)
        type_ = _read_type(_object(entry, "a constant"))
        shape = type_.static_shape() if type_.is_static else None
        if shape is None:
            raise bad_graph(f"constant {key!r} has a symbolic shape")
        if "data" not in entry:
            if key not in given:
                raise bad_graph(f"constant {key!r} is missing in the safetensors file beside the graph")
            if TensorType(str(given[key].dtype), given[key].shape) != type_:
                raise bad_graph(f"constant {key!r} is {given[key].dtype}{list(given[key].shape)}, not {type_}")
            yield key, given[key]
            continue
        items = [attribute_from_json(item) for item in _list(entry["data"], "data")]
        if len(items) != math.prod(shape) or not all(isinstance(item, bool | int | float) for item in items):
            raise bad_graph(f"the data of constant {key!r} does not fit {type_}")
        try:
            yield key, np.array(items, dtype=numpy_dtype(type_.dtype)).reshape(shape)
        except (OverflowError, ValueError, TypeError) as error:
            raise bad_graph(f"the data of constant {key!r} does not fit {type_}") from error


def _read_graph(name: str, data: Mapping[str, Any]) -> Graph:
    values: dict[str, Value] = {}

    def define(entry: Any) -> Value:
        value = _read_value(_object(entry, "a value"))
        values[value.name] = value
        return value

    def use(reference: Any) -> Value:
        if not isinstance(reference, str) or reference not in values:
            raise bad_graph(f"{name} uses the undefined value {reference!r}")
        return values[reference]

    inputs = tuple(
        Input(define(item), _read_role(item.get("role")), check_text(item.get("key"), "key", empty=False))
        for item in [_object(item, "an input") for item in _list(data.get("inputs"), "inputs")]
    )
    nodes = []
    for item in _list(data.get("nodes"), "nodes"):
        node = _object(item, "a node")
        attributes = _object(node.get("attributes"), "attributes")
        op = make_op(node.get("op"), {key: attribute_from_json(value) for key, value in attributes.items()})
        used = tuple(use(reference) for reference in _list(node.get("inputs"), "inputs"))
        nodes.append(Node(op, used, tuple(define(entry) for entry in _list(node.get("outputs"), "outputs"))))
    outputs = []
    for item in _list(data.get("outputs"), "outputs"):
        entry = _object(item, "an output")
        state = entry.get("state")
        outputs.append(Output(use(entry.get("value")), None if state is None else check_text(state, "state")))
    return Graph(
        name,
        inputs,
        tuple(nodes),
        tuple(outputs),
        _read_structure(data.get("in_structure")),
        _read_structure(data.get("out_structure")),
        {check_identifier(k, "symbol"): _read_range(v) for k, v in _object(data.get("symbols"), "symbols").items()},
    )


def _read_value(entry: Mapping[str, Any]) -> Value:
    path, hint, at = entry.get("path"), entry.get("hint"), entry.get("location")
    location = None
    if at is not None:
        parts = _list(at, "location")
        if len(parts) != 5 or not _is_int(parts[1]):
            raise bad_graph("a location is not [file, line, function, text, module path]")
        texts = [check_text(part, "location") for part in (parts[0], *parts[2:])]
        location = Location(texts[0], parts[1], *texts[1:])
    return Value(
        check_identifier(entry.get("name"), "value"),
        _read_type(entry),
        None if path is None else check_text(path, "path"),
        location,
        None if hint is None else check_text(hint, "hint"),
    )


def _read_type(entry: Mapping[str, Any]) -> TensorType:
    sizes = _list(entry.get("shape"), "shape")
    if len(sizes) > MAX_RANK:
        raise bad_graph(f"a shape of rank {len(sizes)}; at most {MAX_RANK}")
    return TensorType(check_dtype(entry.get("dtype")), tuple(read_dim(size) for size in sizes))


def read_dim(size: Any) -> Dim:
    """A size from JSON. Raises TranspileError "bad-graph"."""
    if _is_int(size) and 0 <= size < 2**48:
        return int(size)
    if isinstance(size, str):
        try:
            return parse_dim(size)
        except ValueError as error:
            raise bad_graph(str(error)) from error
    raise bad_graph(f"{size!r} is not a size")


def _read_role(role: Any) -> Role:
    try:
        return Role(role)
    except ValueError:
        raise bad_graph(f"unknown role {role!r}; known: {', '.join(Role)}") from None


def _read_range(bounds: Any) -> SymbolRange:
    pair = _list(bounds, "a symbol's range")
    if len(pair) != 2 or not _is_int(pair[0]) or not (pair[1] is None or _is_int(pair[1])):
        raise bad_graph(f"{bounds!r} is not a symbol's range")
    return SymbolRange(*pair)


def _read_structure(data: Any) -> structure.Structure | None:
    if data is None:
        return None
    try:
        return structure.from_json(data)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise bad_graph(str(error)) from error


def attribute_from_json(value: Any, depth: int = 0) -> Any:
    """Inverse of `attribute_to_json`. Raises TranspileError "bad-graph"."""
    if depth > 8:
        raise bad_graph("an attribute is nested too deeply")
    if isinstance(value, list):
        return tuple(attribute_from_json(item, depth + 1) for item in value)
    if isinstance(value, dict):
        if set(value) == {"dim"} and isinstance(value["dim"], str):
            return read_dim(value["dim"])
        if set(value) == {"float"} and value["float"] in ("inf", "-inf", "nan"):
            return float(value["float"])
        raise bad_graph(f"unknown attribute {sorted(map(str, value))}")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _object(data: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise bad_graph(f"{what} is not an object")
    return data


def _list(data: Any, what: str) -> Sequence[Any]:
    if not isinstance(data, list):
        raise bad_graph(f"{what} is not a list")
    return data
