"""The whole way from a model to a package, one straight line.

Nothing heavy is imported before it is needed: torch comes with the capture, TVM with the first schedule.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transpiler.errors import TranspileError, TranspileErrors, UsageError
from transpiler.problems import NotImported
from transpiler.progress import Progress, Silent
from transpiler.specs import DynamicSpec, InputSpec
from transpiler.target import Target, known_targets, load_target

if TYPE_CHECKING:
    from transpiler.dry_run import Checked
    from transpiler.emit import PackageView
    from transpiler.frontend import Model
    from transpiler.ir import Array, Program
    from transpiler.link import Linked
    from transpiler.lower import LoweredProgram
    from transpiler.plan import KernelPlan
    from transpiler.testing import TestReport
    from transpiler.tuning import Tuner
    from transpiler.verify import CaseError, Recording, Step

TOOLS = ("torch", "apache-tvm", "apache-tvm-ffi", "numpy", "torch-transpiler")


@dataclass(frozen=True)
class Request:
    """What to transpile and how. `model` is a path, an nn.Module or an ExportedProgram."""

    model: Any
    args: tuple[Any, ...] | None = None
    kwargs: Mapping[str, Any] | None = None
    functions: Mapping[str, Any] | None = None
    targets: tuple[str, ...] = ("cpu",)
    name: str | None = None
    out: Path = Path("generated")
    entry: str | None = None
    init: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[InputSpec, ...] = ()
    dynamic: tuple[DynamicSpec, ...] = ()
    dynamic_shapes: Any = None
    weights: Any = None  # a path, or a mapping of state_dict keys to arrays
    taps: str | None = None
    isas: tuple[str, ...] = ()
    rng: bool = False
    tune: Literal["none", "fast", "full"] = "none"
    tuning_record: Path | None = None
    exact: bool = False
    test: bool = True


@dataclass(frozen=True)
class Report:
    """The package's folder, the measured error per output, and the generated tests' result (None: not run)."""

    path: Path
    name: str
    errors: Mapping[str, CaseError]
    tests: TestReport | None
    kernels: int
    warnings: tuple[str, ...]


class TestsFailed(TranspileErrors):
    """The generated tests failed: the package is in `path`, the previous one is untouched."""

    def __init__(self, path: Path, report: TestReport) -> None:
        self.path, self.report = path, report
        error = TranspileError(
            "tests-failed",
            f"The generated tests failed: {report.failed} of {report.failed + report.passed}.",
            notes=[f"the failed package is in {path}"],
            hints=[f"read it with: python -m pytest {path / 'tests'}"],
        )
        super().__init__(error.problems)


def build(request: Request, progress: Progress | None = None) -> Report:
    """Transpile: import, rewrite, compile, emit, verify, and move the finished package into place.

    Raises:
        UsageError: the request itself is wrong.
        TranspileErrors: the model, its weights or the output folder cannot be used; every reason is listed.
        TestsFailed: the package was built and its tests do not pass.
    """
    from transpiler.link import c_compiler
    from transpiler.output import check_output

    progress = progress or Silent()
    targets = _targets(request)
    c_compiler()
    with tempfile.TemporaryDirectory(prefix="transpile-") as scratch, ThreadPoolExecutor(2) as background:
        # The fixed part of the library compiles while the model is traced.
        runtime = background.submit(_compile_runtime)
        progress.stage("tracing the model")
        model = _front_end(request)
        name = _package_name(request, model)
        folder = Path(request.out) / name
        check_output(folder)
        for warning in model.warnings:
            progress.warn(warning)
        lowered: dict[str, LoweredProgram] = {}
        tuners: dict[str, Tuner] = {}
        libraries: dict[str, Linked] = {}
        rewritten = _rewrite(model.program, request)
        for target in targets:
            tuners[target.isa.name] = _tuner(target, request, request.tune)
            lowered[target.isa.name] = _lower(rewritten, tuners[target.isa.name], request, progress)
        runtime.result()
        for target in targets:
            libraries[target.isa.name] = _compile(lowered[target.isa.name], target, name, progress)
        plans = lowered[targets[0].isa.name].plans
        progress.stage("recording PyTorch's results")
        recorded = _record(model, plans)
        view = _view(name, model, rewritten, plans, libraries, recorded, None, request)
        progress.stage("measuring the error")
        errors = _measure(view, recorded, Path(scratch) / "measured")
        staged = Path(scratch) / "package" / name
        view = _view(name, model, rewritten, plans, libraries, recorded, errors, request)
        _write(view, model, recorded, plans, staged, _tuning_file(tuners))
        tests = _run_tests(staged, progress) if request.test else None
        wrong = tests is not None and not tests.ok
        if wrong:
            folder = folder.with_name(f"{name}.failed")
        progress.stage(f"writing {folder}")
        _publish(staged, folder)
        if wrong:
            assert tests is not None
            raise TestsFailed(folder, tests)
    return Report(folder, name, errors, tests, len(plans[0].kernels), model.warnings)


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
    """One entry per ISA of the (one) target."""
    from transpiler.errors import unknown

    for name in request.targets:
        if name not in known_targets():
            raise unknown("target", name, known_targets(), code="unknown-target")
    (name, *more) = dict.fromkeys(request.targets)
    if more:
        raise UsageError("several-targets", "Several targets in one package are not supported; name one --target.")
    return [load_target(name, isa) for isa in (request.isas or (None,))]


def _compile_runtime() -> None:
    from transpiler.link import c_compiler, shared_objects

    shared_objects(c_compiler())


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


def _compile(lowered: LoweredProgram, target: Target, name: str, progress: Progress) -> Linked:
    from transpiler.compile import compile_kernels
    from transpiler.link import link_library

    progress.stage(f"compiling kernels for {target.isa.name}")
    objects = compile_kernels(lowered.kernels, target, progress=progress.advance)
    return link_library(objects, lowered.plans, name, target.isa.name)


@dataclass(frozen=True)
class Recorded:
    """PyTorch's results: a recording per function, in the program's order, and a sequence of calls if it has state."""

    functions: tuple[Recording, ...]
    sequence: tuple[Step, ...]
    main: str

    def recording(self, function: str) -> Recording:
        return next(item for item in self.functions if item.function == function)


def _record(model: Model, plans: Sequence[KernelPlan]) -> Recorded:
    from transpiler.cases import Argument
    from transpiler.interpreter import bind_symbols, initial_state
    from transpiler.link import output_names
    from transpiler.size_cases import size_cases
    from transpiler.verify import OutputSpec, record, record_random, record_sequence

    recordings = []
    outputs = {}
    for plan in plans:
        function = model.functions[plan.function]
        outputs[plan.function] = [
            OutputSpec(name, value.dtype, value.shape)
            for name, value in zip(output_names(plan), plan.outputs, strict=True)
        ]
        recording = record(
            [
                Argument(item.key, item.value.dtype, item.value.shape, function.bounds.get(item.key))
                for item in plan.user_inputs
            ],
            function.examples,
            outputs[plan.function],
            eager=function.eager,
            reference=function.reference,
            state=model.state,
            aliases=model.program.aliases,
            taps={path: function.taps[path] for path in plan.taps if path in function.taps},
            function=plan.function,
            initial=partial(initial_state, model.program),
            sizes=size_cases(
                plan.symbols,
                bind_symbols([item.value for item in plan.user_inputs], function.examples),
                [plan.kernel(call.kernel).flops for call in plan.calls()],
            ),
        )
        recordings.append(recording if function.random is None else record_random(recording, function.random))
    steps: tuple[Step, ...] = ()
    if model.program.states():
        steps = record_sequence(
            recordings,
            outputs,
            {name: function.eager for name, function in model.functions.items()},
            {name: function.reference for name, function in model.functions.items()},
            initial_state(model.program, model.state),
        )
    return Recorded(tuple(recordings), steps, model.program.main.name)


def _view(
    name: str,
    model: Model,
    rewritten: Program,
    plans: Sequence[KernelPlan],
    libraries: Mapping[str, Linked],
    recorded: Recorded,
    errors: Mapping[str, CaseError] | None,
    request: Request,
) -> PackageView:
    from transpiler.checks import FACTOR_EPS, FACTOR_EPS_HALF, FACTOR_TORCH
    from transpiler.emit import make_view, run_prepare

    example = recorded.recording(recorded.main).cases[0]
    sample = {f"input.{index}": array for index, array in enumerate(example.drawn.arrays)}
    if all(item.positions is None for item in example.outputs):
        sample |= {f"output.{index}": item.torch.reshape(item.shape) for index, item in enumerate(example.outputs)}
    else:
        sample = {}
    verification = {
        "verified": errors is not None and request.test,
        "tolerance": {
            "factor_torch": FACTOR_TORCH,
            "factor_eps": FACTOR_EPS,
            "factor_eps_half": FACTOR_EPS_HALF,
        },
        "error": [
            {
                "function": item.function,
                "output": item.output,
                "case": item.case,
                "max_abs_error": item.max_abs_error,
                "tolerance": item.tolerance,
                "max_abs_reference": _magnitude(recorded, item),
                "sample_tolerance": _sample_tolerance(recorded, item),
            }
            for item in (errors or {}).values()
        ],
    }
    program = replace(model.program, constants=rewritten.constants)
    return make_view(
        name=name,
        program=program,
        plans=plans,
        libraries=libraries,
        prepared=run_prepare(plans[0], program.constants, model.state),
        source=model.facts,
        verification=verification,
        sample=sample,
        tool_versions={tool: _version(tool) for tool in TOOLS},
        graph_json=model.graph_json,
        bounds={name: function.bounds for name, function in model.functions.items()},
        examples={name: [array.shape for array in function.examples] for name, function in model.functions.items()},
        exact=request.exact,
    )


def _sample_tolerance(recorded: Recorded, error: CaseError) -> float:
    """The tolerance of an output in its function's example."""
    case = recorded.recording(error.function).cases[0]
    return next(item.tolerance for item in (*case.outputs, *case.state) if item.name == error.output)


