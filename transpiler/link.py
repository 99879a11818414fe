"""Kernel objects + the plan's table + the C runtime -> one shared library, by the system's C compiler."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from transpiler.dims import Dim, SymbolRange, c_text, floordiv, product
from transpiler.errors import TranspileError
from transpiler.ir import TensorType, Value
from transpiler.naming import c_comment, c_string, checked_symbol, comment, source_line
from transpiler.plan import Call, Kernel, KernelPlan, Storage, View
from transpiler.resources import tree
from transpiler.target import load_target

# The part of the runtime that is the same in every library, and the part that carries the package's name.
SHARED_FILES = ("runtime.c", "pool.c")
# Compiled for the instruction set of the kernels.
RATES_FILE = "rates.c"
# Linked if a kernel calls one of their functions, which all have this prefix.
SPECIAL_FILES = ("special_bessel.c", "special_error.c", "special_gamma.c", "special_polynomials.c")
SPECIAL_PREFIX = b"tp_math_"
RUNTIME_FILES = (
    "runtime.h", "exports.c", *SHARED_FILES, RATES_FILE,
    "special.h", "special_cephes.h", "special_tables.h", *SPECIAL_FILES,
)  # fmt: skip
# fmt: off
COMPILE = (
    "-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections",
)
LINK = (
    "-shared", "-Wl,--gc-sections", "-Wl,--no-undefined", "-Wl,-z,now", "-Wl,-z,nodelete",
    "-Wl,-z,noexecstack", "-Wl,--build-id=none", "-s", "-lm", "-lpthread",
)
# fmt: on
ITEM_BYTES = {
    "float64": 8,
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}  # fmt: skip
_STORAGE = {"input": "TP_INPUT", "output": "TP_OUTPUT", "weight": "TP_WEIGHT"} | {
    "arena": "TP_ARENA",
    "block": "TP_BLOCK",
    "state": "TP_STATE",
}


@dataclass(frozen=True)
class Linked:
    """A library for one ISA and the C text of its plan."""

    library: bytes
    plan_source: str


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
    bytes: int
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
    state_bytes: int
    symbols: tuple[SymbolView, ...] = ()


# --- the plan in C ----------------------------------------------------------------------------------------


def type_bytes(type: TensorType) -> Dim:
    """Bytes of a dense tensor."""
    return ITEM_BYTES[type.dtype] * product(type.shape)


def storage_of(plan: KernelPlan, value: Value) -> Storage:
    """Where `value` lives; a view lives where its input does unless the plan says otherwise."""
    if value.name not in plan.storage:
        views = {step.output.name: step.input for step in plan.steps if isinstance(step, View)}
        while value.name not in plan.storage:
            value = views[value.name]
    return plan.storage[value.name]


def render_plan(plans: Sequence[KernelPlan], title: str) -> str:
    """The C text of plan.c, a plan per function."""
    environment = Environment(
        loader=FileSystemLoader(tree("templates") / "runtime" / "cpu"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("plan.c.jinja").render(plan=_plan_view(plans, title))


def _plan_view(plans: Sequence[KernelPlan], title: str) -> PlanView:
    kernels = plans[0].kernels
    symbols = symbol_views(plans)
    return PlanView(
        title=c_comment(title),
        kernels=tuple(_kernel_view(kernel, symbols) for kernel in kernels),
        functions=tuple(_function_view(plan, symbols) for plan in plans),
        max_arguments=max((len(kernel.inputs) + len(kernel.outputs) for kernel in kernels), default=0),
        weight_bytes=plans[0].weight_bytes,
        state_bytes=plans[0].state_bytes,
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
        UpdateView(
            offsets[key], type_bytes(value.type), _fields(storage_of(plan, value)), c_comment(f"{key} = {value.name}")
        )
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


UNBOUNDED = 2**31 - 1  # the largest value of a symbol that has no bound of its own: kernels count in 32 bits


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
            views.append(MeasuredView(elements, ITEM_BYTES[value.dtype], f"{kind}[{index}]", c_string(name)))
    for index, block in enumerate(plan.blocks):
        elements = c_text(floordiv(block.size, block.width), names)
        views.append(MeasuredView(elements, block.width, f"block[{index}]", c_string(block.name)))
    return tuple(views)


def output_names(plan: KernelPlan) -> tuple[str, ...]:
    """A name per flat output: the user's variable where there is one and it is unique, else `output<i>`."""
    hints = [value.hint for value in plan.outputs]
    return tuple(
        hint if hint and hint.isidentifier() and hints.count(hint) == 1 else f"output{index}"
        for index, hint in enumerate(hints)
    )


def _tensor_view(name: str, value: Value) -> TensorView:
    size = type_bytes(value.type)
    return TensorView(c_string(name), size if isinstance(size, int) else 0, c_comment(str(value.type)))


