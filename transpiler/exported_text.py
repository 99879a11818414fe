"""The texts in a `.pt2` file from which torch would make code: names, operators, sizes, the nesting of arguments.

Each is checked without evaluating anything of it; what is not known to be harmless is refused (`exported_file`).
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from typing import Any

import torch

from transpiler.errors import TranspileError
from transpiler.ops.base import ATEN

MAX_DEPTH = 100

# What sizes are written with: sympy's constructors and torch's functions, none of which can grow a constant.
FUNCTIONS = frozenset({
    "Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing", "IntTrueDiv",
    "FloatTrueDiv", "CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat", "RoundToInt", "ToFloat", "Identity",
    "Where", "And", "Or", "Not", "Equality", "Unequality", "Eq", "Ne", "StrictLessThan", "LessThan",
    "StrictGreaterThan", "GreaterThan", "Pow", "PowByNatural", "Rational",
})  # fmt: skip
POWERS = frozenset({"Pow", "PowByNatural"})
MAX_EXPONENT = 8
SYMBOL = re.compile(r"(s|u|f|zf|zuf)\d{1,9}")

HIGHER_ORDER = frozenset({
    "cond", "while_loop", "map_impl", "scan", "associative_scan", "wrap_with_set_grad_enabled", "wrap_with_autocast",
    "invoke_subgraph",
})  # fmt: skip
ON_SIZES = frozenset({
    *(f"_operator.{name}" for name in (
        "eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv", "mod", "pow", "truediv",
        "and_", "or_", "getitem",
    )),
    *(f"torch.sym_{name}" for name in ("not", "int", "float", "ite", "max", "min", "sqrt")),
    "math.trunc", "math.ceil", "math.floor",
})  # fmt: skip
OPERATOR = re.compile(r"torch\.ops\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)(?:\.(\w+))?", re.ASCII)
# Operators of PyTorch's own that reach for files, or for more than their tensors.
NEVER = frozenset({"from_file", "save", "load", "warn", "_print", "manual_seed", "seed", "set_grad_enabled"})
NESTED = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
FACTORIES = frozenset({"dict", "float", "int", "list", "set", "tuple"})


def unsafe(why: str) -> TranspileError:
    return TranspileError("unsafe-pt2", why)


def bad(why: str) -> TranspileError:
    return TranspileError("bad-pt2", why)


def check_name(name: str) -> None:
    """Names of values become Python source."""
    if name and (not name.isascii() or not name.isidentifier() or keyword.iskeyword(name) or len(name) > 1000):
        # Operators have parameters called `from` and `lambda`; as values they could only fail.
        if name in ("from", "lambda", "in", "is", "or", "and", "not"):
            return
        raise unsafe(f"{name[:100]!r} is not a name")


def check_path(path: str) -> None:
    """Names of weights and modules become attribute lookups in Python source."""
    if not path.isprintable() or any(mark in path for mark in "\"'\\{}") or len(path) > 4096:
        raise unsafe(f"{path[:100]!r} is not the name of a weight or module")


def check_operator(target: str) -> None:
    """Only operators on tensors and sizes. Raises TranspileError "unsafe-pt2"."""
    if target in ON_SIZES:
        return
    match = OPERATOR.fullmatch(target)
    if match is None:
        raise unsafe(f"{target[:200]!r} is no operator")
    namespace, name, overload = match[1], match[2], match[3] or "default"
    if namespace == "higher_order":
        known = name in HIGHER_ORDER
    elif namespace in ("aten", "prims"):
        known = name not in NEVER and _is_on_tensors(namespace, name, overload)
    else:  # a user's own: known if it was registered here (docs/custom_operators.md)
        known = f"{namespace}.{name}.{overload}" in ATEN
    if not known:
        raise TranspileError(
            "unsafe-pt2",
            f"it calls {target[:200]!r}, which is not known here",
            hints=["operators of your own are registered by an installed package (docs/custom_operators.md)"],
        )


def _is_on_tensors(namespace: str, name: str, overload: str) -> bool:
    found = getattr(getattr(getattr(torch.ops, namespace), name, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        return False
    schema = found._schema
    types = [str(item.type) for item in (*schema.arguments, *schema.returns)]
    return any("Tensor" in text for text in types) or name.startswith("sym_") or name == "_assert_scalar"


def check_expression(text: str) -> None:
    """A size as torch prints it: `FloorDiv(Symbol('s77', integer=True), Integer(2))`. Nothing is evaluated.

    Raises:
        TranspileError: "unsafe-pt2".
    """
    if len(text) > 10_000:
        raise unsafe("a size is longer than 10000 characters")
    try:
        tree = ast.parse(text, mode="eval").body
        fine = _is_size(tree, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        fine = False
    if not fine:
        raise unsafe(f"{text[:200]!r} is not a size")


def _is_size(node: ast.expr, depth: int) -> bool:
    if depth > MAX_DEPTH:
        return False
    match node:
        case ast.Constant(value=bool()):
            return True
        case ast.Constant(value=int() as value):
            return abs(value) < 2**63
        case ast.Constant(value=float()):
            return True
        case ast.Name(id="true" | "false" | "oo" | "int_oo"):
            return True
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_size(operand, depth + 1)
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as name)], keywords=words):
            return bool(SYMBOL.fullmatch(name)) and all(_is_flag(word) for word in words)
        case ast.Call(func=ast.Name(id="Integer"), args=[argument], keywords=[]):
            return isinstance(argument, ast.Constant | ast.UnaryOp) and _is_size(argument, depth + 1)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str() as number)], keywords=words):
            precise = all(word.arg in ("precision", "dps") and _is_size(word.value, depth + 1) for word in words)
            return precise and bool(re.fullmatch(r"-?\d{1,40}(\.\d{0,40})?(e[+-]?\d{1,3})?", number))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            if name in POWERS and not (len(arguments) == 2 and _is_exponent(arguments[1])):
                return False
            return all(_is_size(item, depth + 1) for item in arguments)
    return False


def _is_flag(word: ast.keyword) -> bool:
    known = word.arg in ("integer", "positive", "nonnegative", "real", "finite", "commutative")
    return known and isinstance(word.value, ast.Constant) and isinstance(word.value.value, bool)


def _is_exponent(node: ast.expr) -> bool:
    inner = node.args[0] if isinstance(node, ast.Call) and len(node.args) == 1 else node
    if isinstance(inner, ast.UnaryOp):
        inner = inner.operand
    return isinstance(inner, ast.Constant) and type(inner.value) is int and abs(inner.value) <= MAX_EXPONENT


def check_nesting(text: str) -> Any:
    """A pytree as JSON, whose contexts may name modules to be imported. Returns it, parsed.

    Raises:
        TranspileError: "unsafe-pt2"; "bad-pt2".
    """
    if not text:
        return None
    protocol, top = json.loads(text)
    if protocol != 1:
        raise bad(f"nested arguments of protocol {protocol!r}")
    waiting = [(top, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise bad("arguments are nested too deeply")
        _check_context(node["type"], node["context"])
        waiting.extend((child, depth + 1) for child in node["children_spec"])
    return top


def _check_context(kind: object, context: object) -> None:
    if kind is None:
        return
    if kind == "collections.defaultdict":
        harmless = isinstance(context, dict) and (
            context.get("default_factory_module"), context.get("default_factory_name") in FACTORIES
        ) == ("builtins", True)  # fmt: skip
        if not harmless:
            raise unsafe("arguments hold a defaultdict of an unknown type")
    elif kind not in NESTED and kind not in torch.utils._pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE:
        raise bad(f"arguments hold the unknown type {str(kind)[:200]!r}")
    if "__enum__" in json.dumps(context):
        raise unsafe("arguments hold an enumeration")
