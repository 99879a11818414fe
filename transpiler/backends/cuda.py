"""GPUs of NVIDIA: kernels as machine code for several architectures, and for each the list of their launches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transpiler.backends.base import Backend, Job, kernel_places
from transpiler.target import Target

if TYPE_CHECKING:
    from transpiler.gpu.artifacts import GpuArtifacts
    from transpiler.lower import LoweredProgram


class Cuda(Backend):
    title = "CUDA"
    needs = "numpy, the package `cuda-bindings` and a GPU of NVIDIA with a driver of release 580 or later"
    environment = (
        "`CUDA_VISIBLE_DEVICES` says which devices there are and in which order, "
        '`Model(device="cuda:1")` takes the second of them.'
    )
    requires = ("cuda-bindings>=13.0,<14",)
    streams = True
    tuned = True

    def runs_here(self, target: Target) -> bool:
        from transpiler.gpu.here import has_cuda

        return has_cuda(target.gpu.arch)

    def compile(self, job: Job) -> GpuArtifacts:
        from transpiler.artifacts import NUMPY
        from transpiler.gpu.artifacts import GpuArtifacts
        from transpiler.gpu.cuda import compile_kernels

        job.progress.stage("compiling kernels for cuda")
        kernels = {variant: item.kernels for variant, item in job.lowered.items()}
        places = kernel_places(job.lowered[job.targets[0].variant.name])
        compiled = compile_kernels(kernels, job.targets, places=places, progress=job.progress.advance)
        parts = {variant: (job.lowered[variant].plans, item) for variant, item in compiled.items()}
        return GpuArtifacts("cuda", parts, (NUMPY, *self.requires))

    def check(self, lowered: LoweredProgram, target: Target) -> None:
        from transpiler.gpu.cuda import cuda_source

        cuda_source(lowered.kernels, target.tvm_target(), places=kernel_places(lowered))


BACKEND = Cuda()