def _kernel_view(kernel: Kernel, symbols: Mapping[str, SymbolView]) -> KernelView:
    parameters = ["const void *"] * len(kernel.inputs) + ["void *"] * len(kernel.outputs)
    workspace = kernel.workspace != 0
    own = tuple(symbols[name] for name in kernel.symbols)
    names = {name: symbols[name].variable for name in kernel.symbols}
    arguments = [f"a[{index}]" for index in range(len(parameters) + workspace + kernel.checks_index)]
    arguments += [f"(int32_t)s[{symbol.index}]" for symbol in own]
    parameters += ["void *workspace"] * workspace + ["int32_t *status"] * kernel.checks_index
    parameters += [f"int32_t {symbol.variable}" for symbol in own]
    sizes = [type_bytes(type) for type in (*kernel.inputs, *kernel.outputs)]
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


# --- compiling and linking --------------------------------------------------------------------------------


def c_compiler() -> tuple[str, ...]:
    """The command of the C compiler: $CC (with its arguments), else the first of cc, gcc and clang.

    Raises:
        TranspileError: "no-c-compiler".
    """
    chosen = shlex.split(os.environ.get("CC", ""))
    for command in [chosen] if chosen else [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(command[0])
        if path:
            return (path, *command[1:])
    tried = f"CC={os.environ['CC']} was not found" if chosen else "none of cc, gcc and clang was found"
    raise TranspileError(
        "no-c-compiler",
        f"A C compiler is needed to link the kernels; {tried}.",
        hints=("Install one (`apt-get install gcc`), or name yours: `CC=/path/to/cc transpile ...`.",),
    )


@cache
def shared_objects(compiler: tuple[str, ...]) -> tuple[bytes, ...]:
    """runtime.c and pool.c, compiled once per process; a build can start it while the kernels are being made.

    Raises:
        TranspileError: "link-failed".
    """
    return _compiled(compiler, SHARED_FILES)


@cache
def rates_object(compiler: tuple[str, ...], isa: str) -> tuple[bytes, ...]:
    """rates.c for an instruction set, whose multiply-adds it measures. Raises TranspileError "link-failed"."""
    chosen = load_target("cpu", isa).isa
    # -std=c11 would compute a multiply-add in two steps.
    options = (f"-march={chosen.mcpu}", f"-DTP_VECTOR_BYTES={chosen.vector_bits // 8}", "-ffp-contract=fast")
    return _compiled((*compiler, *options), [RATES_FILE])


@cache
def special_objects(compiler: tuple[str, ...]) -> tuple[bytes, ...]:
    """The special functions, compiled once per process. Raises TranspileError "link-failed"."""
    return _compiled(compiler, SPECIAL_FILES)


def _compiled(compiler: tuple[str, ...], files: Sequence[str]) -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory(prefix="transpile-runtime-") as folder:
        work = _work_folder(folder)
        _run([*compiler, *COMPILE, "-c", *files], work)
        return tuple((work / file).with_suffix(".o").read_bytes() for file in files)


def link_library(objects: Sequence[bytes], plans: Sequence[KernelPlan], name: str, isa: str) -> Linked:
    """One shared library that exports the C ABI as `<name>_<isa>_*` and needs libc only.

    The same objects, plan and compiler give the same bytes. Symbols that the objects share (TVM's weak
    context pointers, float16 helpers) are merged.

    Raises:
        TranspileError: "no-c-compiler"; "link-failed" with what the compiler printed.
    """
    prefix = f"{checked_symbol(name)}_{checked_symbol(isa)}_"
    source = render_plan(plans, f"{name} for {isa}")
    compiler = c_compiler()
    with tempfile.TemporaryDirectory(prefix="transpile-link-") as folder:
        work = _work_folder(folder)
        (work / "plan.c").write_text(source, encoding="utf-8")
        (work / "exports.map").write_text(f"{{ global: {prefix}*; local: *; }};\n", encoding="ascii")
        special = special_objects(compiler) if any(SPECIAL_PREFIX in item for item in objects) else ()
        linked = [*shared_objects(compiler), *rates_object(compiler, isa), *special, *objects]
        names = [f"object{index}.o" for index in range(len(linked))]
        for file, content in zip(names, linked, strict=True):
            (work / file).write_bytes(content)
        define = f"-DTRANSPILE_PREFIX={prefix}"
        output = ["-Wl,--version-script=exports.map", "-o", "out.so"]
        _run([*compiler, *COMPILE, define, "plan.c", "exports.c", *names, *output, *LINK], work)
        return Linked((work / "out.so").read_bytes(), source)


def _work_folder(folder: str) -> Path:
    for file in RUNTIME_FILES:
        shutil.copyfile(tree("templates") / "runtime" / "cpu" / file, Path(folder) / file)
    return Path(folder)


def _run(command: Sequence[str], work: Path) -> None:
    # What it prints is shown to the user: no translations.
    env = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TranspileError(
            "link-failed",
            "The C compiler could not link the kernels.",
            notes=tuple(comment(line) for line in done.stderr.splitlines()[:20]),
            hints=("Check that it works and that libc's headers are there (`apt-get install libc6-dev`).",),
        )
