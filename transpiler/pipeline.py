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
from transpiler.errors import TranspileErrors
from transpiler.naming import package_version
from transpiler.problems import NotImported, Refusals
from transpiler.progress import Progress, Silent
from transpiler.request import Report, Request, TestsFailed
from transpiler.target import Target, load_groups, refuse_elsewhere

if TYPE_CHECKING:
    from transpiler.artifacts import Artifacts
    from transpiler.c_compiler import Compiler
    from transpiler.dry_run import Checked
    from transpiler.frontend import Model
    from transpiler.ir import Program
    from transpiler.lower import LoweredProgram
    from transpiler.measuring import CaseError
    from transpiler.parts import Part
    from transpiler.testing import TestReport
    from transpiler.tuning import Tuner


def build(request: Request, progress: Progress | None = None) -> Report:
    """Transpile: import, rewrite, compile, emit, verify, and move the finished package into place.

    Raises:
        UsageError: the request itself is wrong.
        TranspileErrors: the model, its weights or the output folder cannot be used; every reason is listed.
        TestsFailed: the package was built and its tests do not pass.
    """
    from transpiler.assembly import all_taps, make_part, package_view, tuning_file, write_with_tests
    from transpiler.output import check_output, publish
    from transpiler.recording import measure_errors, record_results

    progress = progress or Silent()
    package_version(request.version)
    groups = _targets(request)
    run_here = {name: [item for item in group if backend(name).runs_here(item)] for name, group in groups.items()}
    with tempfile.TemporaryDirectory(prefix="transpile-") as scratch, ThreadPoolExecutor(2) as background:
        compiler = _start_compiler(groups, request, background)
        progress.stage("tracing the model")
        model = _front_end(request, groups)
        name = _package_name(request, model)
        folder = Path(request.out) / name
        check_output(folder)
        for warning in model.warnings:
            progress.warn(warning)
        tuners = _tuners(groups, run_here, request)
        for note in _untimed(groups, run_here, request):
            progress.note(note)
        rewritten, lowered = _lower_all(model.program, groups, tuners, request, progress)
        for variants in lowered.values():
            _check_alike(name, variants)
        artifacts = _compile(lowered, groups, name, request.version, compiler, progress)
        plans = {target: next(iter(variants.values())).plans for target, variants in lowered.items()}
        progress.stage("recording PyTorch's results")
        results = record_results(model, plans[next(iter(groups))], all_taps(list(plans.values())))

        def parts(errors: Mapping[str, Mapping[str, CaseError]]) -> list[Part]:
            return [
                make_part(plans[item], artifacts[item], rewritten[item], model, results, errors.get(item), request)
                for item in groups
            ]

        errors: Mapping[str, Mapping[str, CaseError]] = {}
        present = [target for target, variants in run_here.items() if variants]
        if present:
            progress.stage("measuring the error")
            view = package_view(name, model, parts({}), results, request)
            errors = measure_errors(view, results, Path(scratch) / "measured", present)
        staged = Path(scratch) / "package" / name
        done = parts(errors)
        view = package_view(name, model, done, results, request)
        write_with_tests(view, model, results, done, staged, tuning_file(tuners))
        tests = _run_tests(staged, progress) if request.test and present else None
        wrong = tests is not None and not tests.ok
        if wrong:
            folder = folder.with_name(f"{name}.failed")
        progress.stage(f"writing {folder}")
        publish(staged, folder)
        if wrong:
            assert tests is not None
            raise TestsFailed(folder, tests)
    absent = tuple(target for target in groups if target not in present)
    kernels = len(plans[next(iter(groups))][0].kernels)
    return Report(folder, name, _worst(errors), tests, kernels, model.warnings, not present, errors, absent)


def check(request: Request, progress: Progress | None = None) -> Checked:
    """Do everything up to scheduled kernels, for every reason against a model in seconds.

    Where the import fails, the part of the graph that it understood is scheduled all the same.

    Raises:
        UsageError: the request itself is wrong.
        TranspileErrors: the model or its weights cannot be used; every reason is listed.
    """
    from transpiler.dry_run import checked

    progress = progress or Silent()
    groups = _targets(request)
    tuners = _tuners(groups, {}, request)
    progress.stage("tracing the model")
    refusals = Refusals(len(groups) > 1)
    try:
        model = _front_end(request, groups)
    except NotImported as error:
        for name, group in groups.items():
            with refusals.of(name):
                rewritten = _rewrite(error.understood, request, group[0])
                for target in group:
                    with refusals.of(name):
                        backend(name).check(_lower(rewritten, tuners[target.variant.name], request, progress), target)
        raise TranspileErrors([*error.problems, *refusals.problems(error.problems)]) from None
    name = _package_name(request, model)
    for warning in model.warnings:
        progress.warn(warning)
    _, lowered = _lower_all(model.program, groups, tuners, request, progress)
    for chosen, variants in lowered.items():
        _check_kernels(variants, groups[chosen], refusals)
    refusals.raise_all()
    return checked(name, model, lowered)


def _targets(request: Request) -> dict[str, list[Target]]:
    """The variants of every target, best first."""
    refuse_elsewhere()
    return load_groups(request.targets, request.isas, request.archs, request.triple)


def _worst(errors: Mapping[str, Mapping[str, CaseError]]) -> dict[str, CaseError]:
    """Per output the worst of all targets."""
    from transpiler.measuring import worst_errors

    found: dict[str, list[CaseError]] = {}
    for by_output in errors.values():
        for output, error in by_output.items():
            found.setdefault(output, []).append(error)
    return {output: next(iter(worst_errors(items).values())) for output, items in found.items()}


