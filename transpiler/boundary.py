"""The boundary of an import: inputs and outputs with their roles, names, nesting, and what is known about
them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node as FxNode

from transpiler.capture import Captured
from transpiler.errors import Location, TranspileErrors
from transpiler.ir import DTYPES, Array, Input, Output, Role, TensorType, Value
from transpiler.ops.complex_pairs import Pair
from transpiler.problems import ProblemList
from transpiler.signature import to_structure
from transpiler.structure import Leaf, Literal, Structure
from transpiler.symbols import dtype_name, symbol_ranges, tensor_type
from transpiler.taps import Names, innermost, module_outputs, origins
from transpiler.weights import to_numpy

_COMPLEX_INPUT = "take it as real numbers, torch.view_as_real(x), and begin forward with torch.view_as_complex(x)"
_COMPLEX_WEIGHT = "keep it as real numbers, torch.view_as_real(w); a constant can be a buffer with persistent=False"
_COMPLEX_OUTPUT = "return its parts: torch.view_as_real(y), y.real, y.abs(); inside of a model complex numbers are fine"


class Unknown:
    """Stands for the result of something that was not imported; its users are not reported again."""


MUTATIONS = frozenset({OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION})


def mutated_buffers(captured: Captured) -> frozenset[str]:
    """The state_dict keys (and names of other buffers) that the function writes.

    Not what is assigned to itself, as by `self.table = self.table.to(device)`.
    """
    signature = captured.exported_program.graph_signature
    own = {str(spec.target): spec.arg.name for spec in signature.input_specs if spec.target is not None}
    written = [spec for spec in signature.output_specs if spec.kind in MUTATIONS]
    return frozenset(str(spec.target) for spec in written if spec.arg.name != own.get(str(spec.target)))


class Boundary:
    """State of one import, and the part of it that deals with inputs and outputs."""

    def __init__(self, captured: Captured, state: Collection[str] = ()) -> None:
        self.captured = captured
        self.exported = captured.exported_program
        self.state = frozenset(state) | mutated_buffers(captured)
        self.fx_nodes: Sequence[FxNode] = list(self.exported.graph.nodes)
        self.files = captured.files
        self.origins = origins(self.fx_nodes, self.files)
        self.module_outputs = module_outputs(self.fx_nodes)
        self.paths = innermost(self.module_outputs)
        self.names = Names()
        self.symbol_names = dict(captured.symbol_names)
        self.ranges = {
            name: captured.symbol_bounds.get(name, bounds)
            for name, bounds in symbol_ranges(self.exported.range_constraints, self.symbol_names).items()
        }
        self.problems = ProblemList()
        self.warnings: list[str] = []
        self.env: dict[FxNode, Any] = {}
        self.inputs: list[Input] = []
        self.constants: dict[str, Array] = {}
        self.fx_names: dict[str, str] = {}

    def import_inputs(self, aliases: Mapping[str, str]) -> Structure | None:
        placeholders = [node for node in self.fx_nodes if node.op == "placeholder"]
        specs = self.exported.graph_signature.input_specs
        pairs = list(zip(placeholders, specs, strict=True))
        leaves: list[Structure] = []
        # User inputs first: they keep the user's names where a weight would have the same.
        for node, spec in pairs:
            if spec.kind is InputKind.USER_INPUT:
                leaves.append(self._user_input(node, spec))
        stored: dict[str, Value] = {}
        for node, spec in pairs:
            if spec.kind is not InputKind.USER_INPUT:
                self._weight_input(node, spec, aliases, stored)
        try:
            return to_structure(self.exported.call_spec.in_spec, iter(leaves))
        except TranspileErrors as error:
            self.problems.extend(error)
            return None

    def _user_input(self, node: FxNode, spec: Any) -> Structure:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            count = sum(item.role is Role.USER for item in self.inputs)
            kind = self.type_of(value, f"input {node.name!r}", None)
            if kind is None:
                self.env[node] = Unknown()
                return Leaf(count)
            self.env[node] = self.add_input(node.name, node.name, Role.USER, kind, node)
            return Leaf(count)
        literal = getattr(spec.arg, "value", value)
        self.env[node] = literal
        if isinstance(literal, None | bool | int | float | str):
            return Literal(literal)
        self.problems.add(
            "unsupported-input",
            f"Unsupported input {node.name!r} of type {type(literal).__name__}",
            hint="pass tensors; numbers are fixed when the model is traced",
        )
        return Literal(None)

    def _weight_input(self, node: FxNode, spec: Any, aliases: Mapping[str, str], stored: dict[str, Value]) -> None:
        target = str(spec.target)
        state, constants = self.exported.state_dict, self.exported.constants
        if spec.kind is InputKind.PARAMETER or (spec.kind is InputKind.BUFFER and target in state):
            key = aliases.get(target, target)
            role = Role.PARAMETER if spec.kind is InputKind.PARAMETER else Role.BUFFER
            tensor = state[key]
        elif isinstance(constants.get(target), torch.Tensor):
            key, role, tensor = target, Role.CONSTANT, constants[target]
            tensor = tensor.detach().clone() if target in self.state else tensor
        else:
            kind = type(constants.get(target)).__name__
            self.problems.add("unsupported-constant", f"Unsupported constant {target!r} of type {kind}")
            self.env[node] = Unknown()
            return
        if target in self.state:
            self.constants.update({key: to_numpy(tensor)} if role is Role.CONSTANT else {})
            role = Role.STATE
        elif tensor.is_complex() and role is Role.CONSTANT:
            self.env[node] = self._complex_constant(key, tensor)
            return
        if key not in stored:
            type_ = self.type_of(tensor, f"{role} {key!r}", None)
            if type_ is None:
                self.env[node] = Unknown()
                return
            stored[key] = self.add_input(_weight_name(key), key, role, type_, node)
            if role is Role.CONSTANT:
                self.constants[key] = to_numpy(tensor)
        self.env[node] = stored[key]

    def _complex_constant(self, key: str, tensor: torch.Tensor) -> Pair:
        """A complex constant (precomputed rotations) as two constants of the package."""
        parts = torch.view_as_real(tensor.detach().resolve_conj())
        values = []
        for index, name in enumerate(("real", "imag")):
            part = parts[..., index].contiguous()
            label = f"{key}.{name}"
            kind = TensorType(dtype_name(part.dtype), tuple(part.shape))
            values.append(self.add_input(_weight_name(label), label, Role.CONSTANT, kind, None))
            self.constants[label] = to_numpy(part)
        return Pair(values[0], values[1])

    def add_input(self, wish: str, key: str, role: Role, type_: TensorType, node: FxNode | None) -> Value:
        value = Value(self.names.unique(wish), type_, hint=key if role is Role.USER else None)
        self.inputs.append(Input(value, role, key))
        if node is not None:
            self.fx_names[value.name] = node.name
        return value

    def import_outputs(self) -> tuple[tuple[Output, ...], Structure | None]:
        (output,) = (node for node in self.fx_nodes if node.op == "output")
        results = output.args[0]
        assert isinstance(results, tuple | list)
        items: list[Any] = list(results)
        specs = self.exported.graph_signature.output_specs
        outputs: list[Output] = []
        updates: list[Output] = []
        leaves: list[Structure] = []
        for item, spec in zip(items, specs, strict=True):
            if spec.kind in MUTATIONS:
                new = self.env.get(item)
                if isinstance(new, Value) and str(spec.target) in self.state:
                    updates.append(Output(new, str(spec.target)))
                continue
            if spec.kind is OutputKind.USER_INPUT_MUTATION:
                self.problems.add(
                    "mutated-input",
                    f"forward changes its input {spec.target!r} in place, and a package does not write its inputs",
                    self.location_of(item) if isinstance(item, FxNode) else None,
                    hint=f"begin with {spec.target} = {spec.target}.clone(), and return it if the caller needs it",
                )
            if spec.kind is not OutputKind.USER_OUTPUT:
                continue
            value = self.env.get(item) if isinstance(item, FxNode) else item
            if isinstance(value, Value):
                leaves.append(Leaf(len(outputs)))
                outputs.append(Output(value))
            elif isinstance(value, Pair):
                leaves.append(Literal(None))
                self.problems.add(
                    "unsupported-dtype",
                    f"Output {len(leaves) - 1} is complex",
                    self.location_of(item) if isinstance(item, FxNode) else None,
                    hint=_COMPLEX_OUTPUT,
                )
            elif isinstance(value, None | bool | int | float | str):
                leaves.append(Literal(value))
            elif isinstance(value, Unknown):
                leaves.append(Literal(None))
            else:
                leaves.append(Literal(None))
                self.problems.add(
                    "unsupported-output",
                    f"Output {len(leaves) - 1} is a size ({value}), not a tensor",
                    hint="return the tensor, and read its shape outside of the model",
                )
        try:
            return (*outputs, *updates), to_structure(self.exported.call_spec.out_spec, iter(leaves))
        except TranspileErrors as error:
            self.problems.extend(error)
            return (), None

    def location_of(self, node: FxNode) -> Location | None:
        origin = self.origins.get(node.name)
        return origin.location if origin else None

    def type_of(self, value: torch.Tensor, what: str, location: Location | None) -> TensorType | None:
        """The tensor's type, or None after noting why it has none here."""
        if dtype_name(value.dtype) not in DTYPES:
            complex_hint = _COMPLEX_INPUT if what.startswith("input") else _COMPLEX_WEIGHT
            hint = complex_hint if value.is_complex() else None
            message = f"Unsupported dtype {dtype_name(value.dtype)} of {what}"
            self.problems.add("unsupported-dtype", message, location, hint=hint)
            return None
        if value.layout is not torch.strided:
            self.problems.add("unsupported-layout", f"Unsupported layout {value.layout} of {what}", location)
            return None
        try:
            return tensor_type(value, self.symbol_names)
        except TranspileErrors as error:
            self.problems.extend(error, location)
            return None

    def argument_names(self) -> tuple[str, ...]:
        calls = self.exported.module_call_graph
        signature = calls[0].signature if calls else None
        args_spec = self.exported.call_spec.in_spec
        count = len(args_spec.children()[0].children()) if args_spec is not None else 0
        names = list(getattr(signature, "forward_arg_names", None) or [])[:count]
        return tuple(names + [f"arg_{index}" for index in range(len(names), count)])

    def integer_bounds(self) -> dict[str, tuple[int, int]]:
        """User input -> (0, rows - 1) of the smallest table that it is looked up in, through reshapes and
        casts."""
        bounds: dict[str, tuple[int, int]] = {}
        users = {item.value.name for item in self.inputs if item.role is Role.USER}
        for node in self.fx_nodes:
            value = self.env.get(node)
            if not isinstance(value, Value) or value.name not in users or "int" not in value.dtype:
                continue
            stack, seen, sizes = [node], {node}, []
            while stack:
                for user in stack.pop().users:
                    if user.target is torch.ops.aten.embedding.default:
                        sizes.append(int(user.all_input_nodes[0].meta["val"].shape[0]))
                    elif str(user.target).startswith(_SAME_ELEMENTS) and user not in seen:
                        seen.add(user)
                        stack.append(user)
            if sizes:
                bounds[value.name] = (0, min(sizes) - 1)
        return bounds


_SAME_ELEMENTS = tuple(
    f"aten.{name}."
    for name in ("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "expand", "slice", "select",
                 "clone",                 "_to_copy", "transpose", "permute", "flatten",
          "contiguous", "alias")
)  # fmt: skip


def _weight_name(key: str) -> str:
    """`layer1.0.conv1.weight` -> `layer1_0_conv1_weight`."""
    return key.replace(".", "_")
