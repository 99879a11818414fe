"""Scheduled kernels -> SPIR-V modules and the list of their launches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import tvm
import tvm_ffi

from transpiler.dims import Dim, SymbolRange, evaluate, free_symbols
from transpiler.errors import Location, Problem, TranspileErrors
from transpiler.gpu.host import HostLaunch, read_launches
from transpiler.gpu.launches import Compiled, Launch, Scalar
from transpiler.gpu.lowering import lower
from transpiler.group import Lowered
from transpiler.plan import Kernel as PlanKernel
from transpiler.spirv.build import build_kernels
from transpiler.spirv.kernel import Kernel
from transpiler.target import Gpu, Target

# What every device has for scalars of a kernel (maxPushConstantsSize).
MAX_PUSH_BYTES = 128


def compile_kernels(
    kernels: Sequence[Lowered],
    target: Target,
    *,
    places: Mapping[str, Sequence[Location]] | None = None,
    ranges: Mapping[str, SymbolRange] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Compiled:
    """The launches of every kernel, and `<device function>.spv` files.

    `places` are the source lines of kernels, for errors, `ranges` the bounds of symbols.
    `progress(done, total)` is called as kernels finish.

    Raises:
        TranspileErrors: kernels that cannot be SPIR-V, all of them; the code of each problem says why, its message
            names the kernel.
    """
    launches: dict[str, tuple[Launch, ...]] = {}
    files: dict[str, bytes] = {}
    problems: list[Problem] = []
    for done, item in enumerate(kernels):
        try:
            launches[item.kernel.name], modules = compile_kernel(item, target, ranges)
            files.update(modules)
        except TranspileErrors as error:
            found = tuple((places or {}).get(item.kernel.name, ()))
            problems += [replace(each, locations=(*each.locations, *found)) for each in error.problems]
        if progress is not None:
            progress(done + 1, len(kernels))
    if problems:
        raise TranspileErrors(problems)
    return Compiled(launches, files, f"launches.{target.variant.name}.json", target.gpu.kinds)


def compile_variant(
    kernels: Sequence[Lowered],
    target: Target,
    first: Sequence[Lowered],
    compiled: Compiled,
    *,
    places: Mapping[str, Sequence[Location]] | None = None,
    ranges: Mapping[str, SymbolRange] | None = None,
) -> Compiled:
    """As `compile_kernels`, for another variant than that of `first`, which `compiled` is of: kernels that are the same
    share its files. Raises TranspileErrors."""
    variant, known = target.variant.name, {item.kernel.name: item.function for item in first}
    own = [item for item in kernels if not tvm_ffi.structural_equal(item.function, known[item.kernel.name])]
    found = compile_kernels(own, target, places=places, ranges=ranges)

    def renamed(file: str) -> str:
        stem, _, rest = file.partition(".")
        return f"{stem}.{variant}.{rest}"

    def moved(launch: Launch) -> Launch:
        fallback = launch.fallback and (renamed(launch.fallback[0]), launch.fallback[1])
        return replace(launch, file=renamed(launch.file), fallback=fallback)

    changed = {name: tuple(map(moved, launches)) for name, launches in found.launches.items()}
    return Compiled(
        {**compiled.launches, **changed},
        {renamed(file): code for file, code in found.files.items()},
        f"launches.{variant}.json",
        target.gpu.kinds,
    )


def compile_kernel(
    item: Lowered, target: Target, ranges: Mapping[str, SymbolRange] | None = None
) -> tuple[tuple[Launch, ...], dict[str, bytes]]:
    """The launches of one kernel, and its files; `ranges` are the bounds of its symbols. Raises TranspileErrors."""
    name = item.kernel.name
    host, device = lower(tvm.IRModule({name: item.function}), _tvm_target(target))
    (function,) = host.functions.values()
    found = read_launches(name, function)
    windows = _windows(item.kernel, found, target.gpu, ranges or {})
    modules = build_kernels(device, windows, target.gpu.binding_bytes, _overlaid(item, found))
    plan = item.kernel
    status = len(plan.inputs) + len(plan.outputs) + (plan.workspace != 0)
    launches = tuple(_launch(name, each, modules[each.function], target.gpu, status) for each in found)
    files = {}
    for entry in sorted({launch.entry for launch in launches}):
        files[f"{entry}.spv"] = modules[entry].code
        if (packed := modules[entry].packed) is not None:
            files[f"{entry}.packed.spv"] = packed.code
    return launches, files


def _windows(
    kernel: PlanKernel, launches: Sequence[HostLaunch], gpu: Gpu, ranges: Mapping[str, SymbolRange]
) -> dict[str, dict[int, int]]:
    """Device function -> parameter -> the pieces of `binding_bytes` of its buffer, where it may have several: if it is
    larger at the largest sizes. Without bounds, or with wide ones, it has one: the runtime refuses what is too large.
    """
    window = gpu.binding_bytes
    if not window:
        return {}
    sizes: list[Dim] = [type_.bytes for type_ in (*kernel.inputs, *kernel.outputs)]
    sizes += [kernel.workspace] if kernel.workspace != 0 else []
    counts = [-(-_largest(size, ranges) // window) for size in sizes]
    if not all(isinstance(size, int) for size in sizes) and sum(counts) > gpu.buffers:
        return {}
    result: dict[str, dict[int, int]] = {}
    for launch in launches:
        for parameter, (kind, place) in enumerate(launch.arguments):
            if kind == "buffer" and isinstance(place, int) and place < len(counts) and counts[place] > 1:
                result.setdefault(launch.function, {})[parameter] = counts[place]
    return result


def _overlaid(item: Lowered, launches: Sequence[HostLaunch]) -> dict[str, frozenset[int]]:
    """Device function -> parameters whose buffers may be the same memory: what `Group.overlaid` and the result are."""
    if item.function.attrs.get("tirx.noalias", False):
        return {}
    kernel = item.kernel
    types = (*kernel.inputs, *kernel.outputs)
    shared = {place for place, type_ in enumerate(types) if type_ in kernel.outputs}
    return {
        launch.function: frozenset(
            parameter
            for parameter, (kind, place) in enumerate(launch.arguments)
            if kind == "buffer" and place in shared
        )
        for launch in launches
    }


def _largest(size: Dim, ranges: Mapping[str, SymbolRange]) -> int:
    """A size at the upper bounds of its symbols; 0 if one has none."""
    highest = {name: ranges[name].high if name in ranges else None for name in free_symbols(size)}
    known = {name: high for name, high in highest.items() if high is not None}
    return evaluate(size, known) if len(known) == len(highest) else 0


def _launch(name: str, found: HostLaunch, kernel: Kernel, gpu: Gpu, status_place: int) -> Launch:
    """`status_place` is the position of the status word among the arguments.

    Raises:
        TranspileErrors: see `_excesses`.
    """
    window = gpu.binding_bytes

    def place(parameter: int) -> int:
        kind, value = found.arguments[parameter]
        assert kind == "buffer", f"{name}: parameter {parameter} is no buffer"
        assert isinstance(value, int)
        return value

    def scalar(parameter: int) -> Any:
        kind, value = found.arguments[parameter]
        assert kind == "number", f"{name}: parameter {parameter} is no number"
        return value

    grid = tuple(size if known is None else known for size, known in zip(found.grid, kernel.grid, strict=True))
    status = (status_place,) if kernel.counts else ()
    windows = (*(item.windows for item in kernel.buffers), *(1 for _ in status))
    launch = Launch(
        file=f"{kernel.name}.spv",
        entry=kernel.name,
        buffers=(*(place(item.parameter) for item in kernel.buffers), *status),
        written=tuple(sorted({*(place(item.parameter) for item in kernel.buffers if item.written), *status})),
        scalars=tuple(Scalar(scalar(item.parameter), item.dtype, item.offset, item.bits) for item in kernel.push),
        scalar_bytes=-(-kernel.push_bytes // 4) * 4,
        workgroup=kernel.workgroup,
        grid=(grid[0], grid[1], grid[2]),
        folded=kernel.folded,
        # The other module may have floats in the place of halves.
        shared_bytes=max(item.shared_bytes for item in (kernel, kernel.packed) if item is not None),
        features=(*kernel.features, *kernel.float_controls),
        fallback=None if kernel.packed is None else _fallback(kernel.packed),
        windows=windows if max(windows, default=1) > 1 else (),
        window_bytes=window if max(windows, default=1) > 1 else 0,
        counts=kernel.counts,
    )
    if problems := _excesses(name, launch, gpu):
        raise TranspileErrors(problems)
    return launch


def _excesses(name: str, launch: Launch, gpu: Gpu) -> list[Problem]:
    """What a launch takes more of than the target has. Schedules keep to it where the ops let them."""
    checks = [
        ("too-many-buffers", len(launch.buffers), gpu.buffers, "buffers"),
        ("too-many-threads", math.prod(launch.workgroup), gpu.threads, "threads of a workgroup"),
        ("too-much-memory", launch.shared_bytes, gpu.shared_bytes, "bytes of shared memory"),
    ]
    checks += [
        ("too-many-threads", size, most, f"threads on axis {axis}")
        for axis, (size, most) in enumerate(zip(launch.workgroup, gpu.workgroup, strict=True))
    ]
    problems = [
        Problem(code, f"Kernel {name!r} takes {taken} {what}; devices of the target have {most}.")
        for code, taken, most, what in checks
        if 0 < most < taken
    ]
    if launch.scalar_bytes > MAX_PUSH_BYTES:
        what = f"{launch.scalar_bytes} bytes of sizes that vary, not {MAX_PUSH_BYTES}"
        hints = ("give fixed sizes to some dimensions",)
        problems.append(Problem("too-many-sizes", f"Kernel {name!r} takes {what}.", hints=hints))
    return problems


def _fallback(kernel: Kernel) -> tuple[str, tuple[str, ...]]:
    return f"{kernel.name}.packed.spv", (*kernel.features, *kernel.float_controls)


@cache
def _tvm_target(target: Target) -> Any:
    return tvm.target.Target(target.tvm_target())
