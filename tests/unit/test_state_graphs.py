"""Programs with state and several functions: text form, JSON form, interpreter, and files that are refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from transpiler.errors import TranspileError
from transpiler.interpreter import run_graph
from transpiler.ir import IRError, verify
from transpiler.serialize import from_json, to_json
from transpiler.text import print_program
from transpiler.text_parser import parse_program

TEXT = """constant "total"

func add_up(
  %x: float32[2] user "x",
  %total: float32[2] state "total",
  %calls: float32[] state "calls",
  %one: float32[] parameter "one",
) {
  %new: float32[2] = add(%total, %x)
  %count: float32[] = add(%calls, %one)
  return %total, %new -> "total", %count -> "calls"
}

func peek(
  %scale: float32[2] user "scale",
  %total: float32[2] state "total",
) {
  %y: float32[2] = mul(%total, %scale)
  return %y
}
"""
CONSTANTS = {"total": np.zeros(2, np.float32)}
WEIGHTS = {"calls": np.float32(5).reshape(()), "one": np.float32(1).reshape(())}


def test_forms_read_back_to_the_same_program() -> None:
    program = parse_program(TEXT, CONSTANTS)
    assert print_program(program) == TEXT
    assert print_program(from_json(to_json(program))) == TEXT
    assert program.main.name == "add_up"
    assert list(program.states()) == ["total", "calls"]


def test_the_interpreter_carries_state() -> None:
    program = parse_program(TEXT, CONSTANTS)
    state: dict[str, np.ndarray[Any, Any]] = {}
    x = np.array([1, 2], np.float32)
    (before,) = run_graph(program, WEIGHTS, [x], state=state)
    assert before.tolist() == [0, 0]
    (before,) = run_graph(program, WEIGHTS, [x], state=state)
    assert (before.tolist(), state["total"].tolist(), float(state["calls"])) == ([1, 2], [2, 4], 7.0)
    assert run_graph(program, WEIGHTS, [x], function="peek", state=state)[0].tolist() == [2, 8]
    assert run_graph(program, WEIGHTS, [x], function="peek")[0].tolist() == [0, 0]
    assert not CONSTANTS["total"].any()


def _with(change: Any) -> dict[str, Any]:
    data = copy.deepcopy(to_json(parse_program(TEXT, CONSTANTS)))
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["functions"].update({"load_weights": d["functions"].pop("peek")}), "cannot be called"),
        (lambda d: d["functions"].update({"x; import os": d["functions"].pop("peek")}), "not an identifier"),
        (lambda d: d["functions"]["add_up"]["outputs"][1].update(state="nothing"), "not a state"),
        (lambda d: d["functions"]["add_up"]["outputs"][1].update(state="calls"), "updated twice|its update"),
        (lambda d: d["functions"]["peek"]["inputs"][1].update(role="constant"), "total"),
        (lambda d: d["functions"]["peek"]["inputs"][1].update(shape=[3]), "."),
        (lambda d: d["functions"].clear(), "there is no function"),
    ],
)
def test_damaged_files_are_refused(change: Any, message: str) -> None:
    with pytest.raises(TranspileError, match=message):
        from_json(_with(change))


def test_the_verifier_knows_states() -> None:
    graph = parse_program(TEXT, CONSTANTS).main
    verify(graph)
    doubled = copy.copy(graph)
    object.__setattr__(doubled, "outputs", (*graph.outputs, graph.outputs[1]))
    with pytest.raises(IRError, match="updated twice"):
        verify(doubled)
