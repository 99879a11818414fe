import pytest

from transpiler.dims import SymbolRange
from transpiler.errors import UsageError
from transpiler.specs import (
    DynamicSpec,
    InitSpec,
    InputSpec,
    parse_dynamic,
    parse_init,
    parse_inits,
    parse_input,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1x3x224x224", InputSpec(None, (1, 3, 224, 224))),
        ("1x3x224x224:float16", InputSpec(None, (1, 3, 224, 224), "float16")),
        ("ids=1x128:int64[0..30521]", InputSpec("ids", (1, 128), "int64", 0, 30521)),
        ("n=4:int8[-3..-1]", InputSpec("n", (4,), "int8", -3, -1)),
        ("scalar:float64", InputSpec(None, (), "float64")),
        ("mask = 2x2 : bool", InputSpec("mask", (2, 2), "bool")),
        ("0x3", InputSpec(None, (0, 3))),
    ],
)
def test_input(text: str, expected: InputSpec) -> None:
    assert parse_input(text) == expected
    assert parse_input(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x=",
        "1xx2",
        "-1x3",
        "1x3:",
        "1x3:complex64",
        "1x3:float32[0..4]",
        "3:int8[5..2]",
        "a b=c",
        "1.x=3",
    ],
)
def test_bad_input(text: str) -> None:
    with pytest.raises(UsageError) as info:
        parse_input(text)
    assert info.value.code == "bad-input"
    assert "for example: --input" in str(info.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=3", 3),
        ("k=[2, 2]", [2, 2]),
        ("k=relu", "relu"),
        ("k=None", None),
        ("k='3'", "3"),
        ("k=a=b", "a=b"),
    ],
)
def test_init(text: str, value: object) -> None:
    assert parse_init(text) == InitSpec("k", value)


def test_init_never_evaluates() -> None:
    assert parse_init("k=__import__('os')").value == "__import__('os')"


@pytest.mark.parametrize("text", ["k", "=3", "a-b=3"])
def test_bad_init(text: str) -> None:
    with pytest.raises(UsageError):
        parse_init(text)


def test_inits() -> None:
    assert parse_inits(["a=1", "b=x"]) == {"a": 1, "b": "x"}
    with pytest.raises(UsageError, match="given twice"):
        parse_inits(["a=1", "a=2"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x.0=batch", DynamicSpec("x", 0, "batch")),
        ("ids.1=seq:1..512", DynamicSpec("ids", 1, "seq", SymbolRange(1, 512))),
        ("ids.1=seq:2..", DynamicSpec("ids", 1, "seq", SymbolRange(2, None))),
    ],
)
def test_dynamic(text: str, expected: DynamicSpec) -> None:
    assert parse_dynamic(text) == expected


@pytest.mark.parametrize("text", ["x=batch", "x.a=b", "x.0=", "x.0=2b", "x.0=b:5..2", "x.0=b:5"])
def test_bad_dynamic(text: str) -> None:
    with pytest.raises(UsageError, match="for example: --dynamic"):
        parse_dynamic(text)
