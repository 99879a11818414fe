"""From a model file, a module or a saved program to an exported program. Torch lives here."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from transpiler.decompositions import decomposition_table
from transpiler.dims import SymbolRange
from transpiler.errors import TranspileError, UsageError
from transpiler.examples import bind_inputs, dims_by_input, draw_placeholders, dynamic_shapes, grown
from transpiler.export_errors import export_error, first_line
from transpiler.frames import Files, frames_of_exception, user_location
from transpiler.source import Entry, ModelSource, choose_entry, missing_inputs, read_source
from transpiler.specs import DynamicSpec, InputSpec
from transpiler.symbols import symbol_ranges

Example = tuple[tuple[Any, ...], Mapping[str, Any]]


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

    @property
    def files(self) -> Files:
        return Files(self.source.path.resolve().parent if self.source else None)


@dataclass(frozen=True)
class Loaded:
    """A model file that was run: its module, and example inputs per function."""

    module: torch.nn.Module
    functions: Mapping[str, Example]
    source: ModelSource
    name: str

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional example inputs of the first function."""
        return next(iter(self.functions.values()))[0]

    @property
    def kwargs(self) -> Mapping[str, Any]:
        return next(iter(self.functions.values()))[1]


# --- model.py -----------------------------------------------------------------------------------------------


def load_model_file(
    path: str | Path,
    entry: str | None = None,
    init: Mapping[str, Any] | None = None,
    inputs: Sequence[InputSpec] = (),
) -> Loaded:
    """Run the user's model.py (trusted code), build the model and its example inputs.

    Raises:
        TranspileError: the file does not run (the user's line is shown), no or several models, constructor
        arguments
            or example inputs missing, something that is no nn.Module.
        UsageError: `entry`, `init` or `inputs` do not fit the file.
    """
    source = read_source(path)
    chosen = choose_entry(source, entry)
    init = dict(init or {})
    chosen.check_init(init)
    if not inputs and not {"example_inputs"} & (set(source.functions) | source.imported):
        raise missing_inputs(source, chosen)
    namespace = _run_file(source)
    files = Files(source.path.resolve().parent)
    build = getattr(namespace, chosen.name)
    with _user_code(files, f"{chosen.name}() failed"):
        module = build(**init)
    if not isinstance(module, torch.nn.Module):
        raise TranspileError("not-a-module", f"{chosen.name}() returned {type(module).__name__}, expected an nn.Module")
    if chosen.kind == "class":
        module.eval()  # a factory may have chosen training mode, which is worth a warning; a class never does
    if inputs:
        functions: Mapping[str, Example] = {"forward": bind_inputs(module, inputs)}
    else:
        with _user_code(files, "example_inputs() failed"):
            given = namespace.example_inputs()
        functions = (
            read_functions(module, given) if _names_functions(module, given) else {"forward": _args_kwargs(given)}
        )
    return Loaded(module, functions, source, _name_of(source.path, chosen))


def _name_of(path: Path, entry: Entry) -> str:
    stem = re.sub(r"\W", "_", path.stem)
    return stem if stem.isidentifier() else re.sub(r"\W", "_", entry.name)


def _run_file(source: ModelSource) -> Any:
    """Import the file under its own folder, so that imports of its neighbours work."""
    path = source.path.resolve()
    # Not the plain stem: a model called `random.py` must not replace the real module.
    spec = importlib.util.spec_from_file_location(f"transpiler_user_{_identifier(path.stem)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent))
    try:
        with _user_code(Files(path.parent), f"Running {path.name} failed"):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(module.__name__, None)
        raise
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(path.parent))
    return module


def _identifier(text: str) -> str:
    return re.sub(r"\W", "_", text)


@contextlib.contextmanager
def _user_code(files: Files, what: str) -> Iterator[None]:
    """Turn an exception of the user's code into an error that shows the user's line."""
    try:
        yield
    except TranspileError:
        raise
    except Exception as error:
        location = user_location(frames_of_exception(error), files)
        raise TranspileError(
            "user-code-failed",
            f"{what}: {type(error).__name__}: {error}",
            locations=[location] if location else [],
        ) from error
    except SystemExit as error:
        raise TranspileError("user-code-failed", f"{what}: it called sys.exit({error.code!r})") from error


