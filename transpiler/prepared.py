"""`prepare.py` from the plan's prepare graph, and its execution at build time: the very emitted text."""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from transpiler.checks import is_float
from transpiler.errors import Problem, TranspileErrors
from transpiler.ir import Array, Graph, Node, Role, Value
from transpiler.naming import Namer
from transpiler.plan import KernelPlan
from transpiler.resources import tree
from transpiler.templates import render


@dataclass(frozen=True)
class PrepareView:
    """`imports` are the functions of runtime/host.py in use; `lines` one statement each; `numpy`: they use np."""

    imports: tuple[str, ...]
    lines: tuple[str, ...]
    numpy: bool


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
    """The statements of `prepare`: tensor by tensor, each is computed, put into its place and forgotten.

    Raises:
        ValueError: a node whose op has no host expression, or an input that is neither weight nor constant: a
            bug of the pass that split off `prepare`.
    """
    return _Statements(plan.prepare).view(plan)


class _Statements:
    """Writes the nodes of a prepare graph as statements; a tensor that is read once stands where it is read."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.namer = Namer({"np", "npt", "Any", "Array", "Mapping", "prepare", "state", "constants", "out"})
        for name in sorted(host_functions()):
            self.namer.take(name)
        self.makers = {value.name: node for node in graph.nodes for value in node.outputs}
        self.inputs = {item.value.name: item for item in graph.inputs}
        self.uses = Counter(value.name for node in graph.nodes for value in node.inputs)
        self.uses.update(output.value.name for output in graph.outputs)
        self.texts: dict[str, str] = {}
        self.local: dict[str, str] = {}  # the values that have a name of their own
        self.pending: list[Value] = []  # what the statement to come reads
        self.lines: list[str] = []
        self.imports = {"put"}
        for item in graph.inputs:
            if item.role not in (Role.PARAMETER, Role.BUFFER, Role.CONSTANT):
                raise ValueError(f"prepare has the {item.role} input {item.key!r}")

    def view(self, plan: KernelPlan) -> PrepareView:
        for value, output in zip(plan.weights, _outputs(plan), strict=True):
            text = self.text_of(output.value)
            self.lines.append(f"put(out[{value.name!r}], {text})")
            self.forget([*self.pending, output.value])
            self.pending = []
        imports = tuple(sorted(self.imports & {"put", *host_functions()}))
        return PrepareView(imports, tuple(self.lines), "np" in self.imports)

    def text_of(self, value: Value) -> str:
        """An expression for `value`, whose statements are written."""
        for node in self.needed(value):
            self.write(node, value)
        if value.name in self.inputs:
            return self.input_text(value, once=self.uses[value.name] == 1)
        return self.texts[value.name]

    def needed(self, value: Value) -> list[Node]:
        """The nodes that make `value` and are not written yet, in the graph's order."""
        wanted, stack = set(), [value.name]
        while stack:
            node = self.makers.get(stack.pop())
            if node is not None and node.outputs[0].name not in self.texts and node.outputs[0].name not in wanted:
                wanted.add(node.outputs[0].name)
                stack.extend(item.name for item in node.inputs)
        return [node for node in self.graph.nodes if node.outputs[0].name in wanted]

    def write(self, node: Node, result: Value) -> None:
        """A statement for `node`, or only its text if it is nothing but the result that was asked for."""
        marks = [f"argument_{index}" for index in range(len(node.inputs))]
        probe = node.op.host(*marks)
        if probe is None:
            raise ValueError(f"{node.op.name} is part of prepare, but has no host expression")
        found = Counter(item.id for item in ast.walk(ast.parse(probe, mode="eval")) if isinstance(item, ast.Name))
        arguments = []
        for mark, value in zip(marks, node.inputs, strict=True):
            once = found[mark] == 1 and self.uses[value.name] == 1
            arguments.append(self.input_text(value, once=once) if value.name in self.inputs else self.texts[value.name])
        expression = node.op.host(*arguments)
        assert expression is not None
        self.imports |= found.keys()
        if len(node.outputs) == 1 and node.outputs[0].name == result.name and self.uses[result.name] == 1:
            self.texts[result.name] = ast.unparse(ast.parse(expression, mode="eval"))  # no parentheses around it
            self.pending.extend(node.inputs)
            return
        targets = ", ".join(self.bind(value) for value in node.outputs)
        self.lines.append(f"{targets} = {expression}")
        self.forget(node.inputs)

    def bind(self, value: Value) -> str:
        """A name for `value`."""
        self.texts[value.name] = self.local[value.name] = self.namer.take(value.name)
        return self.texts[value.name]

    def input_text(self, value: Value, *, once: bool) -> str:
        """A tensor of the state_dict: by its key if that is read `once`, else by a name."""
        item = self.inputs[value.name]
        read = f"{'constants' if item.role is Role.CONSTANT else 'state'}[{item.key!r}]"
        if value.name in self.local:
            return self.local[value.name]
        if once:
            return read
        self.lines.append(f"{self.bind(value)} = {read}")
        return self.local[value.name]

    def forget(self, values: Sequence[Value]) -> None:
        """Count these uses; a matrix that has no other is no longer held."""
        for value in values:
            self.uses[value.name] -= 1
            if self.uses[value.name] == 0 and len(value.shape) > 1 and value.name in self.local:
                self.lines.append(f"del {self.local[value.name]}")


