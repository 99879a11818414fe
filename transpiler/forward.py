"""The lines of a generated `forward`, and the methods of the kernels it calls, from a kernel plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from transpiler.dims import free_symbols, rename, symbol_places
from transpiler.ir import TensorType, Value
from transpiler.naming import RESERVED, Namer, comment, docstring, identifier, source_line
from transpiler.plan import Call, Kernel, KernelPlan, View, storage_of

_MODULE_NAMES = frozenset(
    {
        "self",
        "k",
        "w",
        "s",
        "np",
        "npt",
        "Any",
        "Array",
        "ArrayLike",
        "Cells",
        "Kernels",
        "Model",
        "Package",
        "Path",
        "Record",
        "Weights",
    }
    | {"dataclass", "prepare", "prepare_weights", "out"}
)
NUMPY_DTYPES = {"bool": "np.bool_", "bfloat16": "np.uint16"}


def numpy_dtype(dtype: str) -> str:
    """How generated code spells a dtype; bfloat16 is held as uint16."""
    return NUMPY_DTYPES.get(dtype, f"np.{dtype}")


def shape_text(type: TensorType, variables: Mapping[str, str] | None = None) -> str:
    """A shape as a Python tuple; symbols are the `variables` of that name."""
    dims = ", ".join(str(rename(dim, variables or {})) for dim in type.shape)
    return f"({dims},)" if type.rank == 1 else f"({dims})"


@dataclass(frozen=True)
class ForwardView:
    """`state` is the parameter `s` with its comma, if there is one, `parameters` are the flat inputs, `lines` the body,
    `results` the flat outputs."""

    state: str
    parameters: tuple[str, ...]
    lines: tuple[str, ...]
    results: tuple[str, ...]


def forward_view(plan: KernelPlan, methods: Mapping[str, str], extra_reserved: Iterable[str] = ()) -> ForwardView:
    """The body of `forward`. `methods` maps a kernel's symbol to its method of `Kernels`."""
    names = _Names(plan, {*_MODULE_NAMES, *extra_reserved})
    parameters = tuple(names.define(item.value, item.key, -1) for item in plan.inputs)
    variables, lines = _size_lines(plan, names, parameters)
    shown: tuple[str, ...] = ()
    for index, step in enumerate(plan.steps):
        if isinstance(step, View):
            if not names.is_used(step.output):
                continue  # a tap only
            source = names.use(step.input)
            target = names.define(step.output, _wanted(step.output, step.output.name), index)
            lines.append(f"{target} = {source}.reshape({shape_text(step.output.type, variables)})")
            continue
        covered = tuple(dict.fromkeys(source_line(place) for place in step.covers if place.line))
        if covered and covered != shown:
            lines.extend(f"# {line}" for line in covered if line not in shown)
            shown = covered
        read = step.inputs if step.into is None else (*step.inputs, step.into)
        arguments = ", ".join(names.use(value) for value in read)
        targets = [names.define(value, _wanted(value, step.kernel), index) for value in step.outputs]
        shapes = ", ".join(f"[{', '.join(map(str, value.shape))}]" for value in step.outputs)
        call = f"k.{methods[step.kernel]}({arguments})  # {shapes}"
        used = len(targets) > 1 or any(names.is_used(value) for value in step.outputs)
        lines.append(f"{', '.join(targets)} = {call}" if used else call)
    results = []
    for value in plan.outputs:
        results.append(names.use(value))
        if storage_of(plan, value).kind == "state":
            # What the caller gets is no part of the state, which later calls write.
            source = results[-1]
            results[-1] = names.define(value, _wanted(value, "value"), len(plan.steps) - 1)
            lines.append(f"{results[-1]} = {source}.copy()")
    updated = [f"{names.cells[key]}[...] = {names.use(value)}" for key, value in plan.updates.items()]
    return ForwardView(", s: Cells" if plan.state else "", parameters, (*lines, *updated), tuple(results))