def _names_functions(module: torch.nn.Module, given: Any) -> bool:
    """Whether example inputs are a mapping of functions: its keys are methods, and no parameters of forward."""
    if not isinstance(given, Mapping) or not given or not all(isinstance(key, str) for key in given):
        return False
    parameters = inspect.signature(module.forward).parameters
    return all(callable(getattr(module, key, None)) and key not in parameters for key in given)


def read_functions(module: torch.nn.Module, given: Mapping[str, Any]) -> dict[str, Example]:
    """Function name -> (args, kwargs). A name that is no method of the module stands for `forward` with these inputs.

    Raises:
        TranspileError: "bad-function": a name that a generated model cannot have; "bad-example-inputs".
    """
    from transpiler.naming import check_function_name

    if not given:
        raise TranspileError("bad-function", "No functions are named", hints=['functions={"decode": (args,)}'])
    for name in given:
        check_function_name(name)
    return {name: _args_kwargs(example) for name, example in given.items()}


def dynamic_functions() -> TranspileError:
    """Why sizes that vary and several functions do not go together."""
    return TranspileError(
        "dynamic-functions",
        "A model of several functions has fixed sizes in each of them",
        hints=["name a function per size, such as prefill_16 and prefill_64: they share weights and state"],
    )


@contextlib.contextmanager
def called_as(module: torch.nn.Module, function: str) -> Iterator[None]:
    """The module with `forward` standing for its method `function`, if it has one of that name."""
    method = getattr(module, function, None)
    if function == "forward" or not callable(method):
        yield
        return
    own = vars(module).get("forward")
    module.forward = method
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _args_kwargs(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`(args, kwargs)`, a tuple of arguments, a dict of keywords or one tensor."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], tuple | list):
        args, kwargs = given
        if isinstance(kwargs, dict) and all(isinstance(key, str) for key in kwargs):
            return tuple(args), dict(kwargs)
    if isinstance(given, tuple | list):
        return tuple(given), {}
    if isinstance(given, dict):
        return (), dict(given)
    if isinstance(given, torch.Tensor):
        return (given,), {}
    raise TranspileError(
        "bad-example-inputs",
        f"example_inputs() returned {type(given).__name__}, expected a tuple of tensors or (args, kwargs)",
    )


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
    shapes = dynamic_shapes(loaded.module, loaded.args, loaded.kwargs, dynamic) if dynamic else None
    captured = capture_functions(loaded.module, loaded.functions, shapes, source=loaded.source)
    return tuple(replace(item, name=loaded.name) for item in captured)


def capture_functions(
    module: torch.nn.Module,
    functions: Mapping[str, Example],
    dynamic_shapes: Any = None,
    *,
    source: ModelSource | None = None,
) -> tuple[Captured, ...]:
    """Capture each function of a module; they share its weights and buffers.

    Raises:
        TranspileError: "dynamic-functions"; what `capture_module` raises.
    """
    if dynamic_shapes is not None and len(functions) > 1:
        raise dynamic_functions()
    return tuple(
        capture_module(module, args, kwargs, dynamic_shapes, source=source, function=name)
        for name, (args, kwargs) in functions.items()
    )


def capture_module(
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    source: ModelSource | None = None,
    function: str = "forward",
) -> Captured:
    """Export a module (its method `function`) in eval mode and apply our decompositions; the module is left as it was.

    Raises:
        TranspileError: "data-dependent-control-flow", "dynamic-shape" or "export-failed", with the user's
        line.
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
    _register_caches()
    cache = _holds_cache(example)
    with (
        evaluating(module, warnings, keep_cache=cache),
        called_as(module, function),
        torch.no_grad(),
        _quiet(),
    ):
        try:
            traced = grown(*example, dynamic_shapes) if dynamic_shapes is not None else example
            exported = torch.export.export(module, *traced, dynamic_shapes=dynamic_shapes)
            exported = exported.run_decompositions(decomposition_table())
        except Exception as error:
            if isinstance(error, AssertionError) and (shared := _overlapping(module)):
                raise TranspileError(
                    "mutated-buffer",
                    f"The buffers {' and '.join(map(repr, shared))} share memory, and the model writes it",
                    hints=["give each buffer memory of its own, with .clone()"],
                ) from error
            raise export_error(error, files) from error
    names = _default_names(exported, _symbol_names(exported, example, dynamic_shapes))
    bounds = _given_bounds(exported, names, example, dynamic_shapes)
    name = _identifier(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(module).__name__)).lower()
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
    given, bounds = _named_dimensions(decomposed, dynamic)
    names = _default_names(decomposed, given)
    return Captured(decomposed, None, tuple(args), dict(kwargs), None, name, tuple(warnings), names, bounds)


def load_exported(path: str | Path, dynamic: Sequence[DynamicSpec] = ()) -> Captured:
    """Capture a `.pt2` file. Raises TranspileError if it is not one."""
    path = Path(path)
    if not path.is_file():
        raise TranspileError("no-such-file", f"No such file: {path}")
    with _quiet():
        try:
            exported = torch.export.load(path)
        except Exception as error:
            raise TranspileError(
                "bad-pt2",
                f"{path.name} is not a readable .pt2 file: {first_line(error)}",
                hints=["write it with torch.export.save(torch.export.export(model.eval(), args), path)"],
            ) from error
    name = _identifier(path.stem) if _identifier(path.stem).isidentifier() else "model"
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


@contextlib.contextmanager
def evaluating(
    module: torch.nn.Module, warnings: list[str] | None = None, *, keep_cache: bool = False
) -> Iterator[None]:
    """The module in eval mode and, for transformers models, without a cache in its outputs unless `keep_cache`;
    restored afterwards."""
    training = [(item, item.training) for item in module.modules()]
    configs = [] if keep_cache else _caching_configs(module)
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


def _caching_configs(module: torch.nn.Module) -> list[Any]:
    """Configs with use_cache on, of transformers models anywhere in the module."""
    if "transformers" not in sys.modules:
        return []
    from transformers import PreTrainedModel

    found: dict[int, Any] = {}
    for item in module.modules():
        if isinstance(item, PreTrainedModel):
            for config in (item.config, item.config.get_text_config()):
                if getattr(config, "use_cache", False) is True:
                    found[id(config)] = config
    return list(found.values())


def _holds_cache(example: Example) -> bool:
    """Whether a call is given a key/value cache of transformers, or asks for one."""
    args, kwargs = example
    if kwargs.get("use_cache") is True:
        return True
    if "transformers" not in sys.modules:
        return False
    from transformers import Cache

    return any(isinstance(item, Cache) for item in (*args, *kwargs.values()))


def _register_caches() -> None:
    """Let transformers' DynamicCache cross torch.export as a list of (key, value) pairs, one per layer; only where
    transformers is in use.

    Its own registration builds the cache through `update`, which leaves constants that cannot be traced.
    """
    if "transformers" not in sys.modules:
        return
    from torch.utils import _pytree
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if DynamicCache in _pytree.SUPPORTED_NODES:
        return

    def flatten(cache: Any) -> tuple[list[Any], Any]:
        layers = [layer for layer in cache.layers if layer.is_initialized]
        if any(type(layer) is not DynamicLayer for layer in layers):
            raise TypeError("a DynamicCache of layers that are no plain DynamicLayer, such as sliding windows")
        return [(layer.keys, layer.values) for layer in layers], None

    def unflatten(pairs: Any, context: Any) -> Any:
        cache = DynamicCache()
        for key, value in pairs:
            layer: Any = DynamicLayer()  # type: ignore[no-untyped-call, unused-ignore]
            layer.keys, layer.values, layer.is_initialized = key, value, True
            layer.dtype, layer.device = getattr(key, "dtype", None), getattr(key, "device", None)
            cache.layers.append(layer)
        return cache

    def flatten_with_keys(cache: Any) -> tuple[list[tuple[Any, Any]], Any]:
        pairs, context = flatten(cache)
        return [(_pytree.SequenceKey(index), pair) for index, pair in enumerate(pairs)], context

    _pytree.register_pytree_node(
        DynamicCache,
        flatten,
        unflatten,
        serialized_type_name="transformers.DynamicCache",
        flatten_with_keys_fn=flatten_with_keys,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export prints whole graphs and tracebacks to the log when it fails; our error says what is
    needed."""
    import warnings

    loggers = [logging.getLogger(name) for name in ("torch", "torch.export", "torch.fx", "torch._dynamo")]
    levels = [item.level for item in loggers]
    for item in loggers:
        item.setLevel(logging.CRITICAL)
    sink = open("/dev/null", "w")  # noqa: SIM115
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        sink.close()
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


def _symbol_names(exported: ExportedProgram, example: Any, shapes: Any) -> dict[str, str]:
    """torch's symbol -> the name of the torch.export.Dim the user gave for it."""
    if shapes is None:
        return {}
    values = [node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"]
    users = values[len(values) - _user_count(exported) :]
    names: dict[str, str] = {}
    for value, dims in zip(users, dims_by_input(example, shapes), strict=False):
        for axis, dim in dims.items():
            size = value.shape[axis] if isinstance(value, torch.Tensor) else None
            name = getattr(getattr(dim, "root", dim), "__name__", None)  # of 2*half: half
            if isinstance(size, torch.SymInt) and name and str(name).isidentifier():
                free = size.node.expr.free_symbols
                if len(free) == 1:
                    names.setdefault(str(*free), str(name))
    return names


def _given_bounds(
    exported: ExportedProgram, names: Mapping[str, str], example: Any, shapes: Any
) -> dict[str, SymbolRange]:
    """Ranges that begin at 2 because torch.export takes no size for 1, though the user allowed 1: they begin at 1. What
    the graph does there is compared with the module."""
    if shapes is None:
        return {}
    least = {}
    for dims in dims_by_input(example, shapes):
        for dim in dims.values():
            root = getattr(dim, "root", dim)
            least[getattr(root, "__name__", "")] = getattr(root, "min", None)
    ranges = symbol_ranges(exported.range_constraints, names)
    return {
        name: SymbolRange(1, bounds.high)
        for name, bounds in ranges.items()
        if bounds.low == 2 and least.get(name, 2) in (0, 1)
    }


def _varying(exported: ExportedProgram) -> Iterator[tuple[str, int, Any]]:
    """(input, dimension, sympy expression) of every size of a user input that varies."""
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder"]
    for node in nodes[len(nodes) - _user_count(exported) :]:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            for axis, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt):
                    yield node.name, axis, size.node.expr


def _default_names(exported: ExportedProgram, names: Mapping[str, str]) -> dict[str, str]:
    """`names`, and for torch's other symbols the input and dimension where they first stand: `ids_1`."""
    complete = dict(names)
    for name, axis, expression in _varying(exported):
        if expression.is_Symbol and str(expression) not in complete:
            wanted = f"{name}_{axis}"
            complete[str(expression)] = wanted if wanted not in complete.values() else f"{wanted}_size"
    return complete


def _named_dimensions(
    exported: ExportedProgram, dynamic: Sequence[DynamicSpec]
) -> tuple[dict[str, str], dict[str, SymbolRange]]:
    """What `--dynamic` calls the symbols of a saved program, and the bounds it gives them."""
    found = {(name, axis): expression for name, axis, expression in _varying(exported)}
    names: dict[str, str] = {}
    bounds: dict[str, SymbolRange] = {}
    for spec in dynamic:
        flag = f"--dynamic {spec.name}.{spec.dim}={spec.symbol}"
        expression = found.get((spec.name, spec.dim))
        if expression is None:
            known = ", ".join(f"{name}.{axis}" for name, axis in found) or "none"
            raise UsageError(
                "bad-dynamic",
                f"{flag}: this size is fixed in the saved program; those that vary: {known}.",
                hints=["export it with dynamic_shapes, or transpile the model.py"],
            )
        (symbol, *more) = sorted(map(str, expression.free_symbols))
        if more or names.setdefault(symbol, spec.symbol) != spec.symbol:
            raise UsageError("bad-dynamic", f"{flag}: the size is {expression} there, which has another name already.")
        if spec.bounds is not None:
            allowed = symbol_ranges(exported.range_constraints, {}).get(symbol, SymbolRange())
            above = allowed.high is not None and (spec.bounds.high is None or spec.bounds.high > allowed.high)
            if spec.bounds.low < allowed.low or above:
                raise UsageError("bad-dynamic", f"{flag}: the saved program allows {allowed}, not {spec.bounds}.")
            bounds[spec.symbol] = spec.bounds
    return names, bounds


def _user_count(exported: ExportedProgram) -> int:
    from torch.export.graph_signature import InputKind

    return sum(item.kind is InputKind.USER_INPUT for item in exported.graph_signature.input_specs)
