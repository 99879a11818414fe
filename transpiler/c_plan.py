"""The plan in C: the context of the template of plan.c, which the runtime is linked with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transpiler.dims import Dim, SymbolRange, c_text, floordiv, product
from transpiler.ir import Value
from transpiler.naming import c_comment, c_string, checked_symbol, source_line
from transpiler.plan import Call, Kernel, KernelPlan, Storage, output_names, storage_of
from transpiler.prepared import weights_key
from transpiler.templates import render_c

UNBOUNDED = 2**31 - 1  # the largest value of a symbol that has no bound of its own: kernels count in 32 bits
_STORAGE = {
    "input": "TP_INPUT", "output": "TP_OUTPUT", "weight": "TP_WEIGHT",
    "arena": "TP_ARENA", "block": "TP_BLOCK", "state": "TP_STATE",
}  # fmt: skip


@dataclass(frozen=True)
class SymbolView:
    """A symbol: its C variable, its place in the array of values, its name as a C string and its bounds."""

    variable: str
    index: int
    text: str
    low: int
    high: int


@dataclass(frozen=True)
class BlockView:
    first: int
    last: int
    comment: str


@dataclass(frozen=True)
class MeasuredView:
    """A tensor whose size the plan computes: the C expression of its elements, their width, where its bytes go."""

    elements: str
    width: int
    target: str
    text: str


@dataclass(frozen=True)
class KernelView:
    name: str
    text: str
    parameters: str
    arguments: str
    bytes: str
    input_count: int
    output_count: int
    workspace: int
    checks_index: int
    in_place: int
    symbols: tuple[SymbolView, ...] = ()
    sizes: tuple[str, ...] = ()
    work: str = "0"


@dataclass(frozen=True)
class ArgumentView:
    fields: str
    comment: str


@dataclass(frozen=True)
class CallView:
    kernel: int
    comment: str
    arguments: tuple[ArgumentView, ...]
    workspace_offset: int
    workspace_block: int
    source: str


@dataclass(frozen=True)
class CopyView:
    output: int
    fields: str
    comment: str


@dataclass(frozen=True)
class UpdateView:
    offset: int
    bytes: Dim
    fields: str
    comment: str


@dataclass(frozen=True)
class TensorView:
    name: str
    type: str
    bytes: int


@dataclass(frozen=True)
class InitialView:
    """A part of the state that begins as a prepared weight."""

    offset: int
    bytes: Dim
    weight_offset: int
    comment: str


@dataclass(frozen=True)
class FunctionView:
    name: str
    comment: str
    calls: tuple[CallView, ...]
    copies: tuple[CopyView, ...]
    updates: tuple[UpdateView, ...]
    inputs: tuple[TensorView, ...]
    outputs: tuple[TensorView, ...]
    arena_bytes: int
    symbols: tuple[SymbolView, ...] = ()
    blocks: tuple[BlockView, ...] = ()
    measured: tuple[MeasuredView, ...] = ()


@dataclass(frozen=True)
class PlanView:
    title: str
    kernels: tuple[KernelView, ...]
    functions: tuple[FunctionView, ...]
    max_arguments: int
    weight_bytes: int
    weights_key: str
    state_bytes: int
    initials: tuple[InitialView, ...] = ()
    symbols: tuple[SymbolView, ...] = ()


def render_plan(plans: Sequence[KernelPlan], name: str, isa: str) -> str:
    """The C text of plan.c for one instruction set of the package `name`, a plan per function."""
    return render_c("plan.c.jinja", _plan_view(plans, name, isa))


def _plan_view(plans: Sequence[KernelPlan], name: str, isa: str) -> PlanView:
    kernels = plans[0].kernels
    symbols = symbol_views(plans)
    return PlanView(
        title=c_comment(f"{name} for {isa}"),
        kernels=tuple(_kernel_view(kernel, symbols) for kernel in kernels),
        functions=tuple(_function_view(plan, symbols) for plan in plans),
        max_arguments=max((len(kernel.inputs) + len(kernel.outputs) for kernel in kernels), default=0),
        weight_bytes=plans[0].weight_bytes,
        weights_key=c_string(weights_key(name, plans[0])),
        state_bytes=plans[0].state_bytes,
        initials=tuple(
            InitialView(slot.offset, slot.value.type.bytes, plans[0].storage[slot.initial].offset, c_comment(slot.key))
            for slot in plans[0].state
            if slot.initial
        ),
        symbols=tuple(symbols.values()),
    )


def _function_view(plan: KernelPlan, symbols: Mapping[str, SymbolView]) -> FunctionView:
    index_of = {kernel.name: index for index, kernel in enumerate(plan.kernels)}
    own = _own_symbols(plan, symbols)
    copies = []
    for index, value in enumerate(plan.outputs):
        storage = storage_of(plan, value)
        if storage.kind != "output" or storage.index != index:
            copies.append(CopyView(index, _fields(storage), c_comment(value.name)))
    offsets = {slot.key: slot.offset for slot in plan.state}
    updates = tuple(
        UpdateView(offsets[key], value.type.bytes, _fields(storage_of(plan, value)), c_comment(f"{key} = {value.name}"))
        for key, value in plan.updates.items()
    )
    return FunctionView(
        name=c_string(plan.function),
        comment=c_comment(plan.function, 64),
        calls=tuple(_call_view(plan, call, index_of) for call in plan.calls()),
        copies=tuple(copies),
        updates=updates,
        inputs=tuple(_tensor_view(item.key, item.value) for item in plan.inputs),
        outputs=tuple(_tensor_view(name, value) for name, value in zip(output_names(plan), plan.outputs, strict=True)),
        arena_bytes=plan.arena_bytes,
        symbols=own,
        blocks=tuple(
            BlockView(block.first, block.last, c_comment(f"{block.name}: {block.size} bytes")) for block in plan.blocks
        ),
        measured=_measured(plan, symbols) if own else (),
    )


def symbol_views(plans: Sequence[KernelPlan]) -> dict[str, SymbolView]:
    """The symbols of all functions by name, in the order of the C ABI; kernels that functions share know one number
    for each. The bounds are 0: those that hold are a function's own."""
    views: dict[str, SymbolView] = {}
    for index, name in enumerate(sorted({name for plan in plans for name in plan.symbols})):
        variable = f"n_{name}" if name.isascii() else f"n_{index}"
        views[name] = SymbolView(variable, index, c_string(name), 0, 0)
    return views


