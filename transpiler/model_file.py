"""A `model.py` as it is run: its module, its functions and their example inputs."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from transpiler.errors import TranspileError
from transpiler.examples import bind_inputs
from transpiler.frames import Files, frames_of_exception, is_internal, user_location
from transpiler.local_modules import local_modules
from transpiler.source import Entry, ModelSource, choose_entry, missing_inputs, read_source
from transpiler.specs import InputSpec

Example = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True)
class Loaded:
    """A model file that was run: its module, and example inputs per function."""

    module: torch.nn.Module
    functions: Mapping[str, Example]
    source: ModelSource
    name: str
    entry: str

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional example inputs of the first function."""
        return next(iter(self.functions.values()))[0]

    @property
    def kwargs(self) -> Mapping[str, Any]:
        return next(iter(self.functions.values()))[1]


def load_model_file(
    path: str | Path,
    entry: str | None = None,
    init: Mapping[str, Any] | None = None,
    inputs: Sequence[InputSpec] = (),
) -> Loaded:
    """Run the user's model.py (trusted code), build the model and its example inputs.

    PyTorch's generator starts from the same seed every time: weights and inputs that the file draws without a seed
    of its own are the same in every build.

    Raises:
        TranspileError: the file does not run (the user's line is shown), no or several models, constructor
        arguments
            or example inputs missing, something that is no nn.Module.
        UsageError: `entry`, `init` or `inputs` do not fit the file.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _load(path, entry, init, inputs)


def _load(path: str | Path, entry: str | None, init: Mapping[str, Any] | None, inputs: Sequence[InputSpec]) -> Loaded:
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
    return Loaded(module, functions, source, _name_of(source.path, chosen), chosen.name)


def _name_of(path: Path, entry: Entry) -> str:
    stem = re.sub(r"\W", "_", path.stem)
    return stem if stem.isidentifier() else re.sub(r"\W", "_", entry.name)


# The modules that the last model file imported from its own folder.
_neighbours: set[str] = set()


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs the file as it is now: a compiled one beside it may be of the same second."""

    def get_code(self, fullname: str) -> types.CodeType:
        code: types.CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _run_file(source: ModelSource) -> Any:
    """Import the file under its own folder, so that imports of its neighbours work.

    Neighbours of an earlier model file are imported anew: they may have changed, or be others of the same name.

    Raises:
        TranspileError: "user-code-failed"; "other-module" if this process had already imported another module of the
            name of a neighbour.
    """
    path = source.path.resolve()
    while _neighbours:
        sys.modules.pop(_neighbours.pop(), None)
    local = local_modules(path)
    _check_modules(path, local)
    before = set(sys.modules)
    # Not the plain stem: a model called `random.py` must not replace the real module.
    name = f"transpiler_user_{identifier(path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        with _user_code(Files(path.parent), f"Running {path.name} failed"):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        new = local.keys() & sys.modules.keys() - before
        _neighbours.update(item for item in new if _is_neighbour(item, path.parent))
        with contextlib.suppress(ValueError):
            sys.path.remove(str(path.parent))
    return module


def _is_neighbour(name: str, folder: Path) -> bool:
    """Whether a module, or the package that it is in, lies in the folder itself."""
    top = name.partition(".")[0]
    return any((folder / place).is_file() for place in (f"{top}.py", f"{top}/__init__.py"))


def _check_modules(path: Path, local: Mapping[str, Path]) -> None:
    """Whether the file will get its own modules."""
    for name, file in local.items():
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if loaded is not None and Path(loaded).resolve() != file:
            raise TranspileError(
                "other-module",
                f"{path.name} imports {name!r}, which is {file}; but this process has already imported {loaded}",
                hints=["transpile it in a process of its own", "or give one of the two modules another name"],
            )


def identifier(text: str) -> str:
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


def method_of(module: torch.nn.Module, function: str) -> Callable[..., Any]:
    """What a function of this name calls: the method, or `forward` if there is none."""
    method = getattr(module, function, None)
    return method if callable(method) else module.forward


@contextlib.contextmanager
def called_as(module: torch.nn.Module, function: str) -> Iterator[None]:
    """The module with `forward` standing for its method `function`, if it has one of that name."""
    method = getattr(module, function, None)
    if function == "forward" or not callable(method):
        yield
        return
    own = vars(module).get("forward")
    module.forward = method
    # torch records the lines of functions called `forward`, and of those that it is told of.
    anchors: set[tuple[str, str]] = getattr(torch.fx.proxy, "_STACK_TRACE_ANCHORS", set())
    added = _own_methods(module) - anchors
    anchors |= added
    try:
        yield
    finally:
        anchors -= added
        del module.forward
        if own is not None:
            module.forward = own


def _own_methods(module: torch.nn.Module) -> set[tuple[str, str]]:
    """(file, name) of the methods of the module's class and its bases, up to torch's own."""
    functions = [item for kind in type(module).__mro__ for item in vars(kind).values() if inspect.isfunction(item)]
    codes = [inspect.unwrap(function).__code__ for function in functions]
    return {(code.co_filename, code.co_name) for code in codes if not is_internal(code.co_filename)}


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