def _size_lines(plan: KernelPlan, names: _Names, parameters: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """A variable for every symbol that a reshape needs, and the lines that read them off the inputs."""
    views = [step.output for step in plan.steps if isinstance(step, View) and names.is_used(step.output)]
    needed = {name for value in views for dim in value.shape for name in free_symbols(dim)}
    variables: dict[str, str] = {}
    lines: list[str] = []
    for name, place in symbol_places([item.value.shape for item in plan.inputs]).items():
        if name in needed:
            variables[name] = names.reserve(name)
            size = f"{parameters[place.input]}.shape[{place.dim}]"
            size = f"({size} - {place.offset})" if place.offset else size
            lines.append(f"{variables[name]} = {size}" + f" // {place.scale}" * (place.scale != 1))
    return variables, lines


def _wanted(value: Value, kernel: str) -> str:
    """The user's name for a value, else the last part of its module path, else what its kernel does."""
    if value.hint:
        return value.hint
    if value.path:
        parts = [part for part in value.path.split("#")[0].split(".") if part]
        named = [part for part in parts if not part.isdigit()]
        if parts and parts[-1].isdigit() and named:
            return f"{named[-1]}_{parts[-1]}"
        if named:
            return named[-1]
    return "_".join(part for part in kernel.split("_") if not any(char.isdigit() for char in part)) or "value"


class _Names:
    """Variables of `forward`: a name is handed out again once its value is dead."""

    def __init__(self, plan: KernelPlan, reserved: Iterable[str]) -> None:
        self._namer = Namer(reserved)
        self._names: dict[str, str] = {}
        self._weights = {value.name for value in plan.weights}
        self.cells = {slot.key: member("s", slot.value.name) for slot in plan.state}
        self._states = {slot.value.name: self.cells[slot.key] for slot in plan.state}
        self._last_use: dict[str, int] = {}
        for value in (*plan.outputs, *plan.updates.values()):
            self._last_use[value.name] = len(plan.steps)
        for index, step in reversed(list(enumerate(plan.steps))):
            if isinstance(step, View):
                if step.output.name in self._last_use:  # else it is there for a tap only
                    self._last_use.setdefault(step.input.name, index)
                continue
            for value in (*step.inputs, *([step.into] if step.into is not None else [])):
                self._last_use.setdefault(value.name, index)
        self._holder: dict[str, str] = {}  # variable -> the value it holds

    def reserve(self, wanted: str) -> str:
        """A variable that is never handed out again."""
        return self._namer.take(wanted)

    def is_used(self, value: Value) -> bool:
        return value.name in self._last_use

    def use(self, value: Value) -> str:
        if value.name not in self._names and value.name in self._weights:
            return weight_access(value.name)
        if value.name not in self._names and value.name in self._states:
            return self._states[value.name]
        return self._names[value.name]

    def define(self, value: Value, wanted: str, step: int) -> str:
        base = identifier(wanted, "value")
        held = self._holder.get(base)
        if held is not None and self._last_use.get(held, -1) <= step:
            self._namer.free(base)
        name = self._namer.take(base)
        self._names[value.name] = name
        self._holder[name] = value.name
        return name


def weight_access(name: str) -> str:
    """`w.conv1_weight`, or `w["class"]` where an attribute would not do."""
    return member("w", name)


def member(owner: str, name: str) -> str:
    """A tensor of `w`, the weights, or `s`, the state."""
    plain = name.isascii() and name.isidentifier() and name not in RESERVED and not name.startswith("_")
    methods = ("get", "keys", "values", "items")
    return f"{owner}.{name}" if plain and name not in methods else f"{owner}[{name!r}]"


# --- the methods of Kernels -------------------------------------------------------------------------------


@dataclass(frozen=True)
class OutputView:
    name: str
    shape: str
    dtype: str


@dataclass(frozen=True)
class SizeView:
    """A variable that holds a symbol's value; `key` is the repr of its name."""

    name: str
    key: str


@dataclass(frozen=True)
class KernelMethodView:
    """One method of `Kernels`; `symbol` is the repr of the kernel's name."""

    method: str
    symbol: str
    parameters: tuple[str, ...]
    returns: str
    summary: str
    signature: str
    symbols: tuple[SizeView, ...]
    outputs: tuple[OutputView, ...]
    inputs: str
    results: str
    result: str
    option: str


def kernel_methods(plan: KernelPlan) -> dict[str, str]:
    """Kernel symbol -> method name."""
    namer = Namer({"launch", "plans", "changed"})
    return {kernel.name: namer.take(kernel.name, "kernel") for kernel in plan.kernels}


def kernel_views(plans: Sequence[KernelPlan], methods: Mapping[str, str]) -> tuple[KernelMethodView, ...]:
    calls: dict[str, list[Call]] = {}
    for call in (call for plan in plans for call in plan.calls()):
        calls.setdefault(call.kernel, []).append(call)
    weights = {value.name for value in plans[0].weights}
    return tuple(
        _kernel_view(kernel, calls.get(kernel.name, []), methods[kernel.name], weights) for kernel in plans[0].kernels
    )


def _kernel_view(kernel: Kernel, calls: list[Call], method: str, weights: set[str]) -> KernelMethodView:
    namer = Namer({"self", "np", "npt", "Any", "Array"})
    parameters = tuple(
        namer.take(_parameter([call.inputs[index] for call in calls], index, weights), "x")
        for index in range(len(kernel.inputs))
    )
    single = len(kernel.outputs) == 1
    used = sorted({name for type in kernel.outputs for dim in type.shape for name in free_symbols(dim)})
    variables = {name: namer.take(name) for name in used}
    outputs = tuple(
        OutputView(
            namer.take("out" if single else f"out_{index}"), shape_text(type, variables), numpy_dtype(type.dtype)
        )
        for index, type in enumerate(kernel.outputs)
    )
    names = [output.name for output in outputs]
    if kernel.in_place:
        names, outputs = [namer.take("into")], ()
    inputs = ", ".join(f"{name} {type}" for name, type in zip(parameters, kernel.inputs, strict=True))
    return KernelMethodView(
        method=method,
        symbol=repr(kernel.name),
        parameters=(*parameters, *(names if kernel.in_place else [])),
        returns="Array" if single else f"tuple[{', '.join(['Array'] * len(names))}]" if names else "tuple[()]",
        summary=docstring(kernel.summary or kernel.name),
        signature=docstring(
            f"{inputs or 'nothing'} -> {', '.join(map(str, kernel.outputs))}" + " `into`" * kernel.in_place
        ),
        symbols=tuple(SizeView(variables[name], repr(name)) for name in used),
        outputs=outputs,
        inputs=_tuple(parameters),
        results=_tuple(names),
        result=names[0] if single else f"({_tuple(names)})",
        option=", in_place=True" if kernel.in_place else "",
    )


def _tuple(names: Iterable[str]) -> str:
    """The inside of a tuple display."""
    items = list(names)
    return f"{items[0]}," if len(items) == 1 else ", ".join(items)


def _parameter(values: list[Value], index: int, weights: set[str]) -> str:
    """A name for the `index`-th parameter: what all calls have in common."""
    if not values:
        return f"x{index}"
    if all(value.name in weights for value in values):
        endings = {value.name.rsplit("_", 1)[-1] for value in values}
        for ending in ("weight", "bias"):
            if endings == {ending} or all(ending in value.name.split("_") for value in values):
                return ending
        return values[0].name if len({value.name for value in values}) == 1 else f"weight_{index}"
    hints = {comment(value.hint or "", 60) for value in values}
    return hints.pop() or f"x{index}" if len(hints) == 1 else f"x{index}"
