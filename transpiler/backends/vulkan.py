"""Devices with a Vulkan driver: kernels as SPIR-V, and the list of their launches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transpiler.backends.base import Backend, Job, kernel_places
from transpiler.target import Target

if TYPE_CHECKING:
    from transpiler.dims import SymbolRange
    from transpiler.gpu.artifacts import GpuArtifacts
    from transpiler.lower import LoweredProgram


class Vulkan(Backend):
    title = "Vulkan"
    needs = "numpy, the package `vulkan` and a device with a Vulkan driver"
    environment = (
        '`VULKAN_DEVICE` chooses a device by its number or a part of its name, as `Model(device="vulkan:1")` does; '
        "`TRANSPILE_ISA` forces a variant of the kernels; "
        "`TRANSPILE_CACHE` is the folder of the drivers' caches, none if it is empty."
    )
    requires = ("vulkan>=1.3,<2",)

    def runs_here(self, target: Target) -> bool:
        from transpiler.gpu.here import has_vulkan

        return has_vulkan()

    def compile(self, job: Job) -> GpuArtifacts:
        from transpiler.artifacts import NUMPY
        from transpiler.gpu.artifacts import GpuArtifacts
        from transpiler.gpu.vulkan import compile_kernels, compile_variant

        target, *others = job.targets
        item = job.lowered[target.variant.name]
        places, ranges = kernel_places(item), symbol_ranges(item)
        job.progress.stage(f"compiling kernels for {target.name}")
        compiled = compile_kernels(item.kernels, target, places=places, ranges=ranges, progress=job.progress.advance)
        parts = {target.variant.name: (item.plans, compiled)}
        for other in others:
            found = job.lowered[other.variant.name]
            more = compile_variant(found.kernels, other, item.kernels, compiled, places=places, ranges=ranges)
            parts[other.variant.name] = found.plans, more
        return GpuArtifacts(target.name, parts, (NUMPY, *self.requires))

    def check(self, lowered: LoweredProgram, target: Target) -> None:
        from transpiler.gpu.vulkan import compile_kernels

        compile_kernels(lowered.kernels, target, places=kernel_places(lowered), ranges=symbol_ranges(lowered))


def symbol_ranges(lowered: LoweredProgram) -> dict[str, SymbolRange]:
    """The bounds of every symbol; where functions differ, the wider ones."""
    from transpiler.dims import SymbolRange

    ranges: dict[str, SymbolRange] = {}
    for plan in lowered.plans:
        for name, found in plan.symbols.items():
            held = ranges.get(name, found)
            high = None if held.high is None or found.high is None else max(held.high, found.high)
            ranges[name] = SymbolRange(min(held.low, found.low), high)
    return ranges


BACKEND = Vulkan()
