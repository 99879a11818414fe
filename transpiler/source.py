"""Reading model.py without running it: classes, constructors, signatures, and the user's variable names.

libcst gives the definitions with the exact text of their defaults. The line index (which statement a line
belongs to, what it assigns, in which function it stands) is built from `ast`: it is also wanted for big
library files, where it is tens of times faster than libcst's position metadata.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transpiler.errors import Location, TranspileError, UsageError


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function: `default` is its source text, None if there is none."""

    name: str
    kind: str  # "positional_only" | "positional" | "keyword_only" | "var_positional" | "var_keyword"
    default: str | None = None

    @property
    def required(self) -> bool:
        return self.default is None and not self.kind.startswith("var_")


@dataclass(frozen=True)
class FunctionSource:
    """A module-level function."""

    name: str
    parameters: tuple[Parameter, ...]
    docstring: str | None = None


@dataclass(frozen=True)
class ClassSource:
    """A module-level class. `init` and `forward` are inherited from bases of the same file and exclude
    `self`."""

    name: str
    bases: tuple[str, ...]
    is_module: bool
    docstring: str | None
    init: tuple[Parameter, ...]
    forward: tuple[Parameter, ...] | None
    builds: frozenset[str]  # classes of the file that its methods call or pass on
    forward_lines: tuple[int, int] | None = None


@dataclass(frozen=True)
class Statement:
    """A simple statement: its lines, the names it assigns in order, whether it returns, its function's
    name."""

    first: int
    last: int
    targets: tuple[str, ...] = ()
    returns: bool = False


@dataclass(frozen=True)
class LineIndex:
    """What stands on each line of a file. Lines count from 1."""

    lines: tuple[str, ...]
    statements: Mapping[int, Statement]
    functions: tuple[tuple[int, int, str], ...]  # first line, last line, qualified name; outer before inner

    def text(self, line: int) -> str:
        text = self.lines[line - 1].strip() if 0 < line <= len(self.lines) else ""
        return "".join(character if character.isprintable() else " " for character in text[:500])

    def function(self, line: int) -> str:
        """The innermost function's qualified name, "" at module level."""
        return next((name for first, last, name in reversed(self.functions) if first <= line <= last), "")


@dataclass(frozen=True)
class ModelSource:
    """A model file as text: nothing in it was run."""

    path: Path
    text: str
    index: LineIndex
    classes: Mapping[str, ClassSource]
    functions: Mapping[str, FunctionSource]
    imported: frozenset[str]  # names bound by imports and assignments at module level

    def module_classes(self) -> tuple[ClassSource, ...]:
        return tuple(item for item in self.classes.values() if item.is_module)

    @property
    def assigned(self) -> Mapping[int, tuple[str, ...]]:
        """Line -> the names that the statement on it assigns."""
        return {line: item.targets for line, item in self.index.statements.items() if item.targets}


@dataclass(frozen=True)
class Entry:
    """What builds the model: a class or a factory function, and its parameters (None: not defined in this
    file)."""

    name: str
    kind: str  # "class" | "factory" | "imported"
    parameters: tuple[Parameter, ...] | None

    def check_init(self, init: Mapping[str, object]) -> None:
        """Raises UsageError for unknown or missing constructor arguments, all of them at once."""
        if self.parameters is None:
            return
        takes_any = any(item.kind == "var_keyword" for item in self.parameters)
        names = [item.name for item in self.parameters if not item.kind.startswith("var_")]
        if (extra := sorted(set(init) - set(names))) and not takes_any:
            known = f"; it takes: {', '.join(names)}" if names else "; it takes none"
            raise UsageError("unknown-init", f"{self.name}() takes no argument {', '.join(extra)}{known}.")
        missing = [item.name for item in self.parameters if item.required and item.name not in init]
        if missing:
            flags = " ".join(f"--init {name}=VALUE" for name in missing)
            raise TranspileError(
                "constructor-arguments",
                f"{self.name}() needs arguments without a default: {', '.join(missing)}",
                hints=[
                    f"give them: {flags}",
                    "or add a build_model() without parameters to the file, that returns the model",
                ],
            )


def read_source(path: str | Path) -> ModelSource:
    """Read a model file.

    Raises:
        TranspileError: the file cannot be read or has a syntax error (with the line).
    """
    import libcst as cst

    path = Path(path)
    text = read_text(path)
    index = index_lines(text, path.name)
    try:
        module = cst.parse_module(text)
    except cst.ParserSyntaxError as error:  # what CPython takes and libcst does not
        raise TranspileError("syntax-error", f"Cannot read {path.name}: {error.message}") from error
    reader = _Reader(module, index)
    for statement in _definitions(module.body):
        reader.read(statement)
    return ModelSource(path, text, index, reader.resolved(), reader.functions, frozenset(_bound_names(ast.parse(text))))


