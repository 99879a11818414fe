"""From a model file, a module or a saved program to an exported program. Torch lives here."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree

from transpiler.caches import caching_configs, holds_cache, register_caches
from transpiler.decompositions import decomposition_table
from transpiler.dims import SymbolRange
from transpiler.errors import TranspileError, UsageError
from transpiler.examples import (
    dim_range,
    dims_by_input,
    draw_placeholders,
    dynamic_shapes,
    equal_sizes,
    grown,
    named_arguments,
)
from transpiler.export_errors import export_error, guards_hold, misfit
from transpiler.exported_file import load_exported_program
from transpiler.frames import Files
from transpiler.known_values import decided
from transpiler.model_file import Example, called_as, identifier, load_model_file, method_of
from transpiler.source import ModelSource, read_source
from transpiler.specs import DynamicSpec, InputSpec
from transpiler.symbol_names import default_names, given_bounds, named_dimensions, user_names


@dataclass(frozen=True)
class Captured:
    """An exported program after our decompositions, and what it came from.

    `module` is the user's module as it was given (not copied, training flags untouched): run it inside
    `evaluating(module)` and `called_as(module, function)`. `symbol_names` maps torch's symbols to the user's names.
    """

    exported_program: ExportedProgram
    module: torch.nn.Module | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    source: ModelSource | None = None
    name: str = "model"
    warnings: tuple[str, ...] = ()
    symbol_names: Mapping[str, str] = field(default_factory=dict)
    symbol_bounds: Mapping[str, SymbolRange] = field(default_factory=dict)  # narrower ones, by the user's names
    function: str = "forward"
    keeps_cache: bool = False
    entry: str = ""  # the class or the function of `source` that built the module

    @property
    def files(self) -> Files:
        return Files(self.source.path.resolve().parent if self.source else None)


# --- capture ------------------------------------------------------------------------------------------------


def capture_file(
    path: str | Path,
    entry: str | None = None,
    init: Mapping[str, Any] | None = None,
    inputs: Sequence[InputSpec] = (),
    dynamic: Sequence[DynamicSpec] = (),
) -> Captured:
    """Capture `model.py` or `model.pt2`. Raises what `load_model_file`, `capture_module` and `load_exported`
    raise."""
    return capture_file_functions(path, entry, init, inputs, dynamic)[0]


def capture_file_functions(
    path: str | Path,
    entry: str | None = None,
    init: Mapping[str, Any] | None = None,
    inputs: Sequence[InputSpec] = (),
    dynamic: Sequence[DynamicSpec] = (),
) -> tuple[Captured, ...]:
    """Every function that the example inputs of a `model.py` name; the one of a `model.pt2`."""
    path = Path(path)
    if path.suffix == ".pt2":
        return (load_exported(path, dynamic),)
    if path.suffix in (".pt", ".pth", ".bin"):
        raise whole_module_error(path)
    loaded = load_model_file(path, entry, init, inputs)
    captured = capture_functions(loaded.module, loaded.functions, dynamic, source=loaded.source)
    return tuple(replace(item, name=loaded.name, entry=loaded.entry) for item in captured)


def capture_functions(
    module: torch.nn.Module,
    functions: Mapping[str, Example],
    dynamic: Sequence[DynamicSpec] = (),
    shapes: Mapping[str, Any] | None = None,
    *,
    source: ModelSource | None = None,
) -> tuple[Captured, ...]:
    """Capture each function of a module; they share its weights and buffers.

    What varies is said by `dynamic`, or by `shapes`: torch.export's `dynamic_shapes` by function.

    Raises:
        UsageError: `dynamic` or `shapes` name what does not exist; both are given.
        TranspileError: what `capture_module` raises.
    """
    register_caches()
    if dynamic and shapes is not None:
        raise UsageError("bad-dynamic", "Give dynamic or dynamic_shapes, not both.")
    if dynamic:
        shapes = _function_shapes(module, functions, dynamic)
    if shapes is not None and not isinstance(shapes, Mapping):
        raise UsageError("bad-dynamic", "dynamic_shapes of several functions is a mapping from their names.")
    if unknown := [str(name) for name in shapes or () if name not in functions]:
        raise UsageError(
            "bad-dynamic", f"dynamic_shapes: no such function: {', '.join(unknown)}; known: {', '.join(functions)}."
        )
    alone = len(functions) == 1
    return tuple(
        capture_module(module, args, kwargs, (shapes or {}).get(name), source=source, function=name, constants=alone)
        for name, (args, kwargs) in functions.items()
    )


def _function_shapes(
    module: torch.nn.Module, functions: Mapping[str, Example], dynamic: Sequence[DynamicSpec]
) -> dict[str, Any]:
    """`dynamic_shapes` by function. A spec that names no function is for all that have such an argument."""
    own: dict[str, list[DynamicSpec]] = {name: [] for name in functions}
    for spec in dynamic:
        if spec.function and spec.function not in functions:
            raise UsageError("bad-dynamic", f"--dynamic {spec.place}: no such function; known: {', '.join(functions)}.")
        wanted = (
            [spec.function]
            if spec.function
            else [
                name
                for name, example in functions.items()
                if spec.name in named_arguments(method_of(module, name), *example)
            ]
        )
        for name in wanted or functions:  # where no function has it, the first one's error lists what there is
            own[name].append(spec)
    return {
        name: dynamic_shapes(method_of(module, name), *functions[name], specs) for name, specs in own.items() if specs
    }


def capture_module(
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    source: ModelSource | None = None,
    function: str = "forward",
    constants: bool = True,
) -> Captured:
    """Export a module (its method `function`) in eval mode and apply our decompositions; the module is left as it was.

    `constants`: no other function writes the module's buffers, so those that are in no state_dict keep their values.

    Raises:
        TranspileError: "bad-examples", "data-dependent-control-flow", "dynamic-shape" or "export-failed", with the
        user's line.
    """
    warnings: list[str] = []
    if module.training:
        warnings.append(
            "The model was in training mode; it is transpiled in eval mode (dropout off, running statistics)."
        )
    if source is None:
        source = _source_of(module)
    files = Files(source.path.resolve().parent if source else None)
    example = tuple(args), dict(kwargs or {})
    register_caches()
    cache = holds_cache(example)
    with (
        evaluating(module, warnings, keep_cache=cache),
        called_as(module, function),
        _equal_sizes(module, example, dynamic_shapes),
        torch.no_grad(),
        _quiet(),
    ):
        try:
            traced = grown(*example, dynamic_shapes) if dynamic_shapes is not None else example
            exported = decided(lambda: _export(module, traced, dynamic_shapes), module if constants else None)
        except Exception as error:
            if isinstance(error, AssertionError) and (shared := _overlapping(module)):
                raise TranspileError(
                    "mutated-buffer",
                    f"The buffers {' and '.join(map(repr, shared))} share memory, and the model writes it",
                    hints=["give each buffer memory of its own, with .clone()"],
                ) from error
            raise misfit(error, module.forward, *example) or export_error(error, files) from error
    names = default_names(exported, user_names(exported, example, dynamic_shapes))
    bounds = given_bounds(exported, names, example, dynamic_shapes)
    name = identifier(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(module).__name__)).lower()
    return Captured(
        exported, module, *example, source, name, tuple(warnings), names, bounds, function=function, keeps_cache=cache
    )


def capture_exported(exported: ExportedProgram, name: str = "model", dynamic: Sequence[DynamicSpec] = ()) -> Captured:
    """Capture a program that `torch.export.export` made; examples that it lacks are drawn.

    `dynamic` names the dimensions that vary in it, and may narrow their bounds.

    Raises:
        UsageError: `dynamic` names a dimension that is fixed, or allows more than the program does.
    """
    warnings = []
    with torch.no_grad(), _quiet():
        try:
            decomposed = exported.run_decompositions(decomposition_table())
        except Exception as error:
            raise export_error(error, Files()) from error
    if exported.example_inputs is not None:
        args, kwargs = exported.example_inputs
    else:
        args, kwargs = draw_placeholders(decomposed)
        warnings.append("The program holds no example inputs; they were drawn at random.")
    given, bounds = named_dimensions(decomposed, dynamic)
    names = default_names(decomposed, given)
    return Captured(decomposed, None, tuple(args), dict(kwargs), None, name, tuple(warnings), names, bounds)


def load_exported(path: str | Path, dynamic: Sequence[DynamicSpec] = ()) -> Captured:
    """Capture a `.pt2` file. Raises TranspileError if it is not one."""
    path = Path(path)
    if not path.is_file():
        raise TranspileError("no-such-file", f"No such file: {path}")
    with _quiet():
        exported = load_exported_program(path)
    name = identifier(path.stem) if identifier(path.stem).isidentifier() else "model"
    return capture_exported(exported, name, dynamic)


def whole_module_error(path: Path) -> TranspileError:
    """Why a pickled module is refused, and the safe ways."""
    return TranspileError(
        "pickled-module",
        f"{path.name} is refused: a pickled model can run any code when it is opened",
        hints=[
            "save the traced model: torch.export.save(torch.export.export(model.eval(), args), 'model.pt2')",
            "or give the model.py that defines the class, and the weights with --weights",
        ],
    )


def _export(module: torch.nn.Module, example: Example, shapes: Any) -> ExportedProgram:
    """The program after our decompositions; traced again with hints in place of named dimensions if only guards that
    hold stand against it."""

    def traced(shapes: Any) -> ExportedProgram:
        program = torch.export.export(module, *example, dynamic_shapes=shapes)
        decomposed: ExportedProgram = program.run_decompositions(decomposition_table())
        return decomposed

    try:
        return traced(shapes)
    except Exception as error:
        dims = [dim for varying in dims_by_input(example, shapes) for dim in varying.values()] if shapes else []
        named = {dim.__name__: dim for dim in dims if isinstance(dim, torch.export.Dim) and not hasattr(dim, "root")}
        if len({id(dim) for dim in dims}) != len(named):
            raise
        bounds = {name: dim_range(dim) for name, dim in named.items()}
        if not guards_hold(error, bounds):
            raise

    def hint(dim: Any) -> Any:
        if dim not in named.values():
            return dim
        bounds = dim_range(dim)
        return torch.export.Dim.DYNAMIC(min=bounds.low, max=bounds.high)

    return traced(_pytree.tree_map(hint, shapes))


@contextlib.contextmanager
def _equal_sizes(module: torch.nn.Module, example: Example, shapes: Any) -> Iterator[None]:
    """The module, telling torch when a trace begins which of its sizes are one and the same.

    torch.export gives every dimension a symbol of its own and compares those of one name last, when guards over both
    could no longer be proved.
    """
    groups = equal_sizes(example, shapes) if shapes is not None else []

    def tell(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves = _pytree.tree_leaves((args, kwargs))
        for (first, axis), *others in groups:
            for index, other in others:
                # What the comparison finds, the trace takes for a fact.
                if leaves[first].shape[axis] != leaves[index].shape[other]:
                    raise ValueError(f"inputs {first} and {index} differ in dimensions {axis} and {other}")

    hook = module.register_forward_pre_hook(tell, prepend=True, with_kwargs=True) if groups else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


@contextlib.contextmanager
def evaluating(
    module: torch.nn.Module, warnings: list[str] | None = None, *, keep_cache: bool = False
) -> Iterator[None]:
    """The module in eval mode and, for transformers models, without a cache in its outputs unless `keep_cache`;
    restored afterwards."""
    training = [(item, item.training) for item in module.modules()]
    configs = [] if keep_cache else caching_configs(module)
    try:
        module.eval()
        for config in configs:
            config.use_cache = False
        if configs and warnings is not None:
            warnings.append(
                "config.use_cache is off: the key/value cache is not part of the outputs "
                "(it is if the example inputs hold a cache or use_cache=True)."
            )
        yield
    finally:
        for item, flag in training:
            item.training = flag
        for config in configs:
            config.use_cache = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export prints whole graphs and tracebacks to the log when it fails; our error says what is
    needed."""
    import warnings

    loggers = [logging.getLogger(name) for name in ("torch", "torch.export", "torch.fx", "torch._dynamo")]
    levels = [item.level for item in loggers]
    for item in loggers:
        item.setLevel(logging.CRITICAL)
    try:
        with (
            open(os.devnull, "w") as sink,
            warnings.catch_warnings(),
            contextlib.redirect_stderr(sink),
            contextlib.redirect_stdout(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for item, level in zip(loggers, levels, strict=True):
            item.setLevel(level)


def _overlapping(module: torch.nn.Module) -> tuple[str, str] | None:
    """Two buffers over the same memory, which torch.export cannot trace if it is written."""
    seen: dict[int, str] = {}
    plain = {name: item for name, item in vars(module).items() if isinstance(item, torch.Tensor)}
    for name, buffer in (*module.named_buffers(), *plain.items()):
        place = buffer.untyped_storage().data_ptr()
        if buffer.numel() and seen.setdefault(place, name) != name:
            return seen[place], name
    return None


def _source_of(module: torch.nn.Module) -> ModelSource | None:
    """The file of the module's class, if it is a file that is not torch's."""
    from transpiler.frames import is_internal

    try:
        file = inspect.getsourcefile(type(module))
    except (TypeError, OSError):
        return None
    if file is None or is_internal(file) or not Path(file).is_file() or "site-packages" in file:
        return None
    try:
        return read_source(file)
    except TranspileError:  # e.g. a notebook cell: names then come from the modules only
        return None
