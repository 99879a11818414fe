"""Devices with a Vulkan driver: kernels as SPIR-V, and the list of their launches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transpiler.backends.base import Backend, Job, kernel_places
from transpiler.target import Target

if TYPE_CHECKING:
    from transpiler.gpu.artifacts import GpuArtifacts
    from transpiler.lower import LoweredProgram


class Vulkan(Backend):
    title = "Vulkan"
    needs = "numpy, the package `vulkan` and a device with a Vulkan driver"
    environment = (
        '`VULKAN_DEVICE` chooses a device by its number or a part of its name, as `Model(device="vulkan:1")` does; '
        "`TRANSPILE_CACHE` is the folder of the drivers' caches, none if it is empty."
    )
    requires = ("vulkan>=1.3,<2",)

    def runs_here(self, target: Target) -> bool:
        from transpiler.gpu.here import has_vulkan

        return has_vulkan()

    def compile(self, job: Job) -> GpuArtifacts:
        from transpiler.artifacts import NUMPY
        from transpiler.gpu.artifacts import GpuArtifacts
        from transpiler.gpu.vulkan import compile_kernels

        (target,) = job.targets
        item = job.lowered[target.variant.name]
        job.progress.stage(f"compiling kernels for {target.name}")
        places = kernel_places(item)
        compiled = compile_kernels(item.kernels, target, places=places, progress=job.progress.advance)
        return GpuArtifacts(target.name, {target.variant.name: (item.plans, compiled)}, (NUMPY, *self.requires))

    def check(self, lowered: LoweredProgram, target: Target) -> None:
        from transpiler.gpu.vulkan import compile_kernels

        compile_kernels(lowered.kernels, target, places=kernel_places(lowered))


BACKEND = Vulkan()
