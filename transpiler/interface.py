"""The typed `__call__` of a generated model: arguments and results nest as they do in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transpiler.ir import Input, Value
from transpiler.naming import Namer, docstring, identifier, is_parameter
from transpiler.structure import Leaf, Literal, Mapping_, Sequence_, Structure, leaves

# Names that a parameter of __call__ or forward must not shadow.
PARAMETER_RESERVED = frozenset(
    {
        "self",
        "k",
        "w",
        "s",
        "np",
        "Any",
        "Array",
        "ArrayLike",
        "Cells",
        "Kernels",
        "Model",
        "NamedTuple",
        "Package",
        "Path",
        "Record",
        "Weights",
    }
    | {"dataclass", "prepare_weights", "out", "Mapping", "Sequence"}
)
MAX_UNPACKED = 8


@dataclass(frozen=True)
class Argument:
    """A parameter of `__call__`."""

    name: str
    structure: Structure
    keyword_only: bool


@dataclass(frozen=True)
class FieldView:
    name: str
    key: str
    annotation: str


@dataclass(frozen=True)
class RecordView:
    """A class of results; a namedtuple or a `Record`."""

    name: str
    named_tuple: bool
    fields: tuple[FieldView, ...]


@dataclass(frozen=True)
class CallView:
    """`unpack` is the assignment target for the flat outputs ("" if there are too many: `out` then), `infer` the call
    that gives them. `bound` are the parameters that are inputs."""

    parameters: str
    bound: str
    returns: str
    doc: str
    unpack: str
    infer: str
    result: str
    flat: str


def call_arguments(
    structure: Structure | None, inputs: Sequence[Input], names: Sequence[str] = ()
) -> tuple[Argument, ...]:
    """The parameters from `(args, kwargs)`.

    Positional ones are called as in the user's `forward` (`names`), else after what their tensors are called.
    A keyword keeps its name, which is checked to be an identifier.

    Raises:
        ValueError: a structure that is not (args, kwargs), or a keyword that is no identifier.
    """
    if structure is None:
        structure = Sequence_(
            "tuple",
            (Sequence_("tuple", tuple(Leaf(index) for index in range(len(inputs)))), Mapping_("dict", ())),
        )
    match structure:
        case Sequence_(_, (Sequence_(_, positional), Mapping_(_, keywords))):
            pass
        case _:
            raise ValueError(f"the inputs' structure is not (args, kwargs): {structure}")
    taken = {"self", *(key for key, _ in keywords)}
    arguments = []
    for index, item in enumerate(positional):
        flat = [inputs[leaf].key for leaf in leaves(item)]
        common = _common_name(flat)
        wanted = names[index] if index < len(names) else common
        if not is_parameter(wanted) or wanted in taken:
            wanted = Namer(taken).take(wanted, f"arg{index}")
        taken.add(wanted)
        arguments.append(Argument(wanted, item, False))
    for key, item in keywords:
        if not is_parameter(key):
            raise ValueError(f"keyword {key!r} cannot be a parameter's name")
        arguments.append(Argument(key, item, True))
    return tuple(arguments)


def _common_name(keys: Sequence[str]) -> str:
    """`states` for states_0 and states_1; the key itself if there is one."""
    if len(keys) < 2:
        return "".join(keys)
    low, high = min(keys), max(keys)
    same = next((index for index, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:same].rstrip("_.0123456789[")


def interface(
    arguments: Sequence[Argument], inputs: Sequence[Input], outputs: Sequence[Value], names: Sequence[str],
    out_structure: Structure | None, records: Records, function: str = "forward", note: str = "",
    *, streams: bool = False,
) -> CallView:  # fmt: skip
    """The typed call of a function. `names` are the flat outputs' names; `records` collects the classes of results;
    `note` is a line for the docstring. With `streams` the call takes one, unless an argument is called that."""
    if out_structure is None:
        flat = tuple(Leaf(index) for index in range(len(outputs)))
        out_structure = flat[0] if len(flat) == 1 else Sequence_("tuple", flat)
    returns = records.annotation(out_structure)
    reserved = {
        *PARAMETER_RESERVED,
        *(argument.name for argument in arguments),
        *(r.name for r in records.views),
    }
    namer = Namer(reserved)
    variables = [namer.take(name) for name in names]
    unpack = ""
    if len(variables) <= MAX_UNPACKED:
        unpack = f"({variables[0]},)" if len(variables) == 1 else ", ".join(variables)
    else:
        variables = [f"out[{index}]" for index in range(len(variables))]
    chosen = [] if function == "forward" else [f"function={function!r}"]
    by_index = {item.structure.index: item.name for item in arguments if isinstance(item.structure, Leaf)}
    if len(by_index) == len(arguments):
        flat_names = [by_index[index] for index in range(len(inputs))]
        passed, bound = flat_names, f"[{', '.join(flat_names)}]"
    else:
        nested = f"{{{', '.join(f'{argument.name!r}: {argument.name}' for argument in arguments)}}}"
        bound = f"self.flatten({', '.join([nested, *chosen])})"
        passed = [f"*{bound}"]
    bound_parameters = _parameters(arguments)
    parameters, last = bound_parameters, list(chosen)
    if streams and all(argument.name != "stream" for argument in arguments):
        keywords = any(argument.keyword_only for argument in arguments)
        parameters += f"{'' if keywords else ', *'}, stream: Any = None"
        last.append("stream=stream")
    return CallView(
        parameters=parameters,
        bound=bound_parameters,
        returns=returns,
        doc=_call_doc(arguments, inputs, out_structure, outputs, returns, note),
        unpack=unpack,
        infer=f"self.infer({', '.join([*passed, *last])})",
        result=records.expression(out_structure, variables),
        flat=bound,
    )


def _parameters(arguments: Sequence[Argument]) -> str:
    parts = ["self"]
    positional = [argument for argument in arguments if not argument.keyword_only]
    # A literal may be left out only if everything after it may be as well.
    last_tensor = max((i for i, item in enumerate(positional) if not isinstance(item.structure, Literal)), default=-1)
    for index, argument in enumerate(positional):
        parts.append(_parameter(argument, index > last_tensor))
    keywords = [argument for argument in arguments if argument.keyword_only]
    parts += ["*"] * bool(keywords)
    parts += [_parameter(argument, isinstance(argument.structure, Literal)) for argument in keywords]
    return ", ".join(parts)


def _parameter(argument: Argument, with_default: bool) -> str:
    text = f"{argument.name}: {argument_annotation(argument.structure)}"
    if with_default and isinstance(argument.structure, Literal):
        text += f" = {literal(argument.structure.value)}"
    return text


def argument_annotation(structure: Structure) -> str:
    match structure:
        case Leaf():
            return "ArrayLike"
        case Literal(value):
            return "None" if value is None else type(value).__name__
        case Sequence_("tuple", items):
            return f"tuple[{', '.join(map(argument_annotation, items)) or '()'}]"
        case Sequence_(_, items):
            kinds = sorted(set(map(argument_annotation, items)))
            return f"list[{kinds[0] if len(kinds) == 1 else 'Any'}]"
        case _:
            return "Any"


def literal(value: bool | int | float | str | None) -> str:
    """A Python expression for a literal of a structure."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


