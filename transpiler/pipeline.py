"""The whole way from a model to a package, one straight line.

Nothing heavy is imported before it is needed: torch comes with the capture, TVM with the first schedule.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transpiler.backends import Job, backend
from transpiler.errors import TranspileErrors, UsageError
from transpiler.naming import package_version
from transpiler.problems import NotImported
from transpiler.progress import Progress, Silent
from transpiler.request import Report, Request, TestsFailed
from transpiler.target import (
    Target,
    default_isas,
    has_isas,
    host_triple,
    known_targets,
    load_targets,
    refuse_elsewhere,
)

if TYPE_CHECKING:
    from transpiler.c_compiler import Compiler
    from transpiler.dry_run import Checked
    from transpiler.frontend import Model
    from transpiler.ir import Program
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
    from transpiler.output import check_output, publish
    from transpiler.recording import measure_errors, record_results

    progress = progress or Silent()
    package_version(request.version)
    targets = _targets(request)
    run_here = [target for target in targets if backend(target.name).runs_here(target)]
    # What is fast on this machine says little about machines that lack its best instructions.
    tuned = [] if targets[0].is_gpu else run_here if request.tune == "full" else run_here[:1]
    with tempfile.TemporaryDirectory(prefix="transpile-") as scratch, ThreadPoolExecutor(2) as background:
        compiler = _start_compiler(targets[0], request, background)
        progress.stage("tracing the model")
        model = _front_end(request, targets)
        name = _package_name(request, model)
        folder = Path(request.out) / name
        check_output(folder)
        for warning in model.warnings:
            progress.warn(warning)
        lowered: dict[str, LoweredProgram] = {}
        tuners: dict[str, Tuner] = {}
        rewritten = _rewrite(model.program, request, targets[0])
        for target in targets:
            variant = target.variant.name
            tuners[variant] = _tuner(target, request, request.tune if target in tuned else "none")
            lowered[variant] = _lower(rewritten, tuners[variant], request, progress)
        _check_alike(name, lowered)
        artifacts = backend(targets[0].name).compile(Job(lowered, targets, name, request.version, compiler, progress))
        plans = lowered[targets[0].variant.name].plans
        progress.stage("recording PyTorch's results")
        results = record_results(model, plans)
        view = package_view(name, model, rewritten, plans, artifacts, results, None, request)
        errors = None
        if run_here:
            progress.stage("measuring the error")
            errors = measure_errors(view, results, Path(scratch) / "measured")
        staged = Path(scratch) / "package" / name
        view = package_view(name, model, rewritten, plans, artifacts, results, errors, request)
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
        model = _front_end(request, targets)
    except NotImported as error:
        problems = list(error.problems)
        rewritten = _rewrite(error.understood, request, targets[0])
        for target in targets:
            try:
                backend(target.name).check(
                    _lower(rewritten, _tuner(target, request, "none"), request, progress), target
                )
            except TranspileErrors as further:
                problems.extend(item for item in further.problems if item not in problems)
        raise TranspileErrors(problems) from None
    name = _package_name(request, model)
    for warning in model.warnings:
        progress.warn(warning)
    rewritten = _rewrite(model.program, request, targets[0])
    lowered = [_lower(rewritten, _tuner(target, request, "none"), request, progress) for target in targets]
    for target, item in zip(targets, lowered, strict=True):
        backend(target.name).check(item, target)
    return checked(name, model, lowered[0].plans, targets[0].name, [target.variant.name for target in targets])


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
    isas = request.isas or (default_isas() if has_isas(name) and request.triple in (None, host_triple()) else ())
    return load_targets(name, (*isas, *request.archs), request.triple)


def _start_compiler(target: Target, request: Request, background: Executor) -> Compiler | None:
    """The C compiler, which makes the fixed part of a library in the background; GPUs need none."""
    if target.is_gpu:
        return None
    from transpiler.c_compiler import c_compiler
    from transpiler.link import shared_objects

    compiler = c_compiler(target.isa.triple, request.glibc)
    background.submit(shared_objects, compiler)
    return compiler


def _front_end(request: Request, targets: Sequence[Target]) -> Model:
    from transpiler.frontend import read_model
    from transpiler.precision import computed_in

    return read_model(request, computed_in(request.precision, any(target.tf32 for target in targets)))


def _package_name(request: Request, model: Model) -> str:
    from transpiler.naming import package_name

    return package_name(request.name or model.name)


def _rewrite(program: Program, request: Request, target: Target) -> Program:
    from transpiler.lower import matching_taps
    from transpiler.passes import PIPELINES, run_passes
    from transpiler.passes.precision import lower_precision
    from transpiler.precision import is_half

    passes = PIPELINES[target.name]
    if request.taps == "all":
        unfolded = run_passes(program, passes.unfolded)
        return lower_precision(unfolded, target, request.precision, fuse=False)
    paths = {path for graph in program.functions.values() for path in graph.taps}
    pinned = matching_taps(paths, request.taps) if request.taps else frozenset()
    for graph in program.functions.values():
        program = program.with_function(replace(graph, pinned=pinned & graph.taps.keys()))
    # Winograd's filters are larger, and errors of half floats grow in them.
    exact = request.exact or is_half(request.precision)
    rewritten = run_passes(program, passes.exact if exact else passes.usual)
    return lower_precision(rewritten, target, request.precision)


def _lower(program: Program, tuner: Tuner, request: Request, progress: Progress) -> LoweredProgram:
    from transpiler.lower import lower

    def lowered() -> LoweredProgram:
        progress.stage("scheduling kernels")
        return lower(
            program, tuner.target, fuse=request.taps != "all", progress=progress.advance, scheduler=tuner.schedule
        )

    first = lowered()
    if tuner.mode != "none":
        progress.stage(f"timing kernel variants for {tuner.target.variant.name}")
    return lowered() if tuner.sweep(progress.advance) else first


def _tuner(target: Target, request: Request, mode: Literal["none", "fast", "full"]) -> Tuner:
    """Raises UsageError for a tuning record that cannot be used."""
    from transpiler.tuning import Tuner, read_record

    given = read_record(request.tuning_record) if request.tuning_record is not None else {}
    return Tuner(target, mode, given.get(target.variant.name, {}))


def _check_alike(name: str, lowered: Mapping[str, LoweredProgram]) -> None:
    """The instruction sets of a package share its weights, its state and the Python that calls the kernels."""
    from transpiler.prepared import weights_key

    shared = [
        [(weights_key(name, plan), plan.state, [call.kernel for call in plan.calls()]) for plan in item.plans]
        for item in lowered.values()
    ]
    if any(item != shared[0] for item in shared):
        raise AssertionError(f"the plans for {', '.join(lowered)} differ")


def _run_tests(folder: Path, progress: Progress) -> TestReport:
    from transpiler.testing import run_generated_tests

    progress.stage("running the generated tests")
    return run_generated_tests(folder)