def _magnitude(recorded: Recorded, error: CaseError) -> float:
    """The largest finite magnitude of PyTorch's output in the case that the error was measured on."""
    import numpy as np

    case = next(case for case in recorded.recording(error.function).cases if case.name == error.case)
    values = next(out.float64 for out in (*case.outputs, *case.state) if out.name == error.output)
    finite = np.abs(values[np.isfinite(values)]) if values.dtype.kind == "f" else np.abs(values)
    return float(finite.max(initial=0.0))


def _version(tool: str) -> str:
    if tool == "torch-transpiler":
        from transpiler import __version__

        return __version__
    try:
        return metadata.version(tool)
    except metadata.PackageNotFoundError:
        return "unknown"


def _measure(view: PackageView, recorded: Recorded, folder: Path) -> Mapping[str, CaseError]:
    """Run the package, as it will be shipped, on every recorded case; each starts from the initial state."""
    from transpiler.emit import emit_package, write_package
    from transpiler.loading import load_package
    from transpiler.verify import measure, worst_errors

    write_package(emit_package(view), folder)
    worst: dict[str, CaseError] = {}
    with load_package(folder, view.name).Model() as model:
        for recording in recorded.functions:

            def run(arrays: Sequence[Array], function: str = recording.function) -> list[Array]:
                session = model.session()
                if model.manifest["rng"]:
                    session.seed(0)
                return [*session.infer(*arrays, function=function), *(session.state[key] for key in session.state)]

            prefix = "" if recording.function == recorded.main else f"{recording.function}."
            found = worst_errors(measure(recording, run))
            worst.update({f"{prefix}{name}": error for name, error in found.items()})
    return worst


