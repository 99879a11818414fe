"""docs/operators.md shows what the registry holds today, and its layers are what packages are made of."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from transpiler.capture import capture_module
from transpiler.importer import import_program
from transpiler.lower import kernel_name
from transpiler.passes import run_passes
from transpiler.passes.fusion import GroupStep, partition
from transpiler.passes.weights import split
from transpiler.target import load_target

DOCS = Path(__file__).parents[2] / "docs"


def script(name: str) -> Any:
    """A module of docs/, which is no package."""
    if str(DOCS) not in sys.path:
        sys.path.append(str(DOCS))
    return importlib.import_module(name)


LAYERS = [layer for layers in script("layer_table").LAYERS.values() for layer in layers]


def test_the_operators_are_fresh() -> None:
    shown = (DOCS / "operators.md").read_text()
    assert shown == script("make_operators").page(), "write it anew with python docs/make_operators.py"


def test_importers_are_followed_to_their_ops() -> None:
    from transpiler.ops import ATEN

    def ops(overload: str) -> list[str]:
        return [op.name for op in script("importer_survey").survey(ATEN[overload]).ops]

    assert ops("exp.default") == ["exp"]  # registered by a helper, through a closure
    assert ops("clone.default") == []
    assert ops("celu.default") == ["elu"]  # through a lambda
    assert {"slice", "mul", "sigmoid"} <= set(ops("glu.default"))  # through functions of another module
    assert script("importer_survey").survey(ATEN["poisson.default"]).always


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_a_layer_is_what_the_table_says(layer: Any) -> None:
    imported = import_program(capture_module(layer.make().eval(), layer.inputs()))
    prepare, main = split(run_passes(imported.program).main)
    assert list(dict.fromkeys(node.op.name for node in prepare.nodes)) == list(layer.packed)
    steps = partition(main, load_target("cpu", "avx2"))
    names = [kernel_name(step.group) for step in steps if isinstance(step, GroupStep)]
    assert tuple(dict.fromkeys(re.sub(r"_?[\dx]+$", "", name) for name in names)) == layer.kernels
