"""Every input form -> one `Model`: the imported program, its weights, and how PyTorch runs it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpiler.emit import SourceFacts
from transpiler.errors import TranspileError, UsageError
from transpiler.extension import load_installed
from transpiler.ir import Array, Graph, Program
from transpiler.local_modules import local_modules
from transpiler.lower import with_taps
from transpiler.passes.precision import rounded
from transpiler.precision import decides, is_half, rounded_names
from transpiler.provenance import file_hash, state_hash
from transpiler.recorded import Lower
from transpiler.serialize import load_graph, to_json
from transpiler.weights import check_weights, expected_weights, given_arrays, load_weights

if TYPE_CHECKING:
    from transpiler.capture import Captured
    from transpiler.graph_reference import RandomNumbers
    from transpiler.importer import Imported
    from transpiler.request import Request


@dataclass(frozen=True)
class Function:
    """How PyTorch runs one function of a model.

    `eager` and `reference` are what `transpiler.verify` records; `taps` maps a module path to the name that the
    reference's `capture_values` takes. A function that draws random numbers is run on those of the package's generator;
    `random` is then PyTorch with its own. `lower`
    runs it in the package's precision, where that is lower than the model's.
    """

    examples: tuple[Array, ...]
    bounds: Mapping[str, tuple[int, int]]
    taps: Mapping[str, str]
    eager: Callable[..., Any]
    reference: Callable[..., Any]
    random: Callable[..., Any] | None = None
    lower: Lower | None = None


@dataclass(frozen=True)
class Model:
    """What the pipeline needs of a model, whatever it came from. `state` is its state_dict."""

    program: Program
    state: Mapping[str, Array]
    functions: Mapping[str, Function]
    name: str
    facts: SourceFacts
    graph_json: str
    warnings: tuple[str, ...] = ()

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the state_dict."""
        return state_hash(self.state)


def read_model(request: Request, precision: str = "float32") -> Model:
    """Capture and import the request's model; `precision` is the lowest that a target of the request computes in.

    Raises:
        UsageError, TranspileErrors: see `transpiler.capture`, `transpiler.importer`, `transpiler.weights`.
    """
    model = _read(request, precision)
    _refuse_other_half(model, precision)
    return model


def _refuse_other_half(model: Model, precision: str) -> None:
    """Raises TranspileError "half-precision" for a model in half floats of another kind."""
    held = {type_.dtype for type_ in expected_weights(model.program).values()} & {"float16", "bfloat16"}
    if is_half(precision) and held and held != {precision}:
        (own, *_) = sorted(held - {precision})
        raise TranspileError(
            "half-precision", f"--precision {precision}: the model is in {own} already.",
            notes=["a model in half precision is transpiled as it is: weights in its type, sums in float32"],
            hints=["leave --precision out, or give the model in float32"],
        )  # fmt: skip


def _read(request: Request, precision: str) -> Model:
    load_installed()
    if not isinstance(request.model, str | Path):
        return _from_torch(request, precision)
    path = Path(request.model)
    model = _read_file(request, path, precision)
    facts = {**model.facts.facts, "sha256": file_hash(path)}
    return replace(model, facts=replace(model.facts, file=path.name, facts=facts))


def _read_file(request: Request, path: Path, precision: str) -> Model:
    if path.name.endswith(".graph.json") or path.suffix == ".json":
        return _from_graph(request, path, precision)
    if path.suffix not in (".py", ".pt2", ".pt", ".pth", ".bin"):
        raise UsageError("unknown-input", f"{path.name} is no model: give model.py, model.pt2 or model.graph.json.")
    return _from_torch(request, precision)