def weights_mark(target: str) -> str:
    """The entry of a weights file's metadata that tells the `weights_key` of a target. C programs read the CPU's."""
    return "transpile.prepared" if target == "cpu" else f"transpile.prepared.{target}"


def weights_key(name: str, plan: KernelPlan) -> str:
    """What a weights file in the layout of this plan calls itself: other layouts, and other ways to get there, have
    other keys."""
    layout = [
        [value.name, value.dtype, list(map(str, value.shape)), plan.storage[value.name].offset]
        for value in plan.weights
    ]
    text = json.dumps([layout, plan.weight_bytes, prepare_view(plan).lines])
    return f"{name} {plan.target} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _outputs(plan: KernelPlan) -> Sequence[Any]:
    """The prepare graph's outputs in the order of `plan.weights`."""
    by_name = {output.value.name: output for output in plan.prepare.outputs}
    return [by_name[value.name] for value in plan.weights]


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

    text = render("src/__name__/prepare.py.jinja", None, View())

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
    prepare: Callable[..., None] = namespace["prepare"]
    out = {
        value.name: np.empty(value.type.static_shape(), runtime_module("safetensors").storage_dtype(value.dtype))
        for value in plan.weights
    }
    prepare(_bits(state), _bits(constants), out)
    _check_range(plan, state, constants, out)
    return out


def _check_range(
    plan: KernelPlan, state: Mapping[str, Array], constants: Mapping[str, Array], out: Mapping[str, Array]
) -> None:
    """Raises TranspileErrors for every finite weight that is infinite as the half float that it is stored as."""
    made_of = prepared_keys(plan)
    problems = []
    for value in plan.weights:
        keys = made_of[value.name]
        if not runtime_module("host").overflows(out[value.name], value.dtype):
            continue
        # What is made of constants alone may have been infinite there.
        sources = [state[key] for key in keys] or constants.values()
        given = [array.astype(np.float32) for array in sources if is_float(array.dtype.name)]
        if all(np.isfinite(array).all() for array in given):
            largest = max((float(np.abs(array).max(initial=0.0)) for array in given), default=0.0)
            name = " with ".join(keys) or "A constant of the model"
            problems.append(
                Problem(
                    "weight-out-of-range",
                    f"{name} is out of the range of {value.dtype}: it has {largest:.6g}.",
                    hints=("use --precision bfloat16, which has the range of float32",),
                )
            )
    if problems:
        raise TranspileErrors(problems)


def _bits(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """bfloat16 as the uint16 that the package holds it as."""
    return {key: array.view(np.uint16) if array.dtype.name == "bfloat16" else array for key, array in arrays.items()}