class Records:
    """Annotations and expressions of results; collects the record classes they need."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.views: list[RecordView] = []
        self._names: dict[Mapping_, str] = {}
        self._namer = Namer({*PARAMETER_RESERVED, *taken})

    def annotation(self, structure: Structure) -> str:
        match structure:
            case Leaf():
                return "Array"
            case Literal(value):
                return "None" if value is None else type(value).__name__
            case Sequence_("tuple", items):
                return f"tuple[{', '.join(map(self.annotation, items)) or '()'}]"
            case Sequence_(_, items):
                return f"list[{self._common(items)}]"
            case Mapping_("dict", fields):
                return f"dict[str, {self._common(item for _, item in fields)}]"
            case Mapping_(kind, fields, type_name):
                if structure not in self._names:
                    body = tuple(
                        FieldView(_field(key), repr(_field(key)), self.annotation(item)) for key, item in fields
                    )
                    self._names[structure] = self._namer.take(type_name, "Result")
                    self.views.append(RecordView(self._names[structure], kind == "namedtuple", body))
                return self._names[structure]

    def _common(self, items: Iterable[Structure]) -> str:
        kinds = sorted({self.annotation(item) for item in items})
        return kinds[0] if len(kinds) == 1 else "Any"

    def expression(self, structure: Structure, variables: Sequence[str]) -> str:
        match structure:
            case Leaf(index):
                return variables[index]
            case Literal(value):
                return literal(value)
            case Sequence_(kind, items):
                inside = ", ".join(self.expression(item, variables) for item in items)
                if kind == "list":
                    return f"[{inside}]"
                return f"({inside},)" if len(items) == 1 else f"({inside})"
            case Mapping_("dict", fields):
                return f"{{{', '.join(f'{key!r}: {self.expression(item, variables)}' for key, item in fields)}}}"
            case Mapping_(_, fields, _):
                inside = ", ".join(f"{_field(key)}={self.expression(item, variables)}" for key, item in fields)
                return f"{self._names[structure]}({inside})"


# What a field must not be called: the methods of a mapping and of a tuple.
_METHODS = frozenset({"get", "keys", "values", "items", "count", "index"})


def _field(key: str) -> str:
    name = identifier(key, "field")
    return f"{name}_" if name in _METHODS else name


def _call_doc(
    arguments: Sequence[Argument],
    inputs: Sequence[Input],
    out: Structure,
    outputs: Sequence[Value],
    returns: str,
    note: str,
) -> str:
    lines = ["Run the model; numpy arrays and CPU tensors in, numpy arrays out.", ""]
    lines += [note, ""] if note else []
    if arguments:
        lines.append("Args:")
        for argument in arguments:
            types = ", ".join(str(inputs[leaf].value.type) for leaf in leaves(argument.structure))
            if isinstance(argument.structure, Literal):
                types = f"always {argument.structure.value!r}"
            lines.append(f"    {argument.name}: {types or 'no tensors'}.")
        lines.append("")
    types = ", ".join(str(outputs[leaf].type) for leaf in leaves(out))
    lines += ["Returns:", f"    {types if returns == 'Array' else f'{returns}: {types}'}."]
    lines += [
        "",
        "Raises:",
        "    TypeError, ValueError: an argument that does not fit; the text says what was expected.",
    ]
    body = [docstring(line) if line.strip() == line else "    " + docstring(line) for line in lines]
    return "\n".join(
        [
            body[0],
            *(f"        {line}" if line else "" for line in "\n".join(body[1:]).split("\n")),
            "        ",
        ]
    )
