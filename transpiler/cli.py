"""The command `transpile`. The only module that prints results and chooses exit codes.

Exit codes: 0 done; 1 the model cannot be transpiled, every reason listed; 2 wrong usage; 3 the generated tests
failed; 130 interrupted. Nothing heavy is imported before a model is really transpiled.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import click

from transpiler import __version__
from transpiler.errors import Problem, TranspileErrors, UsageError, render
from transpiler.naming import DEFAULT_VERSION
from transpiler.resources import PACKAGE

if TYPE_CHECKING:
    from transpiler.request import Precision, Request, TestsFailed
    from transpiler.wheels import BundleWeights

FAILED, USAGE, TESTS_FAILED, INTERRUPTED = 1, 2, 3, 130
MAX_FAILURES = 20


@click.command(
    name="transpile",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done; 1 the model cannot be transpiled; 2 wrong usage; 3 the generated tests failed.",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="What to build for; several for one package, the first is its default.  [default: cpu]",
)
@click.option("--entry", metavar="NAME", help="Class or function of model.py that gives the model.")
@click.option("--init", "inits", multiple=True, metavar="KEY=VALUE", help="Argument of the class or function.")
@click.option(
    "--input", "inputs", multiple=True, metavar="SPEC",
    help="Shape and type of an input: 1x3x224x224:float32, or ids=1x128:int64[0..30521].",
)  # fmt: skip
@click.option("--weights", type=click.Path(path_type=Path), help="A .safetensors or state_dict file to use.")
@click.option(
    "--dynamic", multiple=True, metavar="NAME.DIM=SIZE",
    help="Let a dimension vary from call to call: x.0=batch, ids.1=seq:1..512, x.2=32*tiles:1..16.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["float32", "tf32", "float16", "bfloat16"]), default="float32", show_default=True,
    help="What weights, and operands of products, may be rounded to (docs/precision.md).",
)  # fmt: skip
@click.option(
    "--taps", metavar="GLOB|all",
    help="Module paths whose outputs stay visible (layer1.*); 'all': every one, unfused, slower.",
)  # fmt: skip
@click.option("--name", metavar="NAME", help="Import name of the package.  [default: from the model]")
@click.option("--package-version", metavar="VERSION", default=DEFAULT_VERSION, show_default=True, help="Its version.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("generated"), show_default=True,
    help="Folder that gets the package's folder.",
)  # fmt: skip
@click.option(
    "--tune", type=click.Choice(["none", "fast", "full"]), default="fast", show_default=True,
    help="Time variants of large kernels on this machine: a few, all, or none (docs/tuning.md).",
)  # fmt: skip
@click.option(
    "--tuning-record", type=click.Path(path_type=Path), metavar="FILE",
    help="Take the choices of another build's tuning.json.",
)  # fmt: skip
@click.option(
    "--isa", "isas", multiple=True, metavar="NAME|native",
    help="Instruction set, several times for several; native: this machine's best.  [default: all]",
)  # fmt: skip
@click.option(
    "--arch", "archs", multiple=True, metavar="sm_NN",
    help="Architecture of NVIDIA's GPUs, several times for several.  [default: all]",
)  # fmt: skip
@click.option(
    "--triple", metavar="TRIPLE", help="Machine to build for: aarch64-unknown-linux-gnu.  [default: this one]"
)
@click.option("--glibc", metavar="VERSION", help="Oldest C library to run with, such as 2.17.  [default: this one's]")
@click.option("--rng", is_flag=True, help="Draw random numbers with a seeded generator (see docs/random.md).")
@click.option(
    "--exact", is_flag=True, help="No Winograd convolutions and no Strassen products (see docs/performance.md)."
)
@click.option("--test/--no-test", default=True, help="Run the generated tests.  [default: test]")
@click.option("--wheel", is_flag=True, help="Also write a wheel, beside the package's folder.")
@click.option(
    "--bundle-weights", type=click.Choice(["embed", "separate", "none"]), metavar="HOW",
    help="The wheel's weights: embed (in it, the default), separate (in a file beside it) or none.",
)  # fmt: skip
@click.option("--check", "check_only", is_flag=True, help="Only list what is unsupported; nothing is compiled.")
@click.option("--traceback", "trace", is_flag=True, help="Show where in the transpiler an error arose.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.option("-v", "--verbose", is_flag=True, help="Also the time of every stage.")
@click.version_option(__version__, prog_name="transpile", message="%(prog)s %(version)s")
@click.pass_context
def main(
    context: click.Context,
    model: Path,
    targets: Sequence[str],
    entry: str | None,
    inits: Sequence[str],
    inputs: Sequence[str],
    weights: Path | None,
    dynamic: Sequence[str],
    precision: Precision,
    taps: str | None,
    name: str | None,
    package_version: str,
    out: Path,
    tune: Literal["none", "fast", "full"],
    tuning_record: Path | None,
    isas: Sequence[str],
    archs: Sequence[str],
    triple: str | None,
    glibc: str | None,
    rng: bool,
    exact: bool,
    test: bool,
    wheel: bool,
    bundle_weights: BundleWeights | None,
    check_only: bool,
    trace: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Transpile the PyTorch model in MODEL into a standalone Python package.

    MODEL is a model.py, a model.pt2 (torch.export.save), or a model.graph.json with its --weights. A model.py
    defines one nn.Module class or build_model(), and example_inputs(); otherwise give --entry and --input.

    The package needs numpy, and neither PyTorch nor a compiler. Its tests prove it equal to PyTorch.
    """
    # A short process that builds big object graphs: looking for garbage often costs it a tenth of its time.
    gc.set_threshold(100_000, 50, 50)
    started = time.monotonic()
    try:
        if quiet and verbose:
            raise UsageError("quiet-and-verbose", "-q and -v contradict each other.")
        if bundle_weights and not wheel:
            raise UsageError("bundle-without-wheel", "--bundle-weights says what --wheel puts into a wheel: add it.")
        if wheel and check_only:
            raise UsageError("wheel-and-check", "--check builds nothing that --wheel could pack.")
        request = _request(
            model,
            targets,
            entry,
            inits,
            inputs,
            dynamic,
            weights,
            taps,
            name,
            package_version,
            out,
            tune,
            tuning_record,
            isas,
            archs,
            triple,
            glibc,
            rng,
            exact,
            precision,
            test,
        )
        bundle = (bundle_weights or "embed") if wheel else None
        lines = _run(request, started, bundle, check_only=check_only, quiet=quiet, verbose=verbose)
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
            raise
        _fail(context, error, model, trace=trace, verbose=verbose, check_only=check_only)
    if not quiet:
        for line in lines:
            click.echo(line)