def _capture(request: Request) -> tuple[Captured, ...]:
    from transpiler import capture, model_file

    model = request.model
    if request.functions is not None and (isinstance(model, str | Path) or not hasattr(model, "named_modules")):
        raise UsageError(
            "bad-functions", "functions= goes with an nn.Module; a model.py names them in example_inputs()."
        )
    if isinstance(model, str | Path):
        return capture.capture_file_functions(model, request.entry, request.init, request.inputs, request.dynamic)
    if hasattr(model, "graph_signature"):
        return (capture.capture_exported(model, dynamic=request.dynamic),)
    if not hasattr(model, "named_modules"):
        raise UsageError(
            "not-a-module", f"model is a {type(model).__name__}, expected an nn.Module, an ExportedProgram or a path."
        )
    if request.functions is not None:
        if request.args is not None or request.kwargs is not None:
            raise UsageError("bad-functions", "Give example inputs as args and kwargs or in functions=, not in both.")
        functions = model_file.read_functions(model, request.functions)
        return capture.capture_functions(model, functions, request.dynamic, request.dynamic_shapes)
    if request.args is None and request.kwargs is None:
        raise UsageError(
            "no-example-inputs",
            "An nn.Module needs example inputs.",
            hints=["transpile(model, args=(torch.randn(1, 3, 224, 224),))"],
        )
    example = tuple(request.args or ()), dict(request.kwargs or {})
    shapes = None if request.dynamic_shapes is None else {"forward": request.dynamic_shapes}
    return capture.capture_functions(model, {"forward": example}, request.dynamic, shapes)


def _from_torch(request: Request, precision: str) -> Model:
    from transpiler.graph_reference import RandomNumbers
    from transpiler.importer import import_functions
    from transpiler.reference import example_arrays, run_eager, run_reference
    from transpiler.weights import state_arrays

    captures = _capture(request)
    program, imports = import_functions(captures, rng=request.rng)
    captured = captures[0]
    own = {key: array.copy() if key in program.states() else array
           for key, array in state_arrays(captured.exported_program.state_dict).items()}  # fmt: skip
    given = _weights(request)
    state = check_weights(expected_weights(program), program.aliases, own if given is None else given)
    override = None if given is None else dict(state)
    functions = {}
    for name, item, imported in zip(program.functions, captures, imports, strict=True):
        eager = _with_default(partial(run_eager, item), override)
        reference = _with_default(partial(run_reference, item), override)
        own_numbers = None
        rounded_run = partial(_rounded_run, item, program.functions[name], imported, precision, override)
        if imported.random:
            drawn = RandomNumbers(program, state, imported.random, name)
            own_numbers, eager, reference = eager, partial(drawn.outputs, reference), partial(drawn.run, reference)
            rounded_run = partial(_drawn, drawn, rounded_run)
        functions[name] = Function(
            examples=tuple(example_arrays(item)),
            bounds=_bounds(request, imported),
            taps={path: imported.fx_names[value] for path, value in imported.taps.items()},
            eager=eager,
            reference=reference,
            random=own_numbers,
            lower=_lower(precision, rounded_run, program.functions[name]),
        )
    graph_json = _graph_json(program)
    for name, imported in zip(tuple(program.functions), imports, strict=True):
        program = with_taps(program, imported.taps, name)
    return Model(
        program=program,
        state=state,
        functions=functions,
        name=captured.name,
        facts=_facts(captures),
        graph_json=graph_json,
        warnings=tuple(dict.fromkeys(text for imported in imports for text in imported.warnings)),
    )


def _lower(precision: str, run: Callable[[int], Any], graph: Graph) -> Lower | None:
    """PyTorch in the package's precision; `run(seed)` with noise, without for 0."""
    if precision == "float32":
        return None
    return Lower(precision, run(0), run if decides(graph) else None)


def _rounded_run(
    captured: Captured,
    graph: Graph,
    imported: Imported,
    precision: str,
    weights: Mapping[str, Array] | None,
    seed: int,
) -> Callable[..., Any]:
    from transpiler.reference import Rounding, run_reference

    names = rounded_names(graph)
    nodes = frozenset(imported.fx_names[value] for value in names if value in imported.fx_names)
    return _with_default(partial(run_reference, captured, rounding=Rounding(precision, nodes, seed)), weights)


def _drawn(drawn: RandomNumbers, run: Callable[[int], Any], seed: int) -> Callable[..., Any]:
    return partial(drawn.run, run(seed))


