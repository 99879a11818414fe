"""Processors: a shared library per instruction set, and one for C programs that picks among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transpiler.backends.base import Backend, Job
from transpiler.target import Target, runs_here

if TYPE_CHECKING:
    from transpiler.link import Binaries
    from transpiler.lower import LoweredProgram


class Cpu(Backend):
    title = "CPU"
    tuned = True
    needs = "numpy"
    environment = "`TRANSPILE_THREADS` limits the default number of threads, `TRANSPILE_ISA` forces an instruction set."

    def runs_here(self, target: Target) -> bool:
        return runs_here(target.isa)

    def compile(self, job: Job) -> Binaries:
        from transpiler.c_abi import c_files
        from transpiler.compile import compile_kernels
        from transpiler.link import Binaries, link_library
        from transpiler.provenance import compiler_version

        compiler = job.compiler
        assert compiler is not None
        libraries = {}
        for target in job.targets:
            isa = target.isa.name
            job.progress.stage(f"compiling kernels for {isa}")
            objects = compile_kernels(job.lowered[isa].kernels, target, progress=job.progress.advance)
            libraries[isa] = link_library(objects, job.lowered[isa].plans, job.name, isa, compiler)
        isas = [target.isa for target in job.targets]
        plans = job.lowered[isas[0].name].plans
        files = c_files(job.name, plans, isas, job.version, compiler)
        return Binaries(libraries, files, compiler_version(compiler.command))

    def check(self, lowered: LoweredProgram, target: Target) -> None:
        """The compiler takes whatever is scheduled."""


BACKEND = Cpu()
