"""What a build made, put together: the view that the templates print, and the package's files in a folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from transpiler.artifacts import Artifacts
from transpiler.checks import FACTOR_EPS, FACTOR_EPS_HALF, FACTOR_TORCH
from transpiler.emit import PackageView, emit_package, make_view, run_prepare, write_package
from transpiler.frontend import Model
from transpiler.ir import Program
from transpiler.measuring import CaseError
from transpiler.parts import Part
from transpiler.plan import KernelPlan
from transpiler.precision import is_half
from transpiler.provenance import options_of, tool_versions
from transpiler.recording import Results, magnitude
from transpiler.request import Request
from transpiler.structure import Leaf, Sequence_
from transpiler.testing import FunctionTests, emit_tests
from transpiler.tuning import Tuner, record_text


def make_part(
    plans: Sequence[KernelPlan],
    artifacts: Artifacts,
    rewritten: Program,
    model: Model,
    results: Results,
    errors: Mapping[str, CaseError] | None,
    request: Request,
) -> Part:
    """What a package has for one target; `errors` are None as long as nothing has been measured there."""
    return Part(
        plans,
        artifacts,
        run_prepare(plans[0], rewritten.constants, model.state),
        rewritten.constants,
        verified=errors is not None and request.test,
        errors=[
            {
                "function": item.function,
                "output": item.output,
                "case": item.case,
                "max_abs_error": min(item.max_abs_error, sys.float_info.max),  # JSON has no infinity
                "tolerance": item.tolerance,
                "max_abs_reference": magnitude(results, item),
                "max_relative_error": item.max_relative_error,
                "rms_relative_error": item.rms_relative_error,
            }
            for item in (errors or {}).values()
        ],
    )


def package_view(
    name: str,
    model: Model,
    parts: Sequence[Part],
    results: Results,
    request: Request,
) -> PackageView:
    """What the templates print."""
    example = results.recording(results.main).cases[0]
    sample = {f"input.{index}": array for index, array in enumerate(example.drawn.arrays)}
    if all(item.positions is None for item in example.outputs):
        sample |= {
            f"output.{index}": item.torch.reshape(item.shape)
            for index, item in enumerate(example.outputs)
            if not item.excluded
        }
    else:
        sample = {}
    verification = {
        "tolerance": {
            "factor_torch": FACTOR_TORCH,
            "factor_eps": FACTOR_EPS,
            "factor_eps_half": FACTOR_EPS_HALF,
        },
        "sample_tolerance": {item.name: item.tolerance for item in example.outputs},
    }
    compilers = [part.artifacts.compiler for part in parts]
    compiler = next((item for item in compilers if item != "none"), "none")
    return make_view(
        name=name,
        program=model.program,
        parts=parts,
        source=model.facts,
        verification=verification,
        sample=sample,
        tool_versions=tool_versions(compiler),
        options=options_of(request, [variant for part in parts for variant in part.artifacts.variants]),
        weights_hash=model.weights_hash,
        graph_json=model.graph_json,
        bounds={name: function.bounds for name, function in model.functions.items()},
        examples={name: [array.shape for array in function.examples] for name, function in model.functions.items()},
        exact=request.exact,
        precision=request.precision,
        version=request.version,
    )


def all_taps(plans: Sequence[Sequence[KernelPlan]]) -> dict[str, dict[str, str]]:
    """Function -> the module paths that have a value on some target, and its dtype: a half float if it is one on any.

    `plans` are those of every target.
    """
    found: dict[str, dict[str, str]] = {}
    for plan in (plan for functions in plans for plan in functions):
        dtypes = found.setdefault(plan.function, {})
        for path, tap in plan.taps.items():
            if path not in dtypes or is_half(tap.type.dtype):
                dtypes[path] = tap.type.dtype
    return found


def tuning_file(tuners: Mapping[str, Tuner]) -> dict[str, bytes]:
    """tuning.json, the choices that were not the schedules' own: with it another machine builds the same kernels."""
    records = {isa: tuner.record for isa, tuner in tuners.items() if tuner.record}
    return {"tuning.json": record_text(records).encode()} if records else {}


def write_with_tests(
    view: PackageView,
    model: Model,
    results: Results,
    parts: Sequence[Part],
    folder: Path,
    extra: Mapping[str, bytes],
) -> None:
    """Write the package with its generated tests, and the `extra` files, into `folder`."""
    plans, taps = parts[0].plans, all_taps([part.plans for part in parts])
    functions = []
    for plan, recording in zip(plans, results.functions, strict=True):
        graph = model.program.functions[plan.function]
        is_main = plan.function == results.main
        entry = view.manifest if is_main else view.manifest["functions"][plan.function]
        positional: Sequence[Leaf] = [Leaf(index) for index in range(len(plan.user_inputs))]
        functions.append(
            FunctionTests(
                recording,
                in_structure=graph.in_structure or Sequence_("tuple", tuple(positional)),
                out_structure=graph.out_structure or Sequence_("tuple", tuple(map(Leaf, range(len(plan.outputs))))),
                taps=[
                    path for path in taps[plan.function] if recording.taps is not None and path in recording.taps.values
                ],
                symbols=entry["symbols"],
            )
        )
    functions.sort(key=lambda item: item.recording.function != results.main)
    tests = emit_tests(
        functions,
        package=view.name,
        aliases=model.program.aliases,
        sequence=results.sequence,
        targets=[part.target for part in parts],
    )
    write_package(emit_package(view, {**tests, **extra}), folder)
