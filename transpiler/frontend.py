"""Every input form -> one `Model`: the imported program, its weights, and how PyTorch runs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpiler.emit import SourceFacts
from transpiler.errors import TranspileError, UsageError
from transpiler.ir import Array, Program
from transpiler.lower import with_taps
from transpiler.serialize import load_graph, to_json
from transpiler.weights import check_weights, expected_weights, load_weights

if TYPE_CHECKING:
    from transpiler.capture import Captured
    from transpiler.importer import Imported
    from transpiler.pipeline import Request


@dataclass(frozen=True)
class Model:
    """What the pipeline needs of a model, whatever it came from.

    `eager(inputs, weights=)` gives PyTorch's float32 outputs, `reference(inputs, double=, capture_values=, weights=)`
    those of its graph; `taps` maps a module path to the name that `capture_values` takes.
    """

    program: Program
    state: Mapping[str, Array]
    examples: tuple[Array, ...]
    bounds: Mapping[str, tuple[int, int]]
    taps: Mapping[str, str]
    eager: Callable[..., Any]
    reference: Callable[..., Any]
    name: str
    facts: SourceFacts
    graph_json: str
    warnings: tuple[str, ...] = ()


def read_model(request: Request) -> Model:
    """Capture and import the request's model.

    Raises:
        UsageError, TranspileErrors: see `transpiler.capture`, `transpiler.importer`, `transpiler.weights`.
    """
    if isinstance(request.model, str | Path):
        path = Path(request.model)
        if path.name.endswith(".graph.json") or path.suffix == ".json":
            return _from_graph(request, path)
        if path.suffix not in (".py", ".pt2", ".pt", ".pth", ".bin"):
            raise UsageError(
                "unknown-input",
                f"{path.name} is no model: give model.py, model.pt2 or model.graph.json.",
            )
    return _from_torch(request)


def _capture(request: Request) -> Captured:
    from transpiler import capture

    model = request.model
    if isinstance(model, str | Path):
        return capture.capture_file(model, request.entry, request.init, request.inputs, request.dynamic)
    if hasattr(model, "graph_signature"):
        return capture.capture_exported(model, dynamic=request.dynamic)
    if not hasattr(model, "named_modules"):
        raise UsageError(
            "not-a-module", f"model is a {type(model).__name__}, expected an nn.Module, an ExportedProgram or a path."
        )
    if request.args is None and request.kwargs is None:
        raise UsageError(
            "no-example-inputs",
            "An nn.Module needs example inputs.",
            hints=["transpile(model, args=(torch.randn(1, 3, 224, 224),))"],
        )
    args, kwargs, shapes = request.args or (), request.kwargs or {}, request.dynamic_shapes
    if request.dynamic and shapes is not None:
        raise UsageError("bad-dynamic", "Give dynamic or dynamic_shapes, not both.")
    if request.dynamic:
        from transpiler.examples import dynamic_shapes

        shapes = dynamic_shapes(model, args, kwargs, request.dynamic)
    return capture.capture_module(model, args, kwargs, shapes)


def _from_torch(request: Request) -> Model:
    from transpiler.importer import import_program
    from transpiler.reference import example_arrays, run_eager, run_reference
    from transpiler.weights import state_arrays

    captured = _capture(request)
    imported = import_program(captured)
    program = imported.program
    own = state_arrays(captured.exported_program.state_dict)
    given = _weights(request)
    state = check_weights(expected_weights(program), program.aliases, own if given is None else given)
    override = None if given is None else dict(state)
    return Model(
        program=with_taps(program, imported.taps),
        state=state,
        examples=tuple(example_arrays(captured)),
        bounds=_bounds(request, imported),
        taps={path: imported.fx_names[value] for path, value in imported.taps.items()},
        eager=_with_default(partial(run_eager, captured), override),
        reference=_with_default(partial(run_reference, captured), override),
        name=captured.name,
        facts=_facts(request, captured),
        graph_json=_graph_json(program),
        warnings=imported.warnings,
    )


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
    from transpiler.weights import state_arrays

    tensors = {key: value for key, value in request.weights.items() if hasattr(value, "detach")}
    arrays = {key: value for key, value in request.weights.items() if key not in tensors}
    return {**arrays, **state_arrays(tensors)}


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


def _facts(request: Request, captured: Captured) -> SourceFacts:
    """What the user's source contributes to the package's texts."""
    source = captured.source
    if source is None:
        return SourceFacts(entry=type(captured.module).__name__ if captured.module is not None else "")
    entry = type(captured.module).__name__ if captured.module is not None else ""
    described = source.classes.get(entry)
    arguments: tuple[str, ...] = ()
    if described is not None and described.forward is not None:
        arguments = tuple(
            item.name
            for item in described.forward
            if item.name != "self" and item.kind in ("positional", "positional_only", "positional_or_keyword")
        )
    return SourceFacts(
        file=source.path.name,
        entry=entry,
        docstring=(described.docstring or "") if described is not None else "",
        arguments=arguments,
        facts={"sha256": hashlib.sha256(source.text.encode()).hexdigest()},
    )


def _from_graph(request: Request, path: Path) -> Model:
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
    reference = GraphReference(program, state)
    name = path.name.removesuffix(".json").removesuffix(".graph").replace("-", "_")
    return Model(
        program=program,
        state=state,
        examples=reference.examples(),
        bounds=reference.bounds(),
        taps={route: tap.value for route, tap in program.main.taps.items()},
        eager=reference.eager,
        reference=reference.run,
        name=name,
        facts=SourceFacts(file=path.name),
        graph_json=path.read_text(encoding="utf-8"),
        warnings=("PyTorch's own results are not in a graph file: the tests compare with the numpy reference.",),
    )
