"""The Python interface: `transpile(model, args=...)` gives a `Package`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transpiler.naming import DEFAULT_VERSION
from transpiler.pipeline import build
from transpiler.progress import Progress
from transpiler.request import Precision, Report, Request
from transpiler.specs import parse_dynamic, parse_input

if TYPE_CHECKING:
    from transpiler.testing import TestReport
    from transpiler.wheels import BundleWeights


@dataclass(frozen=True)
class Package:
    """A package on disk: `path` is its folder, `report` what the build measured."""

    path: Path
    name: str
    report: Report

    def load(self, **options: Any) -> Any:
        """The package's `Model(**options)`, without installing it."""
        from transpiler.loading import load_package

        return load_package(self.path, self.name).Model(**options)

    def test(self) -> TestReport:
        """Run the generated tests in a process of their own."""
        from transpiler.testing import run_generated_tests

        return run_generated_tests(self.path)

    def wheel(self, folder: str | Path | None = None, *, bundle_weights: BundleWeights = "embed") -> Path:
        """Write the package as a wheel into `folder`, by default beside the package; the wheel's path.

        `pip install` needs nothing else. The platform tag is that of the oldest glibc which has every symbol that the
        kernels need. The same package makes the same bytes.

        Args:
            bundle_weights: "embed" puts the weights into the wheel; "separate" into a file beside it, which is given to
                `Model(weights=...)` or lies in the folder $TRANSPILE_WEIGHTS; "none" leaves them out.

        Raises:
            TranspileError: "package-changed" if a file of the package is not the one that was built.
        """
        from transpiler.wheels import write_wheel

        return write_wheel(self.path, self.path.parent if folder is None else Path(folder), bundle_weights).path


def transpile(
    model: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    functions: Mapping[str, Any] | None = None,
    target: str | Sequence[str] = "cpu",
    name: str | None = None,
    version: str = DEFAULT_VERSION,
    out: str | Path | None = None,
    entry: str | None = None,
    init: Mapping[str, Any] | None = None,
    inputs: Sequence[str] = (),
    dynamic: Sequence[str] = (),
    dynamic_shapes: Any = None,
    weights: str | Path | Mapping[str, Any] | None = None,
    taps: str | None = None,
    isa: str | Sequence[str] = (),
    arch: str | Sequence[str] = (),
    triple: str | None = None,
    glibc: str | None = None,
    rng: bool = False,
    tune: Literal["none", "fast", "full"] = "none",
    tuning_record: str | Path | None = None,
    exact: bool = False,
    precision: Precision = "float32",
    test: bool = False,
    quiet: bool = True,
    progress: Progress | None = None,
) -> Package:
    """Transpile a PyTorch model into a standalone package.

    Args:
        model: an nn.Module, a torch.export.ExportedProgram, or the path of a model.py, .pt2 or .graph.json.
        args, kwargs: example inputs of an nn.Module, tensors; their shapes and dtypes are the package's.
        functions: example inputs of several functions, by name, in place of args and kwargs: each a tuple of arguments
            or `(args, kwargs)`. A function is the module's method of that name, or `forward` with these inputs if
            it has none. They share weights and state: `{"prefill": (ids,), "decode": (token, position)}`.
        target: "cpu", "vulkan" or "cuda", or several: the package runs on the first unless it is asked for another.
        name: import name of the package; from the model by default.
        version: of the package, its wheel and its pkg-config file (PEP 440).
        out: the folder that gets the package's folder; `generated` by default.
        entry, init, inputs: for a model.py, as --entry, --init and --input.
        weights: other weights than the model's: a .safetensors or state_dict file, or a mapping.
        taps: globs of module paths, separated by commas, whose outputs stay visible; "all" keeps every module's
            (unfused and unfolded, slower).
        isa: instruction sets to build for, or "native": this machine's best; by default all, of which the package
            picks one where it is loaded.
        arch: architectures of NVIDIA's GPUs to build for ("sm_80"); by default all that the target has.
        triple: what to build for, "aarch64-unknown-linux-gnu"; this machine by default (docs/portability.md).
        glibc: the oldest version that the package shall run with, "2.17"; that of this machine by default.
        rng: draw random numbers with a seeded generator of the package's own (docs/random.md); refused otherwise.
        tune: "fast" or "full" times variants of large kernels on this machine (docs/tuning.md).
        tuning_record: the tuning.json of another build, whose choices are taken.
        exact: compute every convolution and product as direct sums, none by Winograd's or Strassen's algorithm
            (docs/performance.md).
        precision: "float16" or "bfloat16" keeps weights in that type, and sums in float32; "tf32" lets products round
            their operands where the target has units for it (docs/precision.md).
        test: run the generated tests before the package is put in place.
        quiet: no progress lines.

    Raises:
        UsageError: the call itself is wrong.
        TranspileErrors: the model cannot be transpiled; every reason is listed with its location.
        TestsFailed: with `test`, the generated tests do not pass.
    """
    if progress is None and not quiet:
        from transpiler.console import plain_progress

        progress = plain_progress()
    report = build(
        Request(
            model=model,
            # One tensor stands for its tuple, as what example_inputs() returns.
            args=None if args is None else (args,) if hasattr(args, "shape") else tuple(args),
            kwargs=kwargs,
            functions=functions,
            targets=(target,) if isinstance(target, str) else tuple(target),
            name=name,
            version=version,
            out=Path(out) if out is not None else Path("generated"),
            entry=entry,
            init=dict(init or {}),
            inputs=tuple(parse_input(text) for text in inputs),
            dynamic=tuple(parse_dynamic(text) for text in dynamic),
            dynamic_shapes=dynamic_shapes,
            weights=weights,
            taps=taps,
            isas=(isa,) if isinstance(isa, str) else tuple(isa),
            archs=(arch,) if isinstance(arch, str) else tuple(arch),
            triple=triple,
            glibc=glibc,
            rng=rng,
            tune=tune,
            tuning_record=None if tuning_record is None else Path(tuning_record),
            exact=exact,
            precision=precision,
            test=test,
        ),
        progress,
    )
    return Package(report.path, report.name, report)
