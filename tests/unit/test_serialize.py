import contextlib
import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import everything
from hypothesis import given
from hypothesis import strategies as st

from transpiler.errors import TranspileErrors
from transpiler.ir import Program
from transpiler.serialize import from_json, load_graph, save_graph, to_json
from transpiler.text import print_program


@pytest.fixture(scope="module")
def program() -> Program:
    return everything()


def test_round_trip(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "m.graph.json"
    save_graph(path, program)
    assert (tmp_path / "m.graph.safetensors").exists()
    loaded = load_graph(path)
    assert print_program(loaded) == print_program(program)
    for before, after in zip(program.main.values(), loaded.main.values(), strict=True):
        assert dataclasses.astuple(before) == dataclasses.astuple(after)
    for key, array in program.constants.items():
        assert loaded.constants[key].dtype == array.dtype
        assert loaded.constants[key].tobytes() == array.tobytes()


def test_same_bytes(program: Program, tmp_path: Path) -> None:
    save_graph(tmp_path / "a.graph.json", program)
    save_graph(tmp_path / "b.graph.json", load_graph(tmp_path / "a.graph.json"))
    assert (tmp_path / "a.graph.json").read_bytes() == (tmp_path / "b.graph.json").read_bytes()


def test_small_constants_are_inline(program: Program) -> None:
    constants = to_json(program)["constants"]
    assert "data" in constants["block.shift"]
    assert "data" not in constants["table"]


def test_missing_safetensors(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "m.graph.json"
    save_graph(path, program)
    (tmp_path / "m.graph.safetensors").unlink()
    with pytest.raises(TranspileErrors, match="constant 'table' is missing"):
        load_graph(path)


FORWARD = ("functions", "forward")


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("format",), "onnx", '"format" is'),
        (("version",), 2, "version 2 is not known"),
        (("functions",), {}, "there is no function"),
        ((*FORWARD, "nodes", 0, "op"), "os.system", "unknown op 'os.system'; known:"),
        ((*FORWARD, "nodes", 0, "op"), ["relu"], "unknown op"),
        ((*FORWARD, "nodes", 0, "attributes"), {"x": 1}, "has no attribute"),
        ((*FORWARD, "nodes", 2, "attributes", "shape"), ["a"], "attribute shape"),
        ((*FORWARD, "nodes", 2, "attributes", "shape"), [{"dim": "open('x')"}], "not a size"),
        ((*FORWARD, "nodes", 2, "attributes", "shape"), {"eval": "1"}, "unknown attribute"),
        ((*FORWARD, "nodes", 0, "inputs"), ["nothing"], "undefined value 'nothing'"),
        ((*FORWARD, "nodes", 0, "inputs"), [["x"]], "undefined value"),
        ((*FORWARD, "nodes", 0, "inputs"), [], "bad"),
        ((*FORWARD, "nodes", 0, "outputs", 0, "name"), "x;import os", "is not an identifier"),
        ((*FORWARD, "nodes", 0, "outputs", 0, "name"), "ünsafe", "is not an identifier"),
        ((*FORWARD, "inputs", 4, "name"), "x", "second time"),
        ((*FORWARD, "nodes", 0, "outputs", 0, "path"), "a\nimport os", "is not a short line"),
        ((*FORWARD, "nodes", 0, "outputs", 0, "hint"), "x" * 10000, "is not a short line"),
        ((*FORWARD, "nodes", 0, "outputs", 0, "location"), ["a", "b", "c", "d", "e"], "location"),
        ((*FORWARD, "nodes", 0, "outputs", 0, "shape"), [-4, 4], "is not a size"),
        ((*FORWARD, "nodes", 0, "outputs", 0, "shape"), [1] * 99, "rank"),
        ((*FORWARD, "nodes", 0, "outputs", 0, "shape"), [True, 4], "is not a size"),
        ((*FORWARD, "inputs", 0, "shape"), [2**40, 4], "at most 2147483647 elements"),
        ((*FORWARD, "inputs", 0, "role"), "admin", "unknown role"),
        ((*FORWARD, "inputs", 0, "key"), 3, "is not a short line"),
        ((*FORWARD, "inputs", 3, "key"), "other", "constant 'other' is missing"),
        ((*FORWARD, "outputs", 0, "value"), "q", "undefined value"),
        ((*FORWARD, "out_structure"), {"record": [["x y", {"leaf": 0}]], "type": "A"}, "identifiers"),
        ((*FORWARD, "out_structure"), {"leaf": 7}, "does not name each"),
        ((*FORWARD, "symbols"), {"batch": [1]}, "range"),
        ((*FORWARD, "symbols"), {"a b": [1, 2]}, "not an identifier"),
        (("constants", "block.shift", "data"), [1, 2], "does not fit"),
        (("constants", "block.shift", "data"), ["1", 2, 3, 4], "does not fit"),
        (("constants", "block.shift", "shape"), [2, 2], "float32"),
        (("constants", "table", "shape"), [10**12], "float32"),
    ],
)
def test_refused(program: Program, where: tuple[Any, ...], value: Any, message: str) -> None:
    data = json.loads(json.dumps(to_json(program)))
    inside = data
    for key in where[:-1]:
        inside = inside[key]
    inside[where[-1]] = value
    with pytest.raises(TranspileErrors) as info:
        from_json(data, program.constants)
    assert info.value.problems[0].code == "bad-graph"
    if message != "bad":
        assert message in str(info.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"format": "transpiler-graph"}', "[" * 100000])
def test_not_a_graph(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.graph.json"
    path.write_text(text)
    with pytest.raises(TranspileErrors):
        load_graph(path)


def _places(data: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [here, *(place for key, item in items for place in _places(item, (*here, key)))]


DATA = json.loads(json.dumps(to_json(everything())))
JUNK = [None, True, -1, 2**70, 1.5, "x y", "", [], {}, [[]], {"dim": "a//0"}, {"leaf": -1}]


@given(st.sampled_from([place for place in _places(DATA) if place]), st.sampled_from(JUNK))
def test_damage_never_crashes(place: tuple[Any, ...], junk: Any) -> None:
    data = copy.deepcopy(DATA)
    inside = data
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = junk
    with contextlib.suppress(TranspileErrors):  # and nothing else
        from_json(data, {"table": np.arange(300, dtype=np.float32)})