def _request(
    model: Path,
    targets: Sequence[str],
    entry: str | None,
    inits: Sequence[str],
    inputs: Sequence[str],
    dynamic: Sequence[str],
    weights: Path | None,
    taps: str | None,
    name: str | None,
    version: str,
    out: Path,
    tune: Literal["none", "fast", "full"],
    tuning_record: Path | None,
    isas: Sequence[str],
    archs: Sequence[str],
    triple: str | None,
    glibc: str | None,
    rng: bool,
    exact: bool,
    precision: Precision,
    test: bool,
) -> Request:
    from transpiler.specs import parse_dynamic, parse_inits, parse_input

    for file in filter(None, (model, weights, tuning_record)):
        if not file.is_file():
            what = "is a folder, expected a file" if file.is_dir() else "is not a file" if file.exists() else None
            raise UsageError("no-such-file", f"{file} {what or 'does not exist'}.")
    from transpiler.request import Request

    return Request(
        model=model,
        targets=tuple(targets) or ("cpu",),
        name=name,
        version=version,
        out=out,
        entry=entry,
        init=parse_inits(inits),
        inputs=tuple(parse_input(text) for text in inputs),
        dynamic=tuple(parse_dynamic(text) for text in dynamic),
        weights=weights,
        taps=taps,
        tune=tune,
        tuning_record=tuning_record,
        isas=tuple(dict.fromkeys(isas)),
        archs=tuple(dict.fromkeys(archs)),
        triple=triple,
        glibc=glibc,
        rng=rng,
        exact=exact,
        precision=precision,
        test=test,
    )


