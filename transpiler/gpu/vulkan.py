"""Scheduled kernels -> SPIR-V modules and the list of their launches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import tvm

from transpiler.errors import Location, Problem, TranspileErrors
from transpiler.gpu.host import HostLaunch, read_launches
from transpiler.gpu.launches import Compiled, Launch, Scalar
from transpiler.gpu.lowering import lower
from transpiler.group import Lowered
from transpiler.spirv.build import build_kernels
from transpiler.spirv.kernel import Kernel
from transpiler.target import Target

# What every device has for scalars of a kernel (maxPushConstantsSize).
MAX_PUSH_BYTES = 128


def compile_kernels(
    kernels: Sequence[Lowered],
    target: Target,
    *,
    places: Mapping[str, Sequence[Location]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Compiled:
    """The launches of every kernel, and `<device function>.spv` files.

    `places` are the source lines of kernels, for errors. `progress(done, total)` is called as kernels finish.

    Raises:
        TranspileErrors: kernels that cannot be SPIR-V, all of them; the code of each problem says why, its message
            names the kernel.
    """
    launches: dict[str, tuple[Launch, ...]] = {}
    files: dict[str, bytes] = {}
    problems: list[Problem] = []
    for done, item in enumerate(kernels):
        try:
            launches[item.kernel.name], modules = compile_kernel(item, target)
            files.update(modules)
        except TranspileErrors as error:
            found = tuple((places or {}).get(item.kernel.name, ()))
            problems += [replace(each, locations=(*each.locations, *found)) for each in error.problems]
        if progress is not None:
            progress(done + 1, len(kernels))
    if problems:
        raise TranspileErrors(problems)
    return Compiled(launches, files)


def compile_kernel(item: Lowered, target: Target) -> tuple[tuple[Launch, ...], dict[str, bytes]]:
    """The launches of one kernel, and its files. Raises TranspileErrors."""
    name = item.kernel.name
    host, device = lower(tvm.IRModule({name: item.function}), _tvm_target(target))
    modules = build_kernels(device)
    (function,) = host.functions.values()
    launches = tuple(_launch(name, found, modules[found.function]) for found in read_launches(name, function))
    used = {launch.entry for launch in launches}
    return launches, {f"{entry}.spv": modules[entry].code for entry in sorted(used)}


def _launch(name: str, found: HostLaunch, kernel: Kernel) -> Launch:
    def place(parameter: int) -> int:
        kind, value = found.arguments[parameter]
        assert kind == "buffer", f"{name}: parameter {parameter} is no buffer"
        assert isinstance(value, int)
        return value

    def scalar(parameter: int) -> Any:
        kind, value = found.arguments[parameter]
        assert kind == "number", f"{name}: parameter {parameter} is no number"
        return value

    if kernel.push_bytes > MAX_PUSH_BYTES:
        raise TranspileErrors(
            [
                Problem(
                    "too-many-sizes",
                    f"Kernel {name!r} takes {kernel.push_bytes} bytes of sizes that vary, not {MAX_PUSH_BYTES}.",
                    hints=("give fixed sizes to some dimensions",),
                )
            ]
        )
    grid = tuple(size if known is None else known for size, known in zip(found.grid, kernel.grid, strict=True))
    return Launch(
        file=f"{kernel.name}.spv",
        entry=kernel.name,
        buffers=tuple(place(item.parameter) for item in kernel.buffers),
        written=tuple(sorted({place(item.parameter) for item in kernel.buffers if item.written})),
        scalars=tuple(Scalar(scalar(item.parameter), item.dtype, item.offset, item.bits) for item in kernel.push),
        scalar_bytes=-(-kernel.push_bytes // 4) * 4,
        workgroup=kernel.workgroup,
        grid=(grid[0], grid[1], grid[2]),
        folded=kernel.folded,
        shared_bytes=kernel.shared_bytes,
        features=(*kernel.features, *kernel.float_controls),
    )


@cache
def _tvm_target(target: Target) -> Any:
    return tvm.target.Target(target.tvm_target())
