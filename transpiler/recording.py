"""PyTorch's results on the cases of every function, and a package's error against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transpiler.cases import Argument
from transpiler.emit import PackageView, emit_package, write_package
from transpiler.errors import TranspileError
from transpiler.frontend import Model
from transpiler.interpreter import bind_symbols, initial_state
from transpiler.ir import Array
from transpiler.loading import forced_isa, load_package
from transpiler.measuring import CaseError, measure, worst_errors
from transpiler.plan import KernelPlan, output_names
from transpiler.precision import is_half
from transpiler.recorded import OutputSpec, Recording, Step
from transpiler.size_cases import size_cases
from transpiler.verify import record, record_random, record_sequence


@dataclass(frozen=True)
class Results:
    """PyTorch's results: a recording per function, in the program's order, and a sequence of calls if it has state."""

    functions: tuple[Recording, ...]
    sequence: tuple[Step, ...]
    main: str

    def recording(self, function: str) -> Recording:
        return next(item for item in self.functions if item.function == function)


def record_results(model: Model, plans: Sequence[KernelPlan], taps: Mapping[str, Mapping[str, str]]) -> Results:
    """Run PyTorch on the cases of every function, and on a sequence of calls if there is state.

    `plans` are those of any target; `taps` are the module paths to record, by function, and the values' dtypes.
    """
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
            taps={path: function.taps[path] for path in taps[plan.function] if path in function.taps},
            function=plan.function,
            initial=partial(initial_state, model.program),
            lower=function.lower,
            tap_dtypes={path: dtype for path, dtype in taps[plan.function].items() if is_half(dtype)},
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
            {name: function.lower for name, function in model.functions.items()},
        )
    return Results(tuple(recordings), steps, model.program.main.name)


def magnitude(results: Results, error: CaseError) -> float:
    """The largest finite magnitude of PyTorch's output in the case that the error was measured on."""
    case = next(case for case in results.recording(error.function).cases if case.name == error.case)
    values = next(out.float64 for out in (*case.outputs, *case.state) if out.name == error.output)
    finite = np.abs(values[np.isfinite(values)]) if values.dtype.kind == "f" else np.abs(values)
    return float(finite.max(initial=0.0))


def measure_errors(
    view: PackageView, results: Results, folder: Path, targets: Sequence[str]
) -> dict[str, Mapping[str, CaseError]]:
    """Run the package, as it will be shipped, on every case and each of `targets`; each starts from the initial state.

    Per target and output the worst of all instruction sets that the package has and this machine runs.

    Raises:
        TranspileError: "cannot-run-here": a device of this machine lacks something that the package needs.
    """
    write_package(emit_package(view), folder)
    package = load_package(folder, view.name)
    return {target: _measure_on(target, package, results) for target in targets}


def _measure_on(target: str, package: Any, results: Results) -> Mapping[str, CaseError]:
    errors: dict[str, list[CaseError]] = {recording.function: [] for recording in results.functions}
    try:
        for isa in package.Model.runnable_isas(target):
            with forced_isa(isa), package.Model(device=target) as model:
                for recording in results.functions:
                    errors[recording.function] += measure(recording, partial(_run_case, model, recording.function))
    except package.PackageError as error:
        raise TranspileError(
            "cannot-run-here", f"The package cannot be verified on this machine: {error}.",
            hints=["choose another device (VULKAN_DEVICE), or smaller sizes"],
        ) from error  # fmt: skip
    worst: dict[str, CaseError] = {}
    for function, found in errors.items():
        prefix = "" if function == results.main else f"{function}."
        worst.update({f"{prefix}{name}": error for name, error in worst_errors(found).items()})
    return worst


def _run_case(model: Any, function: str, arrays: Sequence[Array]) -> list[Array]:
    session = model.session()
    if model.manifest["rng"]:
        session.seed(0)
    return [*session.infer(*arrays, function=function), *(session.state[key] for key in session.state)]
