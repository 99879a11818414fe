"""The device side of kernels that TVM lowered for a GPU -> SPIR-V modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import tirx

from transpiler.errors import Problem, TranspileError, TranspileErrors

from .arithmetic import Arithmetic, Value
from .control import choose, limited
from .dtypes import FEATURES, UINT32, Capability, DType, parse
from .kernel import Binding, Kernel
from .memory import Memory, Storage
from .module import Module, encode, text_words
from .opcodes import GL_COMPUTE, ExecutionMode, Op
from .statements import Statements
from .turns import Turns

BUILD_FUNCTION = "target.build.vulkan"
# How often innermost loops are unrolled where a driver would stop them (see turns.py).
UNROLL = (4, 16)
# Bytes of a module from which on unrolling more costs too much, where nobody knows whether it helps.
LONG = 1 << 16
# What a kernel that has stopped its loops writes into its status word.
STATUS_TURNS = 4
# The features that kernels can do without by taking small elements out of words.
SMALL = {
    FEATURES[item] for item in (Capability.STORAGE_BUFFER_8BIT, Capability.STORAGE_BUFFER_16BIT, Capability.FLOAT16)
}


def _as_function(name: str) -> Callable[[Any], Any]:
    return lambda call: tirx.call_pure_extern(str(call.ty.dtype), name, *call.args)


# TVM would lower `sigmoid` to exp(-x), which overflows, and `round` to ties to even here, though for LLVM they are
# rounded away from zero: that one is refused as the unknown function it becomes.
tirx.op.register_intrin_lowering("tirx.sigmoid", target="vulkan", f=_as_function("sigmoid"), level=99)
tirx.op.register_intrin_lowering("tirx.round", target="vulkan", f=_as_function("tirx.round"), level=99)


def build_kernels(
    module: Any,
    windows: Mapping[str, Mapping[int, int]] | None = None,
    window_bytes: int = 0,
    overlaid: Mapping[str, frozenset[int]] | None = None,
) -> dict[str, Kernel]:
    """The kernels of a device side by name, in its order.

    Args:
        windows: by kernel and parameter, into how many pieces of `window_bytes` a buffer is bound at most; else one.
        overlaid: by kernel, the parameters whose buffers may be the same memory; no others are. TVM's split of the host
            from the device says that none is, of all functions.

    Raises:
        TranspileErrors: what has no SPIR-V, for every kernel that has such a thing; the messages name the kernels.
    """
    kernels, problems = {}, []
    for name, function in module.functions.items():
        symbol = str(function.attrs["global_symbol"]) if "global_symbol" in function.attrs else str(name.name_hint)
        try:
            form = _Form((windows or {}).get(symbol, {}), window_bytes, (overlaid or {}).get(symbol, frozenset()))
            kernels[symbol] = _build_kernel(symbol, function, form)
        except TranspileErrors as error:
            problems += [
                Problem(each.code, f"Kernel {symbol!r}: {each.message}", each.locations, each.notes, each.hints)
                for each in error.problems
            ]
    if problems:
        raise TranspileErrors(problems)
    return kernels


def _build_kernel(name: str, function: Any, form: _Form) -> Kernel:
    """One device function. Raises TranspileError: something in it has no SPIR-V."""
    form = _chosen_form(name, function, form)
    kernel = _build(name, function, form)
    if not SMALL & set(kernel.features):
        return kernel
    written = frozenset(number for number, item in enumerate(kernel.buffers) if item.written)
    try:
        return replace(kernel, packed=_build(name, function, replace(form, packed=True, written=written)))
    except TranspileError:
        return kernel  # it needs arithmetic in 16 bits


@dataclass(frozen=True)
class _Form:
    """How a kernel is written: `windows` of `window_bytes` by parameter; with the parameters that may be `overlaid`;
    for devices without small types (`packed`, with the buffers that are `written`); its innermost loops unrolled;
    counting turns up to `limit` (0: not)."""

    windows: Mapping[int, int]
    window_bytes: int
    overlaid: frozenset[int] = frozenset()
    packed: bool = False
    written: frozenset[int] = frozenset()
    unroll: int = 1
    limit: int = 0


def _chosen_form(name: str, function: Any, form: _Form) -> _Form:
    """Loops are unrolled as far as their turns need it, and count them where that is not enough."""
    turns = _write(name, function, form)[1]
    for unroll in UNROLL:
        if turns.fits:
            return form
        longer = replace(form, unroll=unroll)
        kernel, found = _write(name, function, longer)
        if unroll > UNROLL[0] and found.most is None and len(kernel.code) > LONG:
            break
        form, turns = longer, found
    return form if turns.fits else replace(form, limit=turns.allowed)


def _build(name: str, function: Any, form: _Form) -> Kernel:
    return _write(name, function, form)[0]


def _write(name: str, function: Any, form: _Form) -> tuple[Kernel, Turns]:
    module = Module(wide_halves=form.packed)
    s = Arithmetic(module)
    memory = Memory(s, window_bytes=form.window_bytes, packed=form.packed, rewritten=form.written)
    attributes = function.attrs
    tags = tuple(str(tag) for tag in attributes.get("tirx.kernel_launch_params", ()))
    body = Statements(s, memory, tags, form.unroll)
    restrict = bool(attributes.get("tirx.noalias", False))
    void = module.type(Op.TYPE_VOID)
    signature = module.type(Op.TYPE_FUNCTION, void)
    main = module.new_id()
    module.name(main, name)
    module.begin(module.new_id())
    buffers, scalars = [], []
    for position, parameter in enumerate(function.params):
        if hasattr(parameter.ty, "element_type"):
            dtype, _ = parse(str(parameter.ty.element_type.dtype))
            buffers.append((position, parameter, dtype))
            body.storages[parameter] = memory.buffer(
                parameter.name,
                dtype,
                windows=form.windows.get(position, 1),
                overlaid=position in form.overlaid,
            )
        else:
            scalars.append((position, parameter, _scalar_dtype(parameter)))
    push, values = memory.push_constants([(position, p.name, dtype) for position, p, dtype in scalars])
    for (_, parameter, _), value in zip(scalars, values, strict=True):
        body.variables[parameter] = (value,)
    if form.limit:
        report = _start_counting(s, memory, form.limit)
    body.statement(function.body)
    if form.limit:
        _report(s, memory, report)
    module.leave()
    for _, parameter, _ in buffers:
        memory.finish(body.storages[parameter], restrict=restrict)
    controls = _float_controls(module, main)
    launch = body.launch
    entry = encode(Op.ENTRY_POINT, GL_COMPUTE, main, *text_words(name), *module.interface)
    entry += encode(Op.EXECUTION_MODE, main, ExecutionMode.LOCAL_SIZE, *launch.workgroup)
    kernel = Kernel(
        name=name,
        code=module.assemble(entry, _function(module, void, main, signature)),
        buffers=tuple(
            Binding(p.name, str(dtype), position, body.storages[p].written, form.windows.get(position, 1))
            for position, p, dtype in buffers
        ),
        push=tuple(push),
        workgroup=(launch.workgroup[0], launch.workgroup[1], launch.workgroup[2]),
        grid=(launch.grid[0], launch.grid[1], launch.grid[2]),
        folded=launch.folded,
        shared_bytes=memory.shared_bytes,
        features=tuple(FEATURES[item] for item in sorted(module.capabilities) if item in FEATURES),
        float_controls=controls,
        counts=form.limit > 0,
    )
    return kernel, module.turns


def _start_counting(s: Arithmetic, memory: Memory, limit: int) -> Storage:
    """The word that is reported to, at the last binding."""
    turns = s.module.turns
    counter = memory.array("turns", UINT32, 1, shared=False)
    turns.limit = limit
    memory.store(counter, s.const(0, UINT32), s.const(0, UINT32))
    turns.counter = memory.address(counter, counter.variables[0], s.const(0, UINT32))
    return memory.buffer("stopped", UINT32)


def _report(s: Arithmetic, memory: Memory, report: Storage) -> None:
    """STATUS_TURNS where the kernel has stopped its loops."""
    turns = s.module.turns
    assert turns.counter is not None
    count = Value(s, s.module.result(Op.LOAD, s.module.scalar_type(UINT32), turns.counter), UINT32)
    stopped = s.logical_and(limited(s), s.compare("ge", count, s.const(turns.limit, UINT32)))

    def write() -> tuple[Value, ...]:
        memory.store(report, s.const(0, UINT32), s.const(STATUS_TURNS, UINT32))
        return ()

    choose(s, stopped, write, tuple)


def _scalar_dtype(parameter: Any) -> DType:
    dtype, lanes = parse(str(parameter.ty.dtype))
    assert lanes == 1, f"{parameter.name} is a vector"
    return dtype


def _function(module: Module, void: int, main: int, signature: int) -> list[int]:
    """The words of the function: its variables stand first in its first block."""
    label, rest = module.body[:2], module.body[2:]
    head = encode(Op.FUNCTION, void, main, 0, signature)
    return [*head, *label, *module.variables, *rest, *encode(Op.FUNCTION_END)]


def _float_controls(module: Module, main: int) -> tuple[str, ...]:
    """Asks for signed zeros, infinities and NaN, and for rounding to nearest, in every width of floats that is used."""
    widths = sorted(module.float_bits)
    small = Capability.FLOAT16 in module.capabilities or Capability.STORAGE_BUFFER_16BIT in module.capabilities
    if 16 in widths and not small:
        module.need(Capability.FLOAT16)
    controls = []
    for mode, capability, property_ in (
        (
            ExecutionMode.SIGNED_ZERO_INF_NAN_PRESERVE,
            Capability.SIGNED_ZERO_INF_NAN_PRESERVE,
            "SignedZeroInfNanPreserve",
        ),
        (ExecutionMode.ROUNDING_MODE_RTE, Capability.ROUNDING_MODE_RTE, "RoundingModeRTE"),
    ):
        for bits in widths:
            module.need(capability)
            module.modes += encode(Op.EXECUTION_MODE, main, mode, bits)
            controls.append(f"shader{property_}Float{bits}")
    return tuple(controls)


def register() -> bool:
    """Makes this TVM's code generator for Vulkan, unless it has one of its own; whether it did.

    It gives a map from a kernel's name to its module, not a runtime module: TVM's runtime is not what launches them.
    """
    if tvm.get_global_func(BUILD_FUNCTION, allow_missing=True) is not None:
        return False

    def build(module: Any, target: Any) -> dict[str, bytes]:
        return {name: kernel.code for name, kernel in build_kernels(module).items()}

    tvm.register_global_func(BUILD_FUNCTION, build)
    return True
