import dataclasses
import re

import pytest
from graphs import everything

from transpiler.errors import TranspileError
from transpiler.ir import Program
from transpiler.text import print_attribute, print_graph, print_program
from transpiler.text_parser import parse_graph, parse_program


@pytest.fixture(scope="module")
def program() -> Program:
    return everything()


def test_round_trip(program: Program) -> None:
    text = print_program(program)
    parsed = parse_program(text, program.constants)
    assert print_program(parsed) == text
    assert parsed.functions == program.functions
    assert parsed.aliases == program.aliases
    assert list(parsed.constants) == sorted(program.constants)
    for before, after in zip(program.main.values(), parsed.main.values(), strict=True):
        assert dataclasses.astuple(before) == dataclasses.astuple(after)  # what equality leaves out, too


def test_looks(program: Program) -> None:
    assert print_program(program).splitlines()[:11] == [
        'constant "block.shift"',
        'constant "table"',
        'alias "tied.weight" = "fc.weight"',
        "",
        "func forward(",
        '  %x: float32[2*batch, 4] user "x",  # hint "x"',
        '  %fc_weight: bfloat16[4, 4] parameter "fc.weight",',
        '  %state: float32[4] state "cell.state",',
        '  %shift: float32[4] constant "block.shift",',
        '  %table: float32[300] constant "table",',
        ") where batch in 1..16, seq in 2.. {",
    ]
    assert '  %z: float32[8*batch] = reshape(%y) {shape = (`8*batch`,)}  # at "m.py":13' in print_program(program)


def test_graph_round_trip(program: Program) -> None:
    text = print_graph(program.main)
    assert print_graph(parse_graph(text, program.constants)) == text


def test_attributes() -> None:
    value = (1, -2.5, float("inf"), float("-inf"), True, None, 'a"b', (3,), ())
    assert print_attribute(value) == '(1, -2.5, inf, -inf, True, None, "a\\"b", (3,), ())'


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"relu\(", "launch_missiles(", "unknown op 'launch_missiles'; known: "),
        (r"func forward", "function forward", "line 5: expected 'func', found 'function'"),
        (r"%x: float32", "%x: float31", "unknown dtype 'float31'"),
        (r"%act: ", "%class: ", "value 'class' is a Python keyword"),
        (r"relu\(%x\)", "relu(%nothing)", "%nothing is used before its definition"),
        (r" = relu\(%x\)", " = relu(%x) {slope = 3}", "relu has no attribute 'slope'"),
        (r"shape = \(`8\*batch`,\)", 'shape = "wide"', "attribute shape of reshape"),
        (r"float32\[8\*batch\]", "float32[9*batch]", "infers"),
        (r"`8\*batch`", "`__import__(1)`", "not a size"),
        (r"parameter ", "boss ", "unknown role 'boss'"),
        (r'constant "table"\n', "", ""),
        (r"\$1", "$0", "does not name each"),
        (r"return", "return ?", "unexpected '?'"),
        (r"\}\n$", "", "expected '}', found the end"),
        (r"batch in 1", "bitch in 1", "unknown symbol batch"),
    ],
)
def test_refused(program: Program, pattern: str, replacement: str, message: str) -> None:
    text = print_program(program)
    broken = re.sub(pattern, lambda _: replacement, text, count=1)
    assert broken != text
    with pytest.raises(TranspileError) as info:
        parse_program(broken, program.constants)
    assert info.value.code == "bad-graph"
    assert message in str(info.value)