def _start_compiler(groups: Mapping[str, Sequence[Target]], request: Request, background: Executor) -> Compiler | None:
    """The C compiler, which makes the fixed part of a library in the background; GPUs need none."""
    if "cpu" not in groups:
        return None
    from transpiler.c_compiler import c_compiler
    from transpiler.link import shared_objects

    compiler = c_compiler(groups["cpu"][0].isa.triple, request.glibc)
    background.submit(shared_objects, compiler)
    return compiler


def _front_end(request: Request, groups: Mapping[str, Sequence[Target]]) -> Model:
    from transpiler.frontend import read_model
    from transpiler.precision import computed_in

    tf32 = any(target.tf32 for group in groups.values() for target in group)
    return read_model(request, computed_in(request.precision, tf32))


def _package_name(request: Request, model: Model) -> str:
    from transpiler.naming import package_name

    return package_name(request.name or model.name)


def _rewrite(program: Program, request: Request, target: Target) -> Program:
    from transpiler.lower import matching_taps
    from transpiler.passes import PIPELINES, run_passes
    from transpiler.passes.precision import lower_precision
    from transpiler.precision import computed_in, is_half

    passes = PIPELINES[target.name]
    if request.taps == "all":
        unfolded = run_passes(program, passes.unfolded)
        return lower_precision(unfolded, target, request.precision, fuse=False)
    paths = {path for graph in program.functions.values() for path in graph.taps}
    pinned = matching_taps(paths, request.taps) if request.taps else frozenset()
    for graph in program.functions.values():
        program = program.with_function(replace(graph, pinned=pinned & graph.taps.keys()))
    # Winograd's filters are larger, and errors of half floats grow in them; units for TF32 save more than it does.
    exact = request.exact or is_half(request.precision) or computed_in(request.precision, target.tf32) == "tf32"
    rewritten = run_passes(program, passes.exact if exact else passes.usual)
    return lower_precision(rewritten, target, request.precision)


def _tuners(
    groups: Mapping[str, Sequence[Target]], run_here: Mapping[str, Sequence[Target]], request: Request
) -> dict[str, Tuner]:
    """By variant. Raises UsageError for a tuning record that cannot be used."""
    tuners: dict[str, Tuner] = {}
    for name, group in groups.items():
        # What is fast on this machine says little about machines that lack its best instructions.
        here = run_here.get(name, ()) if backend(name).tuned else ()
        tuned = here if request.tune == "full" else here[:1]
        for target in group:
            tuners[target.variant.name] = _tuner(target, request, request.tune if target in tuned else "none")
    return tuners


def _untimed(
    groups: Mapping[str, Sequence[Target]], run_here: Mapping[str, Sequence[Target]], request: Request
) -> list[str]:
    """What is said of targets whose kernels were to be timed, and that this machine cannot run."""
    if request.tune == "none":
        return []
    return [
        f"no device for {backend(name).title} here: nothing is timed, kernels are chosen by what is shipped"
        for name in groups
        if backend(name).tuned and not run_here[name]
    ]


Lowered = dict[str, dict[str, "LoweredProgram"]]


def _lower_all(
    program: Program,
    groups: Mapping[str, Sequence[Target]],
    tuners: Mapping[str, Tuner],
    request: Request,
    progress: Progress,
) -> tuple[dict[str, Program], Lowered]:
    """The rewritten program of every target, and what it is lowered to for each variant.

    Raises:
        TranspileErrors: what the targets refuse, all of it.
    """
    rewritten: dict[str, Program] = {}
    lowered: Lowered = {}
    refusals = Refusals(len(groups) > 1)
    for name, group in groups.items():
        with refusals.of(name):
            rewritten[name] = _rewrite(program, request, group[0])
            variants = [target.variant.name for target in group]
            lowered[name] = {item: _lower(rewritten[name], tuners[item], request, progress) for item in variants}
    if refusals.found:  # a target that is fine so far may refuse kernels
        for name, variants_of in lowered.items():
            _check_kernels(variants_of, groups[name], refusals)
    refusals.raise_all()
    if len(groups) > 1:
        from transpiler.parts import share_weights

        shared = share_weights(
            {name: [item.plans for item in variants.values()] for name, variants in lowered.items()},
            {name: rewritten[name].constants for name in groups},
            max(group[0].alignment for group in groups.values()),
        )
        lowered = {
            name: {
                variant: replace(item, plans=plans)
                for (variant, item), plans in zip(variants.items(), shared[name], strict=True)
            }
            for name, variants in lowered.items()
        }
    return rewritten, lowered


def _check_kernels(lowered: Mapping[str, LoweredProgram], group: Sequence[Target], refusals: Refusals) -> None:
    for target in group:
        with refusals.of(target.name):
            backend(target.name).check(lowered[target.variant.name], target)


def _compile(
    lowered: Lowered,
    groups: Mapping[str, Sequence[Target]],
    name: str,
    version: str,
    compiler: Compiler | None,
    progress: Progress,
) -> dict[str, Artifacts]:
    """By target. Raises TranspileErrors: the kernels that have no form on a target, of all targets."""
    artifacts: dict[str, Artifacts] = {}
    refusals = Refusals(len(groups) > 1)
    for target, group in groups.items():
        with refusals.of(target):
            artifacts[target] = backend(target).compile(Job(lowered[target], group, name, version, compiler, progress))
    refusals.raise_all()
    return artifacts


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
