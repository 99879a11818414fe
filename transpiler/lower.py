"""A rewritten program -> a kernel plan and its scheduled kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from transpiler.errors import Location, Problem, TranspileErrors, UsageError
from transpiler.group import Group, Lowered
from transpiler.ir import Graph, Program, Tap, Value
from transpiler.memory import Arena, aligned, plan_arena, roots, size_of
from transpiler.ops.packed import ConvBlocked, ConvDepthwise, ConvStem, LinearPacked
from transpiler.passes.fusion import FusedStep, GroupStep, ViewStep, partition
from transpiler.passes.weights import prepared_values, split
from transpiler.plan import Call, Kernel, KernelPlan, Step, Storage, View
from transpiler.schedule import schedule
from transpiler.target import Target

MAX_NAME = 56
# Gives the kernel called `name` for a group; LookupError where the target has none.
Scheduler = Callable[[Group, Target, str], Lowered]


@dataclass(frozen=True)
class LoweredProgram:
    """The plan of the main function and the kernels it calls, each once."""

    plan: KernelPlan
    kernels: tuple[Lowered, ...]


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
    prepare, main = split(program.main)
    steps = partition(main, target, fuse=fuse)
    names = _kernel_names(steps)
    kernels = _schedule_all(steps, names, target, progress, scheduler)
    by_name = {item.kernel.name: item.kernel for item in kernels}
    weights = prepared_values(prepare)
    storage, arena = _store(main, steps, weights, names, by_name)
    taps, fused = _taps(main, steps, storage)
    plan = KernelPlan(
        function=main.name,
        kernels=tuple(by_name.values()),
        steps=tuple(_steps(steps, names, arena.workspaces)),
        inputs=main.user_inputs(),
        outputs=main.user_outputs(),
        weights=weights,
        prepare=prepare,
        storage=storage,
        arena_bytes=arena.size,
        weight_bytes=sum(aligned(_weight_bytes(value)) for value in weights),
        taps=taps,
        fused=fused,
        symbols=main.symbols,
        blocks=arena.blocks,
    )
    return LoweredProgram(plan, tuple(kernels))


def _schedule_all(
    steps: Sequence[FusedStep],
    names: Mapping[int, str],
    target: Target,
    progress: Callable[[int, int], None] | None,
    scheduler: Scheduler,
) -> list[Lowered]:
    groups: dict[str, Group] = {}
    for position, name in names.items():
        step = steps[position]
        assert isinstance(step, GroupStep)
        groups.setdefault(name, step.group)
    kernels: list[Lowered] = []
    problems: dict[str, list[Location]] = {}
    for done, (name, group) in enumerate(groups.items()):
        try:
            kernels.append(scheduler(group, target, name))
        except LookupError as error:
            places = [value.location for node in group.nodes for value in node.outputs if value.location is not None]
            problems.setdefault(str(error), []).extend(places[:1])
        if progress is not None:
            progress(done + 1, len(groups))
    if problems:
        raise TranspileErrors(
            [
                Problem(
                    "no-schedule",
                    f"Target {target.name!r} cannot compute this: {reason}.",
                    tuple(places),
                    hints=("compute it in float32, or outside of the model",),
                )
                for reason, places in problems.items()
            ]
        )
    return kernels


def _kernel_names(steps: Sequence[FusedStep]) -> dict[int, str]:
    """Step -> kernel name; steps that the same kernel computes share it."""
    by_key: dict[tuple[object, ...], str] = {}
    taken: set[str] = set()
    names: dict[int, str] = {}
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
        names[position] = by_key[key]
    return names


def kernel_name(group: Group) -> str:
    """What the kernel does and on which shape: `conv3x3_bias_relu_64x56x56`."""
    parts: list[str] = []
    for node in group.nodes:
        label = _label(node.op, len(node.inputs))
        if label and label not in parts:
            parts.append(label)
    # Sizes that vary are no part of the name.
    shape = [dim for dim in group.outputs[0].shape if isinstance(dim, int) and dim != 1] or [1]
    anchor = group.anchor_node
    if anchor is not None and isinstance(anchor.op, ConvBlocked | ConvStem | ConvDepthwise):
        shape = [anchor.op.channels, *(dim for dim in group.outputs[0].shape[2:4] if isinstance(dim, int))]
    suffix = "x".join(str(dim) for dim in shape)
    text = "_".join(parts)
    room = MAX_NAME - len(suffix) - 1
    while len(text) > room and len(parts) > 2:
        # Keep the beginning and the end of what is fused.
        parts.pop(len(parts) // 2)
        text = "_".join(parts)
    return f"{text}_{suffix}"


def _label(op: object, arity: int) -> str:
    match op:
        case ConvBlocked(kernel=kernel) | ConvStem(kernel=kernel):
            return f"conv{kernel[0]}x{kernel[1]}" + ("_bias" if arity == 3 else "")
        case ConvDepthwise(kernel=kernel):
            return f"depthwise{kernel[0]}x{kernel[1]}" + ("_bias" if arity == 3 else "")
        case LinearPacked():
            return "linear" + ("_bias" if arity == 3 else "")
    name: str = op.name  # type: ignore[attr-defined]
    return "" if name in ("full", "broadcast_to") else name


def _store(
    main: Graph,
    steps: Sequence[FusedStep],
    weights: Sequence[Value],
    names: Mapping[int, str],
    kernels: Mapping[str, Kernel],
) -> tuple[dict[str, Storage], Arena]:
    """Where every value lives, and the arena."""
    storage: dict[str, Storage] = {}
    for index, item in enumerate(main.user_inputs()):
        storage[item.value.name] = Storage("input", index)
    offset = 0
    for value in weights:
        storage[value.name] = Storage("weight", 0, offset)
        offset += aligned(_weight_bytes(value))
    root = roots(steps)
    written = {value.name for step in steps if isinstance(step, GroupStep) for value in step.group.outputs}
    for index, value in enumerate(main.user_outputs()):
        place = root.get(value.name, value.name)
        if place in written and place not in storage:
            storage[place] = Storage("output", index)
    workspaces = {position: kernels[name].workspace for position, name in names.items()}
    arena = plan_arena(steps, workspaces, frozenset(storage))
    for name, start in arena.offsets.items():
        storage[name] = Storage("block", start) if arena.blocks else Storage("arena", 0, start)
    for name, place in root.items():
        storage[name] = storage[place]
    return storage, arena


def _weight_bytes(value: Value) -> int:
    size = size_of(value.type)
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


def with_taps(program: Program, taps: Mapping[str, str]) -> Program:
    """The program whose main function knows which value is the output of which module path."""
    values = {value.name: value for value in program.main.values()}
    found = {path: Tap(name, values[name].type) for path, name in taps.items()}
    return program.with_main(replace(program.main, taps=found))
