"""A rewritten program -> a kernel plan and its scheduled kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from transpiler.errors import Location, Problem, TranspileErrors, UsageError
from transpiler.group import Group, Lowered
from transpiler.ir import Graph, Program, Tap, Value
from transpiler.memory import Arena, aligned, plan_arena, roots
from transpiler.ops.base import Op
from transpiler.ops.blocked_conv import BlockedConv, ConvBlocked, ConvDepthwise, ConvStem
from transpiler.ops.channels_last import ConvLast
from transpiler.ops.compare import Cast
from transpiler.ops.custom import KernelError
from transpiler.ops.dtypes import HALF
from transpiler.ops.packed import LinearPacked
from transpiler.ops.planes import ConvPlanes, WinogradPlanes
from transpiler.ops.strassen import LinearStrassen
from transpiler.ops.strassen_conv import ConvStrassen
from transpiler.ops.winograd import ConvWinograd
from transpiler.ops.winograd_last import WinogradLast
from transpiler.passes.fusion import FusedStep, GroupStep, ViewStep, partition
from transpiler.passes.weights import prepared_values, split_program
from transpiler.plan import Call, Kernel, KernelPlan, StateSlot, Step, Storage, View
from transpiler.schedule import schedule
from transpiler.state import Placed, isolate_updates, place_updates, state_slots, with_initial_values
from transpiler.target import Target

MAX_NAME = 56
# Gives the kernel called `name` for a group; LookupError where the target has none.
Scheduler = Callable[[Group, Target, str], Lowered]


@dataclass(frozen=True)
class LoweredProgram:
    """A plan per function, in the program's order, and the kernels that they call, each once."""

    plans: tuple[KernelPlan, ...]
    kernels: tuple[Lowered, ...]

    @property
    def plan(self) -> KernelPlan:
        """The plan of `Program.main`."""
        return next((plan for plan in self.plans if plan.function == "forward"), self.plans[0])


def lower(
    program: Program,
    target: Target,
    *,
    fuse: bool = True,
    progress: Callable[[int, int], None] | None = None,
    scheduler: Scheduler = schedule,
) -> LoweredProgram:
    """Split off `prepare`, partition, schedule every distinct kernel, plan memory.

    Another `scheduler` can share kernels between programs.

    Raises:
        TranspileErrors: the target has no schedule for some ops; all of them are listed with their locations.
    """
    prepare, mains = split_program(program)
    mains = tuple(map(isolate_updates, mains))
    slots, state_bytes = state_slots(replace(program, functions={main.name: main for main in mains}), target.alignment)
    prepare = with_initial_values(prepare, slots, program)
    placed = [place_updates(main, partition(main, target, fuse=fuse)) for main in mains]
    names = _kernel_names([item.steps for item in placed])
    kernels = _schedule_all([item.steps for item in placed], names, target, progress, scheduler)
    by_name = {item.kernel.name: item.kernel for item in kernels}
    weights = prepared_values(prepare)
    plans = []
    for main, item, called in zip(mains, placed, names, strict=True):
        storage, arena = _store(main, item, weights, slots, called, by_name, target.alignment)
        taps, fused = _taps(main, item.steps, storage)
        plans.append(
            KernelPlan(
                function=main.name,
                kernels=tuple(by_name.values()),
                steps=tuple(_steps(item.steps, called, arena.workspaces)),
                inputs=main.call_inputs(),
                outputs=main.user_outputs(),
                weights=weights,
                prepare=prepare,
                storage=storage,
                arena_bytes=arena.size,
                weight_bytes=sum(aligned(_weight_bytes(value), target.alignment) for value in weights),
                taps=taps,
                fused=fused,
                symbols=main.symbols,
                blocks=arena.blocks,
                state=slots,
                state_bytes=state_bytes,
                updates=item.updates,
                target=target.name,
                weights_file=f"weights.{target.name}.safetensors",
            )
        )
    return LoweredProgram(tuple(plans), tuple(kernels))