def _with_default(run: Callable[..., Any], default: Mapping[str, Array] | None) -> Callable[..., Any]:
    """`run`, with `default` where no weights are given."""
    if default is None:
        return run

    def wrapped(inputs: Any, *, weights: Mapping[str, Array] | None = None, **options: Any) -> Any:
        return run(inputs, weights=default if weights is None else weights, **options)

    return wrapped


def _graph_json(program: Program) -> str:
    return json.dumps(to_json(program), indent=1, allow_nan=False) + "\n"


def _weights(request: Request) -> dict[str, Array] | None:
    if request.weights is None:
        return None
    if isinstance(request.weights, str | Path):
        return load_weights(request.weights)
    return given_arrays(request.weights)


def _bounds(request: Request, imported: Imported) -> dict[str, tuple[int, int]]:
    """Inclusive bounds of integer inputs: the user's, else from embedding sizes."""
    found: dict[str, tuple[int, int]] = {}
    for item in imported.program.main.user_inputs():
        bounds = (imported.integer_bounds or {}).get(item.value.name)
        if bounds is not None:
            found[item.key] = bounds
    for position, spec in enumerate(request.inputs):
        key = spec.name or (imported.argument_names[position] if position < len(imported.argument_names) else "")
        if spec.low is not None and spec.high is not None and key:
            found[key] = spec.low, spec.high
    return found


def _facts(captures: Sequence[Captured]) -> SourceFacts:
    """What the user's source contributes to the package's texts."""
    captured = captures[0]
    source = captured.source
    name = type(captured.module).__name__ if captured.module is not None else ""
    if source is None:
        return SourceFacts(model_class=name)
    described = source.classes.get(name)
    arguments = {}
    for item in captures:
        method = getattr(item.module, item.function, None)
        if callable(method) and item.function != "forward":
            arguments[item.function] = _positional(method)
        elif described is not None and described.forward is not None:
            arguments[item.function] = tuple(
                parameter.name
                for parameter in described.forward
                if parameter.name != "self" and parameter.kind in ("positional", "positional_only")
            )
    imported = {module: file_hash(file) for module, file in local_modules(source.path).items()}
    return SourceFacts(
        file=source.path.name,
        model_class=name,
        docstring=(described.docstring or "") if described is not None else "",
        arguments=arguments,
        facts={"entry": captured.entry, **({"imports": imported} if imported else {})},
    )


def _positional(method: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a bound method's positional parameters."""
    parameters = inspect.signature(method).parameters.values()
    return tuple(item.name for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD))


def _from_graph(request: Request, path: Path, precision: str) -> Model:
    """An imported graph and its weights; the numpy reference stands in for PyTorch."""
    from transpiler.graph_reference import GraphReference

    program = load_graph(path)
    given = _weights(request)
    if given is None:
        raise TranspileError(
            "weights-missing",
            f"{path.name} holds no weights.",
            hints=["give the model's own with --weights FILE.safetensors"],
        )
    state = check_weights(expected_weights(program), program.aliases, given)
    references = {name: GraphReference(program, state, name) for name in program.functions}
    low = rounded(program, precision) if is_half(precision) else program
    lowered = {name: GraphReference(low, state, name) for name in program.functions}
    name = path.name.removesuffix(".json").removesuffix(".graph").replace("-", "_")
    return Model(
        program=program,
        state=state,
        functions={
            key: Function(
                examples=reference.examples(),
                bounds=reference.bounds(),
                taps={route: tap.value for route, tap in reference.graph.taps.items()},
                eager=reference.eager,
                reference=reference.run,
                random=reference.eager if reference.is_random else None,
                lower=Lower(precision, lowered[key].run) if precision != "float32" else None,
            )
            for key, reference in references.items()
        },
        name=name,
        facts=SourceFacts(file=path.name),
        graph_json=path.read_text(encoding="utf-8"),
        warnings=("PyTorch's own results are not in a graph file: the tests compare with the numpy reference.",),
    )