def _own_symbols(plan: KernelPlan, symbols: Mapping[str, SymbolView]) -> tuple[SymbolView, ...]:
    """The symbols up to the plan's last one, with its bounds for those that it has; none if its sizes are fixed."""
    count = max((symbols[name].index + 1 for name in plan.symbols), default=0)
    own = []
    for name, view in list(symbols.items())[:count]:
        bounds = plan.symbols.get(name, SymbolRange(0, 0))
        high = UNBOUNDED if bounds.high is None else min(bounds.high, UNBOUNDED)
        own.append(replace(view, low=bounds.low, high=high))
    return tuple(own)


def _measured(plan: KernelPlan, symbols: Mapping[str, SymbolView]) -> tuple[MeasuredView, ...]:
    names = {name: view.variable for name, view in symbols.items()}
    views = []
    for kind, tensors in (
        ("in", [(item.key, item.value) for item in plan.inputs]),
        ("out", zip(output_names(plan), plan.outputs, strict=True)),
    ):
        for index, (name, value) in enumerate(tensors):
            elements = c_text(product(value.type.shape), names)
            views.append(MeasuredView(elements, value.type.item_bytes, f"{kind}[{index}]", c_string(name)))
    for index, block in enumerate(plan.blocks):
        elements = c_text(floordiv(block.size, block.width), names)
        views.append(MeasuredView(elements, block.width, f"block[{index}]", c_string(block.name)))
    return tuple(views)


def _tensor_view(name: str, value: Value) -> TensorView:
    size = value.type.bytes
    return TensorView(c_string(name), c_string(str(value.type)), size if isinstance(size, int) else 0)


def _kernel_view(kernel: Kernel, symbols: Mapping[str, SymbolView]) -> KernelView:
    parameters = ["const void *"] * len(kernel.inputs) + ["void *"] * len(kernel.outputs)
    workspace = kernel.workspace != 0
    own = tuple(symbols[name] for name in kernel.symbols)
    names = {name: symbols[name].variable for name in kernel.symbols}
    arguments = [f"a[{index}]" for index in range(len(parameters) + workspace + kernel.checks_index)]
    arguments += [f"(int32_t)s[{symbol.index}]" for symbol in own]
    parameters += ["void *workspace"] * workspace + ["int32_t *status"] * kernel.checks_index
    parameters += [f"int32_t {symbol.variable}" for symbol in own]
    sizes = [type.bytes for type in (*kernel.inputs, *kernel.outputs)]
    return KernelView(
        name=checked_symbol(kernel.name),
        text=c_string(kernel.name),
        parameters=", ".join(parameters) or "void",
        arguments=", ".join(arguments),
        bytes=", ".join(map(str, sizes)) or "0",
        input_count=len(kernel.inputs),
        output_count=len(kernel.outputs),
        workspace=int(workspace),
        checks_index=int(kernel.checks_index),
        in_place=int(kernel.in_place),
        symbols=own,
        sizes=tuple(c_text(size, names) for size in sizes) if own else (),
        work=c_text(kernel.flops, names) if own else "0",
    )


def _call_view(plan: KernelPlan, call: Call, index_of: Mapping[str, int]) -> CallView:
    arguments = tuple(
        ArgumentView(_fields(storage_of(plan, value)), c_comment(f"{role} {value.name}: {value.type}"))
        for role, values in (("in", call.inputs), ("out", call.outputs))
        for value in values
    )
    where = source_line(call.covers[-1]) if call.covers else "no source line"
    return CallView(
        kernel=index_of[call.kernel],
        comment=c_comment(f"{call.kernel}, {where}"),
        arguments=arguments or (ArgumentView("TP_ARENA, 0, 0", "none"),),
        workspace_offset=0 if plan.blocks else call.workspace_offset,
        workspace_block=call.workspace_offset if plan.blocks and plan.kernel(call.kernel).workspace != 0 else -1,
        source=c_string(where),
    )


def _fields(storage: Storage) -> str:
    return f"{_STORAGE[storage.kind]}, {storage.index}, {storage.offset}"
