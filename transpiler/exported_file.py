"""Reading a `.pt2` file, which may come from anywhere: everything in it is checked before torch builds a program of it.

torch's own loader trusts the file: it unpickles payloads without limits, evaluates sizes with sympy, resolves operators
by attribute lookups from `torch` on (`torch.os.system`), imports modules that pytree contexts name, makes Python source
of the names in the graph and executes guards. Records are read here with the reader that torch uses, so that both see
the same bytes; what is not known to be harmless is refused.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from transpiler.errors import TranspileError
from transpiler.exported_text import (
    MAX_DEPTH,
    bad,
    check_expression,
    check_name,
    check_nesting,
    check_operator,
    check_path,
    unsafe,
)

MODEL = "models/model.json"
EXAMPLES = "data/sample_inputs/model.pt"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.format_version|\.storage_alignment|\.data/(version|serialization_id)"
    r"|models/model\.json|data/sample_inputs/model\.pt|data/(weights/model_weights|constants/model_constants)_config\.json"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|extra/[\w. -]+"
)
MAX_JSON = 256 << 20
MAX_SIZE = 2**48
MAX_ELEMENTS = 2**31 - 1  # of one value: kernels count in 32 bits
# A weight may be a view that repeats its data; this is what it may grow to.
MAX_REPEATED = 1 << 30
RANGED = re.compile(r"[\w*+/%(), -]{1,1000}", re.ASCII)
NAMED = ("parameter_name", "buffer_name", "tensor_constant_name", "user_input_name", "fqn")


def load_exported_program(path: Path) -> ExportedProgram:
    """The program in a file that torch.export.save wrote.

    Raises:
        TranspileError: "unsafe-pt2": it holds pickled objects, compiled code, unknown operators or names that torch
            would execute; "bad-pt2": it is damaged, or no such file.
    """
    # Not torch.export.load: where this fails, it goes on with an older format that is unpickled.
    from torch.export.pt2_archive._package import load_pt2

    try:
        check_records(torch._C.PyTorchFileReader(str(path)), path.stat().st_size)
        program: ExportedProgram = load_pt2(str(path)).exported_programs["model"]
    except TranspileError as error:
        raise _named(path, error) from error
    except Exception as error:
        raise _damaged(path, error) from error
    program._guards_code = []
    _forget_expressions(program)
    return program


def _forget_expressions(program: ExportedProgram) -> None:
    """Reading a size such as 2*s notes its range as if it were a symbol, which decompositions stumble over. The range
    of s itself stays."""
    for node in program.graph.find_nodes(op="placeholder"):
        for size in getattr(node.meta.get("val"), "shape", ()):
            if isinstance(size, torch.SymInt):
                ranges = size.node.shape_env.var_to_range
                for key in [key for key in ranges if not key.is_Symbol]:
                    del ranges[key]


def check_records(reader: Any, file_bytes: int) -> None:
    """Raises TranspileError "unsafe-pt2" or "bad-pt2" unless all records of an archive are harmless."""
    names = reader.get_all_records()
    if len(set(names)) != len(names):
        raise bad("two records have the same name")
    for name in names:
        if not RECORDS.fullmatch(name):
            raise unsafe(f"it holds {name[:200]!r}, which no traced model has")
    sizes = {name: reader.get_record_size(name) for name in names}
    if sum(sizes.values()) > file_bytes:
        raise bad("its records are larger than the file")
    missing = [name for name in (MODEL, EXAMPLES, *CONFIGS) if name not in sizes]
    if missing:
        raise bad(f"{missing[0]} is missing")
    program = _json(reader, MODEL, sizes)
    for config in CONFIGS:
        _check_payloads(_json(reader, config, sizes), config.rpartition("/")[0], sizes)
    _check_program(program)
    _check_examples(reader.get_record(EXAMPLES))


def _json(reader: Any, name: str, sizes: Mapping[str, int]) -> Any:
    if sizes[name] > MAX_JSON:
        raise bad(f"{name} is larger than {MAX_JSON >> 20} MiB")
    data = json.loads(reader.get_record(name), object_pairs_hook=_unique)
    for _, _, depth in _walk(data):
        if depth > MAX_DEPTH:
            raise bad(f"{name} is nested too deeply")
    return data


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise bad("a key is given twice")
    return found


def _walk(data: Any) -> Iterator[tuple[str, Any, int]]:
    """Every (key, value, depth) of nested objects and lists; the elements of a list have its key."""
    waiting = [("", data, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        yield key, value, depth
        if depth > MAX_DEPTH:
            continue
        if isinstance(value, dict):
            waiting.extend((str(name), item, depth + 1) for name, item in value.items())
        elif isinstance(value, list):
            waiting.extend((key, item, depth + 1) for item in value)


# --- payloads -----------------------------------------------------------------------------------------------


def _check_payloads(config: Any, folder: str, sizes: Mapping[str, int]) -> None:
    """Weights and constants: plain data that is as large as their shapes say."""
    for name, entry in config["config"].items():
        check_path(name)
        if entry.get("use_pickle") is not False:
            raise unsafe(f"{name!r} is pickled")
        record = f"{folder}/{entry['path_name']}"
        if not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]) or record not in sizes:
            raise unsafe(f"{name!r} is kept in {entry['path_name']!r}, which holds no tensor")
        meta = entry["tensor_meta"]
        if meta["device"]["type"] != "cpu":
            raise bad(f"{name!r} is on {meta['device']['type']!r}, expected cpu")
        shape, strides = ([_number(size) for size in meta[key]] for key in ("sizes", "strides"))
        _number(meta["storage_offset"])
        elements = math.prod(shape)
        limit = sizes[record] if all(strides) else max(sizes[record], MAX_REPEATED)
        if elements > limit:
            raise bad(f"{name!r} has {elements} elements and {sizes[record]} bytes")


def _number(size: Any) -> int:
    value = size["as_int"]
    if type(value) is not int or not 0 <= value < MAX_SIZE:
        raise bad(f"{value!r} is not a size")
    return value


def _check_examples(record: bytes) -> None:
    """The example inputs are pickled; torch falls back to a loader without limits where the limited one fails."""
    if not record:
        return
    try:
        torch.load(io.BytesIO(record), weights_only=True, map_location="cpu")
    except Exception as error:
        raise TranspileError(
            "unsafe-pt2",
            "its example inputs hold more than tensors, and opening them could run any code",
            hints=["leave them out: program.example_inputs = None, before torch.export.save(program, path)"],
        ) from error


# --- the program --------------------------------------------------------------------------------------------


def _check_program(program: Any) -> None:
    for key, value, _ in _walk(program):
        match key, value:
            case "expr_str", str():
                check_expression(value)
            case (("target" | "as_operator"), str()):
                check_operator(value)
            case (("name" | "as_name" | "forward_arg_names"), str()):
                check_name(value)
            case (("tensor_values" | "sym_int_values" | "sym_bool_values" | "sym_float_values"), dict()):
                for name, meta in value.items():
                    check_name(name)
                    if key == "tensor_values":
                        _check_shape(name, meta["sizes"])
            case (("as_custom_obj" | "custom_obj" | "token" | "custom_obj_values"), _) if value:
                raise unsafe("it has an object that is no tensor")
            case (("in_spec" | "out_spec"), str()):
                check_nesting(value)
            case _, str() if key in NAMED and value:
                check_path(value)
            case "as_int", int() if not -(2**63) <= value < 2**63:
                raise bad(f"{value} is too large for a size")
            case "range_constraints", dict():
                for name in value:  # texts of sizes, which are compared with, and never parsed
                    if not RANGED.fullmatch(name):
                        raise unsafe(f"{name[:100]!r} is not a size")
            case _:
                pass
    _check_keywords(program)


def _check_shape(name: str, sizes: Sequence[Any]) -> None:
    """Of a value of the graph; sizes that vary have bounds of their own."""
    elements = math.prod(_number(size) for size in sizes if "as_int" in size)
    if elements > MAX_ELEMENTS:
        raise bad(f"{name[:100]!r} has {elements} elements; a value has at most {MAX_ELEMENTS}")


def _check_keywords(program: Any) -> None:
    """Keywords of the call become parameters in Python source."""
    for entry in program["graph_module"]["module_call_graph"]:
        signature = entry.get("signature")
        if not signature:
            continue
        top = check_nesting(signature["in_spec"])
        for node in (top or {}).get("children_spec", ())[1:2]:
            if node["type"] == "builtins.dict":
                for name in json.loads(node["context"]):
                    check_name(name)


# --- errors -------------------------------------------------------------------------------------------------


def _named(path: Path, error: TranspileError) -> TranspileError:
    (problem,) = error.problems
    refused = "is refused" if problem.code == "unsafe-pt2" else "is not a readable .pt2 file"
    return TranspileError(problem.code, f"{path.name} {refused}: {problem.message}", hints=problem.hints)


def _damaged(path: Path, error: Exception) -> TranspileError:
    from transpiler.export_errors import first_line

    return TranspileError(
        "bad-pt2",
        f"{path.name} is not a readable .pt2 file: {first_line(error)}",
        hints=["write it with torch.export.save(torch.export.export(model.eval(), args), path)"],
    )