def _schedule_all(
    functions: Sequence[Sequence[FusedStep]],
    names: Sequence[Mapping[int, str]],
    target: Target,
    progress: Callable[[int, int], None] | None,
    scheduler: Scheduler,
) -> list[Lowered]:
    groups: dict[str, Group] = {}
    for steps, called in zip(functions, names, strict=True):
        for position, name in called.items():
            step = steps[position]
            assert isinstance(step, GroupStep)
            groups.setdefault(name, step.group)
    kernels: list[Lowered] = []
    problems: dict[tuple[bool, str], list[Location]] = {}
    cause: Exception | None = None
    for done, (name, group) in enumerate(groups.items()):
        try:
            kernels.append(scheduler(group, target, name))
        except (LookupError, KernelError) as error:
            places = [value.location for node in group.nodes for value in node.outputs if value.location is not None]
            problems.setdefault((isinstance(error, KernelError), str(error)), []).extend(places[:1])
            cause = error
        if progress is not None:
            progress(done + 1, len(groups))
    if problems:
        raise TranspileErrors(
            [
                Problem("custom-kernel", reason, tuple(places), hints=(_KERNEL_HINT,))
                if custom
                else Problem(
                    "no-schedule",
                    f"Target {target.name!r} cannot compute this: {reason}.",
                    tuple(places),
                    hints=("compute it in float32, or outside of the model",),
                )
                for (custom, reason), places in problems.items()
            ]
        ) from cause
    return kernels


_KERNEL_HINT = "docs/custom_operators.md says what kernel() has to return; --traceback shows where it failed"


def _kernel_names(functions: Sequence[Sequence[FusedStep]]) -> list[dict[int, str]]:
    """Step -> kernel name, per function; steps that the same kernel computes share it."""
    by_key: dict[tuple[object, ...], str] = {}
    taken: set[str] = set()
    names: list[dict[int, str]] = []
    for steps in functions:
        called: dict[int, str] = {}
        for position, step in enumerate(steps):
            if not isinstance(step, GroupStep):
                continue
            key = step.group.key()
            if key not in by_key:
                base = kernel_name(step.group)
                name, number = base, 2
                while name in taken:
                    name, number = f"{base}_{number}", number + 1
                taken.add(name)
                by_key[key] = name
            called[position] = by_key[key]
        names.append(called)
    return names


