"""What the ATen importers do, read off their source: no model is run.

The names that an importer's body uses are resolved through its closure, its defaults and its module: op classes are
what it may emit, functions of `transpiler.ops` are followed.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

from transpiler.ops.base import Op

# The cast and the constants that every importer may need to bring its operands together are not worth telling.
_PLUMBING = {("transpiler.ops.promotion", "operand"), ("transpiler.ops.promotion", "operands")}


@dataclass(frozen=True)
class Survey:
    """What an importer may emit, and why it refuses.

    `always` says that it does nothing else than refuse, `casts` that it changes dtypes itself.
    """

    ops: tuple[type[Op], ...]
    reasons: tuple[str, ...]
    always: bool = False
    casts: bool = False


@cache
def survey(importer: Callable[..., Any]) -> Survey:
    """All branches are counted: an op may be needed for some arguments only."""
    found: dict[type[Op], None] = {}
    reasons: dict[str, None] = {}
    _follow(importer, found, reasons, set())
    nodes = _nodes(importer) if isinstance(importer, FunctionType) else iter(())
    casts = any(isinstance(node, ast.Attribute) and node.attr == "cast" for node in nodes)
    return Survey(tuple(found), tuple(reasons), _always_raises(importer), casts)


def _follow(item: Any, ops: dict[type[Op], None], reasons: dict[str, None], seen: set[int]) -> None:
    if isinstance(item, type) and issubclass(item, Op):
        if item.name:
            ops[item] = None
    elif isinstance(item, Op):
        ops[type(item)] = None
    elif isinstance(item, Mapping | tuple | list):
        for entry in item.values() if isinstance(item, Mapping) else item:
            _follow(entry, ops, reasons, seen)
    elif isinstance(item, FunctionType) and item.__module__.startswith("transpiler.ops") and id(item) not in seen:
        seen.add(id(item))
        if (item.__module__, item.__name__) not in _PLUMBING and item.__module__ != "transpiler.ops.base":
            for node in _nodes(item):
                _use(node, item, ops, reasons, seen)
        elif item.__name__ == "<lambda>":  # the default importer of an op
            _follow(tuple((item.__kwdefaults__ or {}).values()), ops, reasons, seen)


def _use(
    node: ast.AST, function: FunctionType, ops: dict[type[Op], None], reasons: dict[str, None], seen: set[int]
) -> None:
    match node:
        case ast.Call(func=ast.Attribute(attr="unsupported"), args=[reason, *_]):
            reasons[_text(reason)] = None
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            module = function.__globals__.get(name)
            if isinstance(module, ModuleType):
                _follow(getattr(module, attribute, None), ops, reasons, seen)
        case ast.Name(id=name):
            _follow(_scope(function).get(name), ops, reasons, seen)


def _text(reason: ast.expr) -> str:
    if isinstance(reason, ast.Constant):
        return str(reason.value)
    if isinstance(reason, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else "…" for part in reason.values)
        return "".join(map(str, parts))
    return "…"


def _scope(function: FunctionType) -> dict[str, Any]:
    """Names that are not local, by what they mean now; a parameter is known by its default."""
    code = function.__code__
    names = {name: function.__globals__.get(name) for name in code.co_names}
    for inner in (item for item in code.co_consts if inspect.iscode(item)):
        names |= {name: function.__globals__.get(name) for name in inner.co_names}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        names[name] = cell.cell_contents
    parameters = inspect.signature(function).parameters.values()
    return names | {item.name: item.default for item in parameters if item.default is not item.empty}


def _nodes(function: FunctionType) -> Iterator[ast.AST]:
    """The body's nodes as they are written, without annotations and decorators."""
    for definition in _definitions(function):
        body = definition.body if isinstance(definition.body, list) else [definition.body]
        for statement in body:
            yield from _walk(statement)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child)


def _definitions(function: FunctionType) -> list[ast.FunctionDef | ast.Lambda]:
    code = function.__code__
    return _by_line(code.co_filename).get((function.__name__, code.co_firstlineno), [])


@cache
def _by_line(file: str) -> dict[tuple[str, int], list[ast.FunctionDef | ast.Lambda]]:
    """Functions of a file by name and first line, which is that of the first decorator."""
    found: dict[tuple[str, int], list[ast.FunctionDef | ast.Lambda]] = {}
    with open(file, encoding="utf-8") as text:
        tree = ast.parse(text.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            found.setdefault((node.name, first), []).append(node)
        elif isinstance(node, ast.Lambda):
            found.setdefault(("<lambda>", node.lineno), []).append(node)
    return found


def _always_raises(importer: Callable[..., Any]) -> bool:
    if not isinstance(importer, FunctionType):
        return False
    for definition in _definitions(importer):
        body = definition.body if isinstance(definition.body, list) else []
        return isinstance(body[-1] if body else None, ast.Raise) and all(
            isinstance(item, ast.Expr) for item in body[:-1]
        )
    return False


# --- the numbers of an op -----------------------------------------------------------------------------------------


class _Expression:
    """Any target expression: it counts the arithmetic that is done with it."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def _sum(self, _: Any) -> _Expression:
        self.trace.arithmetic += 1
        return self

    def _product(self, other: Any) -> _Expression:
        # A power of two changes the exponent alone.
        self.trace.arithmetic += not (isinstance(other, int | float) and abs(other) in (0.5, 1, 2))
        return self

    def _compared(self, _: Any) -> _Expression:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = _sum
    __mul__ = __rmul__ = _product
    __lt__ = __le__ = __gt__ = __ge__ = _compared


class Trace:
    """A `Scalar` that notes which functions an element-wise op calls, and how often it rounds otherwise."""

    def __init__(self, dtype: str) -> None:
        self.arithmetic = 0
        self.functions: dict[str, None] = {}
        self._dtype = dtype

    def call(self, function: str, *_: Any) -> _Expression:
        self.functions[function] = None
        return _Expression(self)

    def const(self, value: float, _: str) -> float:
        return value

    def divide(self, *_: Any) -> _Expression:
        self.arithmetic += 1
        return _Expression(self)

    def dtype(self, _: Any) -> str:
        return self._dtype

    def wrapping(self, function: Callable[..., Any], *x: Any) -> Any:
        return function(*x)

    def __getattr__(self, name: str) -> Callable[..., _Expression]:
        """Choices, comparisons, casts: nothing is rounded."""
        return lambda *_, **__: _Expression(self)


def trace(op: Any, inputs: int, dtype: str = "float32") -> Trace:
    """What one element of `op` costs in roundings."""
    record = Trace(dtype)
    op.scalar(record, *(_Expression(record) for _ in range(inputs)))
    return record