def _run(
    request: Request, started: float, bundle: BundleWeights | None, *, check_only: bool, quiet: bool, verbose: bool
) -> list[str]:
    """Transpile, or only check; what to tell about the result. A wheel is made if `bundle` says how."""
    from transpiler.console import progress_for
    from transpiler.pipeline import build, check

    if check_only:
        from transpiler import dry_run

        with progress_for(quiet=quiet, verbose=verbose) as progress:
            return dry_run.summary(check(request, progress))
    with progress_for(quiet=quiet, verbose=verbose) as progress:
        report = build(request, progress)
        wheel = None
        if bundle is not None:
            from transpiler.wheels import write_wheel

            progress.stage("writing the wheel")
            wheel = write_wheel(report.path, report.path.parent, bundle)
    from transpiler.summary import summary

    return summary(report, time.monotonic() - started, wheel)


# --- errors -------------------------------------------------------------------------------------------------


def _fail(
    context: click.Context, error: BaseException, model: Path, *, trace: bool, verbose: bool, check_only: bool
) -> NoReturn:
    """Show the error, and leave with its exit code."""
    from transpiler.request import TestsFailed

    if trace:
        click.echo("".join(traceback.format_exception(error)), err=True)
    match error:
        case KeyboardInterrupt():
            click.echo("Interrupted; nothing half-written was left.", err=True)
            context.exit(INTERRUPTED)
        case TestsFailed():
            _show_failed_tests(error, verbose)
            context.exit(TESTS_FAILED)
        case UsageError():
            _show(error.problems)
            click.echo("\nTry 'transpile --help'.", err=True)
            context.exit(USAGE)
        case TranspileErrors():
            _show(error.problems)
            count = len(error.problems)
            reasons = "" if count == 1 else f", for {count} reasons"
            verdict = "cannot be transpiled" if check_only else "was not transpiled"
            written = "" if check_only else "; nothing was written"
            click.echo(f"\n{model} {verdict}{reasons}{written}.", err=True)
        case OSError() if error.filename is not None:
            _show([Problem("os-error", f"{error.strerror}: {error.filename}")])
            click.echo(f"\n{model} was not transpiled; nothing was written.", err=True)
        case _:
            described = traceback.format_exception_only(error)[-1].strip()
            report = (
                "report it with the text above and, if you can, the model"
                if trace
                else "run the command again with --traceback and report what it prints"
            )
            _show(
                [
                    Problem(
                        "internal-error",
                        f"Internal error: {described}",
                        notes=("this is a bug in the transpiler, not in your model; nothing was written",),
                        hints=(f"please {report}",),
                    )
                ]
            )
    context.exit(FAILED)


def _show(problems: Sequence[Problem]) -> None:
    """One-line problems stand close together, longer ones apart."""
    label = click.style("Error: ", fg="red", bold=True)
    texts = [label + render([problem]) for problem in problems]
    gap = "\n\n" if any("\n" in text for text in texts) else "\n"
    click.echo(gap.join(texts), err=True)


def _show_failed_tests(error: TestsFailed, verbose: bool) -> None:
    failures = error.report.failures
    shown = [f"failed: {name}" for name in failures[:MAX_FAILURES]]
    if len(failures) > MAX_FAILURES:
        shown.append(f"... and {len(failures) - MAX_FAILURES} more")
    if verbose:
        click.echo(error.report.output, err=True)
    (problem,) = error.problems
    _show([Problem(problem.code, problem.message, notes=(*shown, *problem.notes), hints=problem.hints)])


def run(prog_name: str | None = None) -> NoReturn:
    """The `transpile` command: `main`, without the second that PyTorch and TVM take to be torn down at exit."""
    code: object = 0
    try:
        if sys.argv[1:] == ["cmake-dir"]:  # where find_package(transpiler) finds it (docs/build_step.md)
            click.echo(PACKAGE / "cmake")
        else:
            main(prog_name=prog_name)
    except SystemExit as stop:
        code = stop.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
