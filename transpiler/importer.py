"""From an exported program to the neutral op graph, through the importers that the ops register."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Node as FxNode

from transpiler.boundary import Unknown, mutated_buffers
from transpiler.capture import Captured
from transpiler.dims import SymbolRange, free_symbols, symbol_places
from transpiler.errors import Problem, TranspileErrors
from transpiler.ir import (
    Array,
    Graph,
    IRError,
    Node,
    Output,
    Program,
    Role,
    SymbolicShapeError,
    TensorType,
    Value,
    verify,
)
from transpiler.op_context import OpContext, UnsupportedUseError, tensors
from transpiler.ops import ATEN, Op, OpError
from transpiler.ops.complex_pairs import COMPLEX, Pair, complex_importer
from transpiler.problems import NotImported
from transpiler.symbols import dtype_name, same_type, tensor_type, to_dim
from transpiler.taps import Origin
from transpiler.weights import storage_aliases


@dataclass(frozen=True)
class Imported:
    """A program and its ties to PyTorch.

    `taps` maps each module path (`fc#2` for the second call) to the value that is its output, `fx_names` each
    value to the FX node that computes it, `argument_names` are the names of the positional arguments,
    `integer_bounds` the largest index that is safe for an integer input that looks up an embedding, `random` the value
    that stands for each FX node whose numbers are drawn.
    """

    program: Program
    taps: Mapping[str, str]
    fx_names: Mapping[str, str]
    argument_names: tuple[str, ...] = ()
    integer_bounds: Mapping[str, tuple[int, int]] | None = None
    warnings: tuple[str, ...] = ()
    random: Mapping[str, str] = field(default_factory=dict)


def import_program(
    captured: Captured, name: str = "forward", state: Collection[str] = (), *, rng: bool = False
) -> Imported:
    """Translate the captured FX graph into a program of one function called `name`.

    Buffers that it writes, and those in `state` (other functions write them), become state. With `rng`, operations
    that draw random numbers get a generator of our own.

    Raises:
        TranspileErrors: everything in the model that has no counterpart, all at once: operators, dtypes,
            sizes, containers.
        IRError: an op's type rule disagrees with PyTorch (a bug of the op).
    """
    return _Importer(captured, name, state, rng).run()


def import_functions(captures: Sequence[Captured], *, rng: bool = False) -> tuple[Program, tuple[Imported, ...]]:
    """Import every captured function of one model into a program; what one of them writes is state of all.

    Raises:
        TranspileErrors: everything that has no counterpart, of all functions at once.
    """
    state = frozenset[str]().union(*map(mutated_buffers, captures))
    imports: list[Imported] = []
    problems: list[Problem] = []
    for captured in captures:
        try:
            imports.append(import_program(captured, captured.function, state, rng=rng))
        except NotImported as error:
            if len(captures) == 1:
                raise
            problems.extend(item for item in error.problems if item not in problems)
    if problems:
        raise TranspileErrors(problems)
    functions: dict[str, Graph] = {}
    constants: dict[str, Array] = {}
    for imported in imports:
        graph = imported.program.main
        renamed = {key: _shared_key(constants, graph.name, key, data) for key, data in _constants_of(imported)}
        constants.update({renamed[key]: data for key, data in _constants_of(imported)})
        inputs = tuple(
            replace(item, key=renamed[item.key]) if item.role is Role.CONSTANT else item for item in graph.inputs
        )
        functions[graph.name] = replace(graph, inputs=inputs)
    return Program(functions, constants, imports[0].program.aliases), tuple(imports)


def _constants_of(imported: Imported) -> list[tuple[str, Array]]:
    return list(imported.program.constants.items())


def _shared_key(constants: Mapping[str, Array], function: str, key: str, data: Array) -> str:
    """The key of a constant in the program: its own, unless another function has other data there."""
    held = constants.get(key)
    if held is None or (held.dtype, held.shape, held.tobytes()) == (data.dtype, data.shape, data.tobytes()):
        return key
    return f"{key}.{function}"


# FX calls without a meaning of their own: checks that export has already decided.
_CHECKS = ("_assert", "sym_constrain_range", "_assert_async", "_assert_scalar", "_assert_tensor_metadata")
# Arguments that say where and how a tensor is stored; a value of the graph has neither.
_PLACEMENT = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking"})


class _Importer(OpContext):
    """One import."""

    def __init__(self, captured: Captured, name: str, state: Collection[str], rng: bool) -> None:
        super().__init__(captured, state, rng)
        self.name = name

    # --- the whole ------------------------------------------------------------------------------------------

    def run(self) -> Imported:
        aliases = storage_aliases(self.exported.state_dict)
        in_structure = self.import_inputs(aliases)
        for node in self.fx_nodes:
            if node.op == "call_function":
                self._import_call(node)
            elif node.op == "get_attr":
                self.env[node] = Unknown()  # a subgraph: its user is reported
        outputs, out_structure = self.import_outputs()
        symbols = self._symbols()
        problems = self.problems.found()
        if problems:
            raise NotImported(problems, self._understood())
        graph = Graph(
            self.name,
            tuple(sorted(self.inputs, key=lambda item: _ROLE_ORDER[item.role])),
            tuple(self.nodes),
            outputs,
            in_structure,
            out_structure,
            symbols,
        )
        verify(graph)
        program = Program({self.name: graph}, self.constants, aliases)
        taps = {
            path: self.env[node].name
            for path, node in self.module_outputs.items()
            if isinstance(self.env.get(node), Value)
        }
        return Imported(
            program,
            taps,
            self.fx_names,
            self.argument_names(),
            self.integer_bounds(),
            (*self.captured.warnings, *self.warnings),
            self._random_values(),
        )

    def _random_values(self) -> dict[str, str]:
        """FX node -> the value that it was imported as, for nodes that draw random numbers and their elements."""
        found: dict[str, str] = {}
        for node in dict.fromkeys(self.random_nodes):
            result = self.env[node]
            for index, value in enumerate(result if isinstance(result, tuple) else (result,)):
                if isinstance(value, Value):
                    found[_owner(node, index, isinstance(result, tuple)).name] = value.name
        return found

    def _symbols(self) -> dict[str, SymbolRange]:
        """The symbols that the user inputs determine; any other that is used is a problem."""
        places = symbol_places([item.value.shape for item in self.inputs if item.role is Role.USER])
        sizes = [dim for item in self.inputs for dim in item.value.shape]
        sizes += [dim for node in self.nodes for value in node.outputs for dim in value.shape]
        used = {name for dim in sizes for name in free_symbols(dim)}
        for name in sorted(used - set(places)):
            self.problems.add(
                "dynamic-shape",
                f"The size {name} varies, but no dimension of an input determines it",
                hint="let a dimension of an input be that size, or a multiple of it",
            )
        return {name: self.ranges.get(name, SymbolRange(1)) for name in sorted(used)}

    def _understood(self) -> Program:
        """What was imported, with every value that nothing reads as an output."""
        graph = Graph("forward", tuple(self.inputs), tuple(self.nodes), (), symbols=self.ranges)
        users = graph.consumers()
        ends = [value for node in self.nodes for value in node.outputs if not users[value.name]]
        return Program({"forward": replace(graph, outputs=tuple(map(Output, ends)))}, self.constants)

    # --- one call -------------------------------------------------------------------------------------------

    def _import_call(self, node: FxNode) -> None:
        meta = node.meta.get("val")
        if node.target is operator.getitem:
            self._import_getitem(node)
            return
        if isinstance(meta, int | torch.SymInt) and not isinstance(meta, bool):
            self._import_size(node, meta)
            return
        target = str(node.target).removeprefix("aten.")
        if target.startswith(_CHECKS) or isinstance(meta, torch.SymBool | bool):
            self.env[node] = None
            return
        args = [self._argument(item) for item in node.args]
        kwargs = {k: self._argument(v) for k, v in node.kwargs.items() if k not in _PLACEMENT}
        if any(isinstance(item, Unknown) for item in _flat([*args, *kwargs.values()])):
            self._check_known(node, target)
            self.env[node] = Unknown()
            return
        if not self._check_known(node, target):
            self.env[node] = Unknown()
            return
        self.current, self.pending = node, []
        importer = self._importer(node, target, [*args, *kwargs.values()])
        if importer is None:
            self.env[node] = Unknown()
            return
        try:
            expected = self.out_types()
            result = importer(self, *args, **kwargs)
        except (OpError, UnsupportedUseError) as error:
            self.problems.add("unsupported-use", f"Unsupported use of '{node.target}': {error}", self.location_of(node))
            self.env[node] = Unknown()
            return
        except SymbolicShapeError as error:
            reason = f"it needs fixed sizes: {error}"
            self.problems.add(
                "unsupported-use", f"Unsupported use of '{node.target}': {reason}", self.location_of(node)
            )
            self.env[node] = Unknown()
            return
        except TranspileErrors as error:
            self.problems.extend(error, self.location_of(node))
            self.env[node] = Unknown()
            return
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            where = self.location_of(node)
            raise IRError(f"importer of '{node.target}' failed at {where}: {type(error).__name__}: {error}") from error
        self.env[node] = self._finish(node, result, expected)

    def _importer(self, node: FxNode, target: str, args: Sequence[Any]) -> Callable[..., Any] | None:
        """The importer of the call, or None after noting that there is none for complex numbers."""
        complex_args = any(isinstance(item, Pair | complex) for item in _flat(args))
        if not complex_args and not any(value.is_complex() for value in tensors(node)):
            if target not in ATEN:
                self.problems.add_operator(str(node.target), self.location_of(node))
            return ATEN.get(target)
        found = complex_importer(target)
        if found is None:
            self.problems.add(
                "unsupported-use",
                f"Unsupported use of '{node.target}': of complex numbers",
                self.location_of(node),
                hint="torch.view_as_real(x), x.real and x.imag give the parts; compute with them",
            )
        return found

    def _check_known(self, node: FxNode, target: str) -> bool:
        """Report what can be said without importing: the operator itself and the dtypes of its results."""
        known = target in ATEN or target in COMPLEX
        if not known:
            self.problems.add_operator(str(node.target), self.location_of(node))
        for value in tensors(node):
            if not value.is_complex():
                known &= self.type_of(value, f"result of '{node.target}'", self.location_of(node)) is not None
        return known

    def _import_getitem(self, node: FxNode) -> None:
        source, index = node.all_input_nodes[0], node.args[1]
        assert isinstance(index, int)
        value = self.env[source]
        if isinstance(value, tuple | list):
            value = value[index]
        elif isinstance(value, Value | Pair) and index != 0:
            raise IRError(f"'{source}' was imported as one value, but its element {index} is used")
        self.env[node] = value
        if isinstance(value, Value | Pair):
            self._check_type(
                f"'{node.name}'", value, tensor_type(node.meta["val"], self.symbol_names), node.meta["val"]
            )

    def _import_size(self, node: FxNode, meta: Any) -> None:
        if str(node.target).startswith(("aten.item", "aten._local_scalar_dense")):
            if _only_checked(node):
                self.warnings.append(f"An assertion on the values of tensors is not checked: {self.location_of(node)}")
            else:
                self.problems.add_operator(str(node.target), self.location_of(node))
            self.env[node] = Unknown()
            return
        try:
            self.env[node] = to_dim(meta, self.symbol_names)
        except TranspileErrors as error:
            self.problems.extend(error, self.location_of(node))
            self.env[node] = Unknown()

    def _finish(self, node: FxNode, result: Any, expected: tuple[TensorType, ...]) -> Any:
        """Name the nodes that were emitted for `node` and check the result against PyTorch's types."""
        results = list(result) if isinstance(result, tuple | list) else [result]
        wishes: dict[str, _Wish] = {}
        for index, value in enumerate(results):
            owner = _owner(node, index, len(results) > 1 or isinstance(node.meta.get("val"), tuple | list))
            origin = self.origins.get(owner.name)
            if isinstance(value, Value):
                wishes.setdefault(value.name, _Wish(origin, self.paths.get(owner), owner))
            elif isinstance(value, Pair):
                wishes.setdefault(value.real.name, _Wish(origin, None, None, "_real"))
                wishes.setdefault(value.imag.name, _Wish(origin, None, None, "_imag"))
        renamed: dict[str, Value] = {}
        for item in self.pending:
            outputs = tuple(self._named(value, item.op, wishes.get(value.name), node) for value in item.outputs)
            renamed.update({old.name: new for old, new in zip(item.outputs, outputs, strict=True)})
            inputs = tuple(renamed.get(value.name, value) for value in item.inputs)
            self.nodes.append(Node(item.op, inputs, outputs))
        self.pending = []
        final: list[Any] = []
        for value in results:
            if isinstance(value, Pair):
                final.append(Pair(*(renamed.get(part.name, part) for part in (value.real, value.imag))))
            else:
                final.append(renamed.get(value.name, value) if isinstance(value, Value) else value)
        values = [value for value in final if value is not None]
        for index, (value, type_, tensor) in enumerate(zip(values, expected, tensors(node), strict=False)):
            self._check_type(f"'{node.target}' ({node.name}) #{index}", value, type_, tensor)
        return tuple(final) if isinstance(result, tuple | list) else final[0]

    def _named(self, value: Value, op: Op, wish: _Wish | None, node: FxNode) -> Value:
        location = self.location_of(node)
        if wish is None:
            return replace(value, name=self.names.unique(op.name), location=location)
        hint = wish.origin.hint if wish.origin else None
        label = hint or (wish.origin.label if wish.origin else None) or op.name
        name = self.names.unique(label + wish.suffix)
        named = replace(value, name=name, path=wish.path, location=location, hint=None if wish.suffix else hint)
        if wish.owner is not None and isinstance(wish.owner.meta.get("val"), torch.Tensor):
            self.fx_names[named.name] = wish.owner.name
        return named

    def _argument(self, item: Any) -> Any:
        if isinstance(item, FxNode):
            return self.env[item]
        if isinstance(item, list | tuple):
            return [self._argument(part) for part in item]
        if isinstance(item, torch.dtype):
            return dtype_name(item)
        if isinstance(item, torch.SymInt):
            return to_dim(item, self.symbol_names)
        if isinstance(item, torch.device | torch.layout | torch.memory_format):
            return str(item).removeprefix("torch.")
        return item

    def _check_type(self, what: str, value: Any, expected: TensorType, meta: torch.Tensor) -> None:
        """The importer's result against PyTorch's type."""
        if not isinstance(value, Value | Pair):
            return
        if isinstance(value, Pair) != meta.is_complex():
            raise IRError(f"{what}: imported as {value}, PyTorch says {meta.dtype}")
        for part in (value.real, value.imag) if isinstance(value, Pair) else (value,):
            if not same_type(part.type, expected, self.ranges):
                raise IRError(f"{what}: imported as {part.type}, expected {expected}")


@dataclass(frozen=True)
class _Wish:
    """What a value that an importer returned is called: after `origin`, the module path it is the output of, the FX
    node that stands for it; the parts of a complex value have a suffix instead.
    """

    origin: Origin | None
    path: str | None
    owner: FxNode | None
    suffix: str = ""


_ROLE_ORDER = {role: index for index, role in enumerate(Role)}


def _only_checked(node: FxNode) -> bool:
    """Whether what `node` computes, a number, is looked at by assertions alone."""
    if node.op == "output":
        return False
    if str(node.target).removeprefix("aten.").startswith(_CHECKS):
        return True
    is_number = not isinstance(node.meta.get("val"), torch.Tensor | tuple | list)
    return is_number and all(map(_only_checked, node.users))


def _owner(node: FxNode, index: int, several: bool) -> FxNode:
    """The FX node that stands for output `index`: its getitem if the node has several."""
    if several:
        for user in node.users:
            if user.target is operator.getitem and user.args[1] == index:
                return user
    return node


def _flat(items: Sequence[Any]) -> list[Any]:
    return [leaf for item in items for leaf in (_flat(item) if isinstance(item, list | tuple) else [item])]
