"""Names and texts that come from outside: none becomes code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit import toy
from tests.unit.alone import runs
from transpiler.emit import emit_package, make_view, write_package
from transpiler.errors import UsageError
from transpiler.interface import call_arguments
from transpiler.naming import Namer, c_string, comment, docstring, identifier, package_name


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    evil = 'x"""\nimport os; os.abort()\n"""\\'
    source = replace(
        toy.SourceFacts(), file=evil, model_class=evil, docstring=evil, arguments={"forward": (evil, "input")}
    )
    view = make_view(
        name="toy", program=toy.program(), parts=[toy.part()], source=source, tool_versions={evil: evil},
    )  # fmt: skip
    package = write_package(emit_package(view), tmp_path / "toy")
    runs(package, "Model()([x], ids=ids)")
    manifest = json.loads((package / "src/toy/manifest.json").read_text())
    assert manifest["tools"] == {evil: evil}
    assert manifest["built"]["cpu"]["verified"] is False


@pytest.mark.parametrize("name", ["", "class", "a-b", "1a", "ä", "a b", "../a", "__init__", "print", "net_", "class_"])
def test_bad_package_names(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name") as caught:
        package_name(name)
    (hint,) = caught.value.problems[0].hints
    proposed = hint.removesuffix(".").rpartition(" ")[2]
    assert package_name(proposed) == proposed


@pytest.mark.parametrize("name", ["time", "test", "numpy", "stdint", "c", "m"])
def test_names_of_other_libraries(name: str) -> None:
    with pytest.raises(UsageError, match="of another Python or C library") as caught:
        package_name(name)
    assert f"--name {name}_model." in caught.value.problems[0].hints[0]


def test_names() -> None:
    assert identifier("layer1.0.conv", "value") == "layer1_0_conv"
    assert identifier("0.weight", "value") == "value_0_weight"
    assert identifier("class", "value") == "class_"
    assert identifier("ä", "value") == "value"
    namer = Namer({"w"})
    assert [namer.take(name) for name in ("x", "x", "w", "x.y")] == ["x", "x_2", "w_2", "x_y"]
    assert comment("a\n b\x00\u2028c  d") == "a b c d"
    assert c_string('a"\\\n?ä') == '"a\\042\\134\\012\\077\\303\\244"'
    for text in ('"', '""""', "\\", 'a\\"', "x\n  y\n\n  z\\"):
        assert isinstance(eval(f'"""{docstring(text)}"""'), str)


def test_parameters_keep_their_names() -> None:
    x, y = (replace(item, key=key) for item, key in zip(toy.plan().inputs, ("input", "class"), strict=True))
    assert [argument.name for argument in call_arguments(None, (x, y))] == ["input", "class_"]
    assert [argument.name for argument in call_arguments(None, (x, y), ("type", "type"))] == [
        "type",
        "type_",
    ]