def kernel_name(group: Group) -> str:
    """What the kernel does and on which shape: `conv3x3_bias_relu_64x56x56`."""
    parts: list[str] = []
    for node in group.nodes:
        label = _label(node.op, len(node.inputs))
        if label and label not in parts:
            parts.append(label)
    if group.in_place:
        parts.append("in_place")
    # Sizes that vary are no part of the name.
    shape = [dim for dim in group.outputs[0].shape if isinstance(dim, int) and dim != 1] or [1]
    anchor = group.anchor_node
    if anchor is not None and isinstance(anchor.op, BlockedConv):
        shape = [anchor.op.channels, *(dim for dim in group.outputs[0].shape[2:4] if isinstance(dim, int))]
    suffix = "x".join(str(dim) for dim in shape)
    parts = parts or [group.nodes[-1].op.name]  # of constants only
    text = "_".join(parts)
    room = MAX_NAME - len(suffix) - 1
    while len(text) > room and len(parts) > 2:
        # Keep the beginning and the end of what is fused.
        parts.pop(len(parts) // 2)
        text = "_".join(parts)
    return f"{text}_{suffix}"


def _label(op: Op, arity: int) -> str:
    match op:
        case ConvBlocked(kernel=kernel) | ConvStem(kernel=kernel):
            return f"conv{kernel[0]}x{kernel[1]}" + ("_bias" if arity == 3 else "")
        case ConvWinograd(tile=tile):
            return f"winograd{tile}x{tile}" + ("_bias" if arity == 3 else "")
        case WinogradPlanes(tile=tile) | WinogradLast(tile=tile):
            return f"winograd{tile}x{tile}" + ("_bias" if arity == 3 else "")
        case ConvPlanes() | ConvLast():
            return "conv" + ("_bias" if arity == 3 else "")
        case ConvDepthwise(kernel=kernel, group=group):
            return f"{'grouped' if group > 1 else 'depthwise'}{kernel[0]}x{kernel[1]}" + ("_bias" if arity == 3 else "")
        case LinearPacked():
            return "linear" + ("_bias" if arity == 3 else "")
        case LinearStrassen() | ConvStrassen():
            return "strassen" + ("_bias" if arity == 3 else "")
    # How values are stored or seen is no part of the name.
    stored = op.name in ("full", "broadcast_to", "reshape", "widen") or (isinstance(op, Cast) and op.dtype in HALF)
    return "" if stored else op.name


def _store(
    main: Graph,
    placed: Placed,
    weights: Sequence[Value],
    slots: Sequence[StateSlot],
    names: Mapping[int, str],
    kernels: Mapping[str, Kernel],
    alignment: int,
) -> tuple[dict[str, Storage], Arena]:
    """Where every value lives, and the arena."""
    steps = placed.steps
    storage: dict[str, Storage] = {}
    states = {slot.key: Storage("state", 0, slot.offset) for slot in slots}
    storage.update({item.value.name: states[item.key] for item in main.state_inputs()})
    storage.update({name: states[key] for name, key in placed.homes.items()})
    for index, item in enumerate(main.call_inputs()):
        storage[item.value.name] = Storage("input", index)
    offset = 0
    for value in weights:
        storage[value.name] = Storage("weight", 0, offset)
        offset += aligned(_weight_bytes(value), alignment)
    root = roots(steps)
    written = {value.name for step in steps if isinstance(step, GroupStep) for value in step.group.outputs}
    for index, value in enumerate(main.user_outputs()):
        place = root.get(value.name, value.name)
        if place in written and place not in storage:
            storage[place] = Storage("output", index)
    workspaces = {position: kernels[name].workspace for position, name in names.items()}
    kept = [value.name for value in placed.updates.values()]
    arena = plan_arena(steps, workspaces, frozenset(storage), kept, alignment)
    for name, start in arena.offsets.items():
        storage[name] = Storage("block", start) if arena.blocks else Storage("arena", 0, start)
    for name, place in root.items():
        storage[name] = storage[place]
    return storage, arena


def _weight_bytes(value: Value) -> int:
    size = value.type.bytes
    assert isinstance(size, int), f"weight {value.name} has the symbolic type {value.type}"
    return size


def _steps(steps: Sequence[FusedStep], names: Mapping[int, str], workspaces: Mapping[int, int]) -> list[Step]:
    result: list[Step] = []
    for position, step in enumerate(steps):
        if isinstance(step, ViewStep):
            result.append(View(step.node.inputs[0], step.node.output))
            continue
        covers = dict.fromkeys(
            value.location for node in step.group.nodes for value in node.outputs if value.location is not None
        )
        result.append(
            Call(
                names[position],
                step.group.inputs,
                step.group.outputs,
                tuple(covers),
                workspaces.get(position, 0),
                step.group.nodes[0].inputs[0] if step.group.in_place else None,
            )
        )
    return result


def _taps(
    main: Graph, steps: Sequence[FusedStep], storage: Mapping[str, Storage]
) -> tuple[dict[str, Tap], dict[str, str]]:
    """The taps whose value is stored, and for every other module path the nearest one that is."""
    stored = {path: tap for path, tap in main.taps.items() if tap.value in storage}
    holder: dict[str, str] = {}  # value inside a group -> the value the group writes
    for step in steps:
        if isinstance(step, GroupStep):
            for node in step.group.nodes:
                holder.update({value.name: step.group.outputs[0].name for value in node.outputs})
    by_value = {tap.value: path for path, tap in stored.items()}
    order = [tap.value for tap in main.taps.values()]
    fused: dict[str, str] = {}
    for position, (path, tap) in enumerate(main.taps.items()):
        if path in stored:
            continue
        nearest = by_value.get(holder.get(tap.value, ""))
        if nearest is None:
            later = (by_value[value] for value in order[position + 1 :] if value in by_value)
            earlier = (by_value[value] for value in reversed(order[:position]) if value in by_value)
            nearest = next(later, None) or next(earlier, None)
        if nearest is not None:
            fused[path] = nearest
    return stored, fused


def matching_taps(taps: Iterable[str], patterns: str) -> frozenset[str]:
    """The module paths that a comma-separated list of globs matches; `*` matches dots too, every call of a module
    matches by its plain path.

    Raises:
        UsageError: a glob matches none; the message names paths that are close.
    """
    paths = sorted(taps)
    found: set[str] = set()
    for pattern in patterns.split(","):
        matched = [path for path in paths if any(fnmatchcase(text, pattern) for text in (path, path.partition("#")[0]))]
        if not matched:
            shown = get_close_matches(pattern, paths, n=5, cutoff=0.3) or paths[:5]
            hint = f"module paths are: {', '.join(shown)}{', ...' if len(paths) > len(shown) else ''}"
            raise UsageError("no-such-tap", f"--taps {pattern!r} matches no module.", hints=[hint] if paths else [])
        found.update(matched)
    return frozenset(found)


def with_taps(program: Program, taps: Mapping[str, str], function: str | None = None) -> Program:
    """The program whose function (by default the main one) knows which value is the output of which module path."""
    graph = program.main if function is None else program.functions[function]
    values = {value.name: value for value in graph.values()}
    found = {path: Tap(name, values[name].type) for path, name in taps.items()}
    return program.with_function(replace(graph, taps=found))
