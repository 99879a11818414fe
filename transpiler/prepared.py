"""`prepare.py` from the plan's prepare graph, and its execution at build time: the very emitted text."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from transpiler.forward import numpy_dtype, shape_text
from transpiler.ir import Array, Graph, Role
from transpiler.naming import Namer
from transpiler.plan import KernelPlan
from transpiler.resources import tree
from transpiler.templates import render


@dataclass(frozen=True)
class ResultView:
    key: str
    name: str
    dtype: str
    shape: str


@dataclass(frozen=True)
class PrepareView:
    """`imports` are the functions of runtime/host.py in use; `lines` one statement each."""

    imports: tuple[str, ...]
    lines: tuple[str, ...]
    results: tuple[ResultView, ...]


@cache
def runtime_module(name: str) -> ModuleType:
    """A module of the emitted runtime that stands alone (host, safetensors), loaded from its template."""
    path = tree("templates") / "package" / "src" / "__name__" / "runtime" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"transpiler._runtime_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@cache
def host_functions() -> frozenset[str]:
    """The public functions of runtime/host.py."""
    host = vars(runtime_module("host"))
    return frozenset(
        name for name, item in host.items() if callable(item) and not name.startswith("_") and name.islower()
    )


def prepare_view(plan: KernelPlan) -> PrepareView:
    """The statements of `prepare`.

    Raises:
        ValueError: a node whose op has no host expression, or an input that is neither weight nor constant: a
            bug of the pass that split off `prepare`.
    """
    graph = plan.prepare
    namer = Namer({"np", "npt", "Any", "Array", "Mapping", "prepare", "state", "constants", *host_functions()})
    names: dict[str, str] = {}
    lines: list[str] = []
    used = _used(graph)
    for item in graph.inputs:
        if item.role not in (Role.PARAMETER, Role.BUFFER, Role.CONSTANT):
            raise ValueError(f"prepare has the {item.role} input {item.key!r}")
        if item.value.name not in used:
            continue
        names[item.value.name] = namer.take(item.value.name)
        source = "constants" if item.role is Role.CONSTANT else "state"
        lines.append(f"{names[item.value.name]} = {source}[{item.key!r}]")
    imports: set[str] = set()
    for node in graph.nodes:
        expression = node.op.host(*(names[value.name] for value in node.inputs))
        if expression is None:
            raise ValueError(f"{node.op.name} is part of prepare, but has no host expression")
        for value in node.outputs:
            names[value.name] = namer.take(value.name)
        targets = ", ".join(names[value.name] for value in node.outputs)
        lines.append(f"{targets} = {expression}")
        imports |= _functions(expression)
    results = tuple(
        ResultView(repr(value.name), names[output.value.name], numpy_dtype(value.dtype), shape_text(value.type))
        for value, output in zip(plan.weights, _outputs(plan), strict=True)
    )
    return PrepareView(tuple(sorted(imports)), tuple(lines), results)


def _outputs(plan: KernelPlan) -> Sequence[Any]:
    """The prepare graph's outputs in the order of `plan.weights`."""
    by_name = {output.value.name: output for output in plan.prepare.outputs}
    return [by_name[value.name] for value in plan.weights]


def _used(graph: Graph) -> set[str]:
    used = {value.name for node in graph.nodes for value in node.inputs}
    return used | {output.value.name for output in graph.outputs}


def _functions(expression: str) -> set[str]:
    names = {node.id for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Name)}
    return names & host_functions()


def prepared_keys(plan: KernelPlan) -> dict[str, list[str]]:
    """Prepared tensor -> the state_dict keys that it is made of, sorted."""
    keys: dict[str, frozenset[str]] = {
        item.value.name: frozenset([item.key] if item.role is not Role.CONSTANT else []) for item in plan.prepare.inputs
    }
    for node in plan.prepare.nodes:
        made_of = frozenset(key for value in node.inputs for key in keys[value.name])
        for value in node.outputs:
            keys[value.name] = made_of
    return {value.name: sorted(keys[value.name]) for value in plan.weights}


def run_prepare(plan: KernelPlan, constants: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, Array]:
    """The prepared tensors by name: runs the text of the emitted `prepare.py` with the emitted `host.py`.

    `state` holds arrays by state_dict key (aliases resolved), bfloat16 as ml_dtypes' or as uint16 bits.

    Raises:
        KeyError: a key of the state_dict is missing.
    """

    class View:
        prepare = prepare_view(plan)

    text = render("src/__name__/prepare.py.jinja", View())

    def relative_import(
        name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] = (), level: int = 0
    ) -> Any:
        if level == 1 and name == "runtime.host":
            return runtime_module("host")
        return builtins.__import__(name, globals, locals, fromlist, level)

    namespace: dict[str, Any] = {
        "__builtins__": {**vars(builtins), "__import__": relative_import},
        "__name__": "prepare",
    }
    exec(compile(text, "<prepare.py>", "exec"), namespace)
    prepare: Callable[..., dict[str, Array]] = namespace["prepare"]
    return prepare(_bits(state), _bits(constants))


def _bits(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """bfloat16 as the uint16 that the package holds it as."""
    return {key: array.view(np.uint16) if array.dtype.name == "bfloat16" else array for key, array in arrays.items()}