def read_text(path: Path) -> str:
    """The text of a source file. Raises TranspileError if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TranspileError("no-such-file", f"No such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TranspileError("unreadable-file", f"Cannot read {path}: {error}") from error


def index_lines(text: str, file: str) -> LineIndex:
    """Index a source text. Raises TranspileError "syntax-error" showing the line."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 0
        shown = (getattr(error, "text", None) or "").strip()
        message = getattr(error, "msg", None) or str(error)
        location = [Location(file, line, text=shown)] if line else []
        raise TranspileError("syntax-error", f"Syntax error: {message}", locations=location) from error
    statements: dict[int, Statement] = {}
    functions: list[tuple[int, int, str]] = []
    _index(tree, "", statements, functions)
    return LineIndex(tuple(text.splitlines()), statements, tuple(functions))


_SIMPLE = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.Return, ast.Assert)


def _index(node: ast.AST, scope: str, statements: dict[int, Statement], functions: list[tuple[int, int, str]]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{scope}.{child.name}" if scope else child.name
            if not isinstance(child, ast.ClassDef):
                functions.append((child.lineno, child.end_lineno or child.lineno, name))
            _index(child, name, statements, functions)
        elif isinstance(child, _SIMPLE):
            last = child.end_lineno or child.lineno
            item = Statement(child.lineno, last, _targets(child), isinstance(child, ast.Return))
            statements.update(dict.fromkeys(range(item.first, item.last + 1), item))
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            _index(child, scope, statements, functions)


def _targets(node: ast.stmt) -> tuple[str, ...]:
    match node:
        case ast.Assign(targets=[target, *_]) | ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            return tuple(_names(target))
    return ()


def _names(target: ast.expr) -> Iterator[str]:
    match target:
        case ast.Name(id=name):
            yield name
        case ast.Tuple(elts=items) | ast.List(elts=items):
            for item in items:
                yield from _names(item)
        case ast.Starred(value=value):
            yield from _names(value)


def _bound_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from _targets(node)


def _definitions(body: Any) -> Iterator[Any]:
    """Classes and functions of a module, those under a top-level `if` or `try` too."""
    import libcst as cst

    for node in body:
        if isinstance(node, cst.ClassDef | cst.FunctionDef):
            yield node
        elif isinstance(node, cst.If | cst.Try):
            yield from _definitions(node.body.body)


class _Reader:
    """Collects definitions; bases are resolved once all classes are known."""

    def __init__(self, module: Any, index: LineIndex) -> None:
        self.module = module
        self.spans = {name: (first, last) for first, last, name in index.functions}
        self.functions: dict[str, FunctionSource] = {}
        self.raw: dict[str, tuple[Any, tuple[str, ...], dict[str, Any]]] = {}

    def read(self, node: Any) -> None:
        import libcst as cst

        if isinstance(node, cst.FunctionDef):
            self.functions[node.name.value] = FunctionSource(
                node.name.value, self._parameters(node), node.get_docstring()
            )
            return
        bases = tuple(self.module.code_for_node(base.value) for base in node.bases)
        methods = {item.name.value: item for item in node.body.body if isinstance(item, cst.FunctionDef)}
        self.raw[node.name.value] = (node, bases, methods)

    def resolved(self) -> dict[str, ClassSource]:
        classes = {}
        for name, (node, bases, methods) in self.raw.items():
            init, forward = self._method(name, "__init__"), self._method(name, "forward")
            classes[name] = ClassSource(
                name=name,
                bases=bases,
                is_module=self._is_module(name, frozenset()),
                docstring=node.get_docstring(),
                init=self._parameters(init)[1:] if init is not None else (),
                forward=self._parameters(forward)[1:] if forward is not None else None,
                builds=frozenset(self._built(methods.values())) - {name},
                forward_lines=self.spans.get(f"{name}.forward"),
            )
        return classes

    def _method(self, name: str, method: str, seen: frozenset[str] = frozenset()) -> Any:
        if name not in self.raw or name in seen:
            return None
        _, bases, methods = self.raw[name]
        if method in methods:
            return methods[method]
        found = (self._method(base, method, seen | {name}) for base in bases)
        return next((item for item in found if item is not None), None)

    def _is_module(self, name: str, seen: frozenset[str]) -> bool:
        if name in seen:
            return False
        if name in self.raw:
            _, bases, methods = self.raw[name]
            if any(self._is_module(base, seen | {name}) for base in bases):
                return True
            functional = any(base.split(".")[-1] == "Function" for base in bases)  # autograd.Function
            return bool(bases) and "forward" in methods and not functional
        last = name.split(".")[-1]
        return last.endswith(("Module", "PreTrainedModel")) or name.startswith(("nn.", "torch.nn."))

    def _built(self, methods: Any) -> Iterator[str]:
        import libcst as cst
        from libcst import matchers as m

        for method in methods:
            for call in m.findall(method.body, m.Call()):
                assert isinstance(call, cst.Call)
                for part in (call.func, *(argument.value for argument in call.args)):
                    if isinstance(part, cst.Name) and part.value in self.raw:
                        yield part.value

    def _parameters(self, function: Any) -> tuple[Parameter, ...]:
        import libcst as cst

        params = function.params
        found = [self._parameter(item, "positional_only") for item in params.posonly_params]
        found += [self._parameter(item, "positional") for item in params.params]
        if isinstance(params.star_arg, cst.Param):
            found.append(Parameter(params.star_arg.name.value, "var_positional"))
        found += [self._parameter(item, "keyword_only") for item in params.kwonly_params]
        if params.star_kwarg is not None:
            found.append(Parameter(params.star_kwarg.name.value, "var_keyword"))
        return tuple(found)

    def _parameter(self, item: Any, kind: str) -> Parameter:
        default = None if item.default is None else self.module.code_for_node(item.default)
        return Parameter(item.name.value, kind, default)


def choose_entry(source: ModelSource, entry: str | None = None) -> Entry:
    """What builds the model: `entry`, else build_model(), else the one nn.Module class that no other class of
    the file builds or extends.

    Raises:
        TranspileError: no class or several; the candidates and `--entry` are shown.
        UsageError: `entry` names nothing in the file.
    """
    if entry is not None:
        return _named_entry(source, entry)
    if "build_model" in source.functions:
        return Entry("build_model", "factory", source.functions["build_model"].parameters)
    modules = source.module_classes()
    used = {name for item in modules for name in item.builds} | {base for item in modules for base in item.bases}
    candidates = [item.name for item in modules if item.name not in used]
    if len(candidates) == 1:
        return _named_entry(source, candidates[0])
    file = source.path.name
    if not modules:
        raise TranspileError(
            "no-model",
            f"{file} defines no nn.Module class and no build_model()",
            hints=["add a build_model() that returns the model, or name what builds it: --entry NAME"],
        )
    names = candidates or [item.name for item in modules]
    raise TranspileError(
        "several-models",
        f"{file} defines several models: {', '.join(names)}",
        hints=[
            f"choose one: --entry {names[0]}",
            "or add a build_model() that returns the model",
        ],
    )


def _named_entry(source: ModelSource, name: str) -> Entry:
    if name in source.classes:
        return Entry(name, "class", source.classes[name].init)
    if name in source.functions:
        return Entry(name, "factory", source.functions[name].parameters)
    if name in source.imported:
        return Entry(name, "imported", None)
    factories = [item for item in source.functions if item != "example_inputs"]
    known = [item.name for item in source.module_classes()] + factories
    choices = f"; {source.path.name} defines: {', '.join(known)}." if known else "."
    raise UsageError("unknown-entry", f"Unknown entry {name!r}{choices}")


def missing_inputs(source: ModelSource, entry: Entry) -> TranspileError:
    """The error for a model without example inputs; it names what forward takes."""
    forward = source.classes[entry.name].forward if entry.name in source.classes else None
    if forward is None:
        modules = [item for item in source.module_classes() if item.forward]
        forward = modules[0].forward if len(modules) == 1 else None
    required = [item.name for item in forward or () if item.required] or ["NAME"]
    flags = " ".join(f"--input {name}=1x3x224x224:float32" for name in required)
    takes = f" (forward takes: {', '.join(item.name for item in forward)})" if forward else ""
    return TranspileError(
        "no-example-inputs",
        f"No example inputs for {entry.name}{takes}",
        hints=[
            f"give shape and dtype of each: {flags}",
            f"or add example_inputs() to {source.path.name}, that returns a tuple of tensors or (args, kwargs)",
        ],
    )
