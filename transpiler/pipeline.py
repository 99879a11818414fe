"""The whole way from a model to a package, one straight line.

Nothing heavy is imported before it is needed: torch comes with the capture, TVM with the first schedule.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transpiler.errors import TranspileErrors, UsageError
from transpiler.problems import NotImported
from transpiler.progress import Progress, Silent
from transpiler.request import Report, Request, TestsFailed
from transpiler.target import (
    Target,
    default_isas,
    host_triple,
    known_targets,
    load_targets,
    refuse_elsewhere,
    runs_here,
)

if TYPE_CHECKING:
    from transpiler.c_compiler import Compiler
    from transpiler.dry_run import Checked
    from transpiler.frontend import Model
    from transpiler.ir import Program
    from transpiler.link import Binaries
    from transpiler.lower import LoweredProgram
    from transpiler.testing import TestReport
    from transpiler.tuning import Tuner


def build(request: Request, progress: Progress | None = None) -> Report:
    """Transpile: import, rewrite, compile, emit, verify, and move the finished package into place.

    Raises:
        UsageError: the request itself is wrong.
        TranspileErrors: the model, its weights or the output folder cannot be used; every reason is listed.
        TestsFailed: the package was built and its tests do not pass.
    """
    from transpiler.assembly import package_view, tuning_file, write_with_tests
    from transpiler.c_compiler import c_compiler
    from transpiler.output import check_output, publish
    from transpiler.recording import measure_errors, record_results

    progress = progress or Silent()
    targets = _targets(request)
    run_here = [target for target in targets if runs_here(target.isa)]
    # What is fast on this machine says little about machines that lack its best instructions.
    tuned = run_here if request.tune == "full" else run_here[:1]
    compiler = c_compiler(targets[0].isa.triple, request.glibc)
    with tempfile.TemporaryDirectory(prefix="transpile-") as scratch, ThreadPoolExecutor(2) as background:
        # The fixed part of the library compiles while the model is traced.
        runtime = background.submit(_compile_runtime, compiler)
        progress.stage("tracing the model")
        model = _front_end(request)
        name = _package_name(request, model)
        folder = Path(request.out) / name
        check_output(folder)
        for warning in model.warnings:
            progress.warn(warning)
        lowered: dict[str, LoweredProgram] = {}
        tuners: dict[str, Tuner] = {}
        rewritten = _rewrite(model.program, request)
        for target in targets:
            tuners[target.isa.name] = _tuner(target, request, request.tune if target in tuned else "none")
            lowered[target.isa.name] = _lower(rewritten, tuners[target.isa.name], request, progress)
        runtime.result()
        _check_alike(name, lowered)
        binaries = _compile(lowered, targets, name, compiler, progress)
        plans = lowered[targets[0].isa.name].plans
        progress.stage("recording PyTorch's results")
        results = record_results(model, plans)
        view = package_view(name, model, rewritten, plans, binaries, results, None, request)
        errors = None
        if run_here:
            progress.stage("measuring the error")
            errors = measure_errors(view, results, Path(scratch) / "measured")
        staged = Path(scratch) / "package" / name
        view = package_view(name, model, rewritten, plans, binaries, results, errors, request)
        write_with_tests(view, model, results, plans, staged, tuning_file(tuners))
        tests = _run_tests(staged, progress) if request.test and run_here else None
        wrong = tests is not None and not tests.ok
        if wrong:
            folder = folder.with_name(f"{name}.failed")
        progress.stage(f"writing {folder}")
        publish(staged, folder)
        if wrong:
            assert tests is not None
            raise TestsFailed(folder, tests)
    return Report(folder, name, errors or {}, tests, len(plans[0].kernels), model.warnings, not run_here)


def check(request: Request, progress: Progress | None = None) -> Checked:
    """Do everything up to scheduled kernels, for every reason against a model in seconds.

    Where the import fails, the part of the graph that it understood is scheduled all the same.

    Raises:
        UsageError: the request itself is wrong.
        TranspileErrors: the model or its weights cannot be used; every reason is listed.
    """
    from transpiler.dry_run import checked

    progress = progress or Silent()
    targets = _targets(request)
    progress.stage("tracing the model")
    try:
        model = _front_end(request)
    except NotImported as error:
        problems = list(error.problems)
        rewritten = _rewrite(error.understood, request)
        for target in targets:
            try:
                _lower(rewritten, _tuner(target, request, "none"), request, progress)
            except TranspileErrors as further:
                problems.extend(item for item in further.problems if item not in problems)
        raise TranspileErrors(problems) from None
    name = _package_name(request, model)
    for warning in model.warnings:
        progress.warn(warning)
    rewritten = _rewrite(model.program, request)
    plans = [_lower(rewritten, _tuner(target, request, "none"), request, progress).plans for target in targets]
    return checked(name, model, plans[0], targets[0].name, [target.isa.name for target in targets])


def _targets(request: Request) -> list[Target]:
    """One entry per ISA of the (one) target, best first."""
    from transpiler.errors import unknown

    refuse_elsewhere()
    for name in request.targets:
        if name not in known_targets():
            raise unknown("target", name, known_targets(), code="unknown-target")
    (name, *more) = dict.fromkeys(request.targets)
    if more:
        raise UsageError("several-targets", "Several targets in one package are not supported; name one --target.")
    if load_targets(name)[0].is_gpu:
        raise UsageError("no-runtime", f"Packages for target {name!r} cannot be made yet.")
    default = default_isas() if request.triple in (None, host_triple()) else ()
    return load_targets(name, request.isas or default, request.triple)


def _compile_runtime(compiler: Compiler) -> None:
    from transpiler.link import shared_objects

    shared_objects(compiler)


def _front_end(request: Request) -> Model:
    from transpiler.frontend import read_model

    return read_model(request)


def _package_name(request: Request, model: Model) -> str:
    from transpiler.naming import package_name

    return package_name(request.name or model.name)


def _rewrite(program: Program, request: Request) -> Program:
    from transpiler.lower import matching_taps
    from transpiler.passes import EXACT_PIPELINE, PIPELINE, UNFOLDED_PIPELINE, run_passes

    if request.taps == "all":
        return run_passes(program, UNFOLDED_PIPELINE)
    paths = {path for graph in program.functions.values() for path in graph.taps}
    pinned = matching_taps(paths, request.taps) if request.taps else frozenset()
    for graph in program.functions.values():
        program = program.with_function(replace(graph, pinned=pinned & graph.taps.keys()))
    return run_passes(program, EXACT_PIPELINE if request.exact else PIPELINE)


def _lower(program: Program, tuner: Tuner, request: Request, progress: Progress) -> LoweredProgram:
    from transpiler.lower import lower

    def lowered() -> LoweredProgram:
        progress.stage("scheduling kernels")
        return lower(
            program, tuner.target, fuse=request.taps != "all", progress=progress.advance, scheduler=tuner.schedule
        )

    first = lowered()
    if tuner.mode != "none":
        progress.stage(f"timing kernel variants for {tuner.target.isa.name}")
    return lowered() if tuner.sweep(progress.advance) else first


def _tuner(target: Target, request: Request, mode: Literal["none", "fast", "full"]) -> Tuner:
    """Raises UsageError for a tuning record that cannot be used."""
    from transpiler.tuning import Tuner, read_record

    given = read_record(request.tuning_record) if request.tuning_record is not None else {}
    return Tuner(target, mode, given.get(target.isa.name, {}))


def _check_alike(name: str, lowered: Mapping[str, LoweredProgram]) -> None:
    """The instruction sets of a package share its weights, its state and the Python that calls the kernels."""
    from transpiler.prepared import weights_key

    shared = [
        [(weights_key(name, plan), plan.state, [call.kernel for call in plan.calls()]) for plan in item.plans]
        for item in lowered.values()
    ]
    if any(item != shared[0] for item in shared):
        raise AssertionError(f"the plans for {', '.join(lowered)} differ")


def _compile(
    lowered: Mapping[str, LoweredProgram], targets: Sequence[Target], name: str, compiler: Compiler, progress: Progress
) -> Binaries:
    from transpiler.c_abi import c_files
    from transpiler.compile import compile_kernels
    from transpiler.link import Binaries, link_library
    from transpiler.manifest import VERSION
    from transpiler.provenance import compiler_version

    libraries = {}
    for target in targets:
        isa = target.isa.name
        progress.stage(f"compiling kernels for {isa}")
        objects = compile_kernels(lowered[isa].kernels, target, progress=progress.advance)
        libraries[isa] = link_library(objects, lowered[isa].plans, name, isa, compiler)
    isas = [target.isa for target in targets]
    plans = lowered[isas[0].name].plans
    return Binaries(libraries, c_files(name, plans, isas, VERSION, compiler), compiler_version(compiler.command))


def _run_tests(folder: Path, progress: Progress) -> TestReport:
    from transpiler.testing import run_generated_tests

    progress.stage("running the generated tests")
    return run_generated_tests(folder)