def _tuning_file(tuners: Mapping[str, Tuner]) -> dict[str, bytes]:
    """tuning.json, the choices that were not the schedules' own: with it another machine builds the same kernels."""
    from transpiler.tuning import record_text

    records = {isa: tuner.record for isa, tuner in tuners.items() if tuner.record}
    return {"tuning.json": record_text(records).encode()} if records else {}


def _write(
    view: PackageView,
    model: Model,
    recorded: Recorded,
    plans: Sequence[KernelPlan],
    folder: Path,
    extra: Mapping[str, bytes],
) -> None:
    from transpiler.emit import emit_package, write_package
    from transpiler.structure import Leaf, Sequence_
    from transpiler.testing import FunctionTests, emit_tests

    functions = []
    for plan, recording in zip(plans, recorded.functions, strict=True):
        graph = model.program.functions[plan.function]
        is_main = plan.function == recorded.main
        entry = view.manifest if is_main else view.manifest["functions"][plan.function]
        positional: Sequence[Leaf] = [Leaf(index) for index in range(len(plan.user_inputs))]
        functions.append(
            FunctionTests(
                recording,
                in_structure=graph.in_structure or Sequence_("tuple", tuple(positional)),
                out_structure=graph.out_structure or Sequence_("tuple", tuple(map(Leaf, range(len(plan.outputs))))),
                taps=[path for path in plan.taps if recording.taps is not None and path in recording.taps.values],
                symbols=entry["symbols"],
            )
        )
    functions.sort(key=lambda item: item.recording.function != recorded.main)
    tests = emit_tests(functions, package=view.name, aliases=model.program.aliases, sequence=recorded.sequence)
    write_package(emit_package(view, {**tests, **extra}), folder)


def _run_tests(folder: Path, progress: Progress) -> TestReport:
    from transpiler.testing import run_generated_tests

    progress.stage("running the generated tests")
    return run_generated_tests(folder)


def _publish(staged: Path, folder: Path) -> None:
    from transpiler.output import write_package

    files = {path.relative_to(staged).as_posix(): path.read_bytes() for path in staged.rglob("*") if path.is_file()}
    files = {name: data for name, data in files.items() if "__pycache__" not in name}
    write_package(files, folder)
    shutil.rmtree(staged, ignore_errors=True)
