"""Sizes: plain ints, or integer expressions over named symbols in a canonical form.

A symbolic size is a polynomial with integer coefficients over atoms; an atom is a symbol or an opaque
`//`, `%`, `min`, `max` of two sizes. Two sizes that are equal as polynomials are equal as Python objects, so shapes
compare with `==`. The text form (`2*batch + seq//4`) parses back to the same object.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class SymbolRange:
    """The inclusive bounds of a symbol; `high` is None for no bound."""

    low: int = 0
    high: int | None = None

    def __str__(self) -> str:
        return f"{self.low}..{'' if self.high is None else self.high}"


@dataclass(frozen=True, order=True)
class Atom:
    """A symbol (`kind` "symbol", `name` set) or an opaque operation of two sizes, given by their text."""

    kind: str  # "symbol" | "//" | "%" | "min" | "max"
    name: str = ""
    left: str = ""
    right: str = ""

    def __str__(self) -> str:
        match self.kind:
            case "symbol":
                return self.name
            case "min" | "max":
                return f"{self.kind}({self.left}, {self.right})"
            case operator:
                return f"{_operand(self.left)}{operator}{_operand(self.right)}"


def _operand(text: str) -> str:
    return text if text.isalnum() or text.isidentifier() else f"({text})"


Monomial = tuple[Atom, ...]


@dataclass(frozen=True)
class SymExpr:
    """A polynomial: (atoms, coefficient) pairs, sorted, no zero coefficients, at least one atom."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        return _collect([*self.terms, *_terms(other)])

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: Dim) -> Dim:
        return self * -1 + other

    def __mul__(self, other: Dim) -> Dim:
        pairs = [(a, b) for a in self.terms for b in _terms(other)]
        return _collect([(tuple(sorted(ma + mb)), ca * cb) for (ma, ca), (mb, cb) in pairs])

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __str__(self) -> str:
        text = ""
        for monomial, coefficient in self.terms:
            factors = [str(abs(coefficient))] if abs(coefficient) != 1 or not monomial else []
            sign = "-" if coefficient < 0 else "+"
            # `2*a//4` and `-a//4` would be read as `(2*a)//4` and `(-a)//4`.
            alone = len(factors) + len(monomial) == 1 and not (sign == "-" and not text)
            factors += [str(atom) if alone or atom.kind not in ("//", "%") else f"({atom})" for atom in monomial]
            body = "*".join(factors)
            text += f" {sign} {body}" if text else (f"-{body}" if sign == "-" else body)
        return text

    __repr__ = __str__


Dim = int | SymExpr


def symbol(name: str) -> SymExpr:
    """The size called `name`. Raises ValueError if it is not an identifier."""
    if not name.isidentifier():
        raise ValueError(f"symbol {name!r} is not an identifier")
    return SymExpr((((Atom("symbol", name),), 1),))


def _terms(value: Dim) -> tuple[tuple[Monomial, int], ...]:
    return value.terms if isinstance(value, SymExpr) else (((), int(value)),)


def _collect(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    total: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        total[monomial] = total.get(monomial, 0) + coefficient
    kept = tuple(sorted((m, c) for m, c in total.items() if c))
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    # Symbols first, the constant last: `seq + 1`.
    return SymExpr(tuple(sorted(kept, key=lambda term: (not term[0], term[0]))))


def _opaque(kind: str, left: Dim, right: Dim) -> Dim:
    return SymExpr((((Atom(kind, "", str(left), str(right)),), 1),))


def floordiv(left: Dim, right: Dim) -> Dim:
    """`left // right`, rounding down; divides out a constant that divides every coefficient."""
    if isinstance(left, int) and isinstance(right, int):
        return left // right
    if right == 1:
        return left
    if left == right:
        return 1
    if isinstance(right, int) and isinstance(left, SymExpr):
        whole = [(m, c // right) for m, c in left.terms if c % right == 0]
        rest = [(m, c) for m, c in left.terms if c % right]
        if not rest:
            return _collect(whole)
        if whole:
            return _collect(whole) + floordiv(_collect(rest), right)
    if isinstance(right, SymExpr) and len(right.terms) == 1 and isinstance(left, SymExpr):
        quotient = _divide_monomial(left, right)
        if quotient is not None:
            return quotient
    return _opaque("//", left, right)


def _divide_monomial(left: SymExpr, right: SymExpr) -> Dim | None:
    ((divisor, scale),) = right.terms
    result: list[tuple[Monomial, int]] = []
    for monomial, coefficient in left.terms:
        remaining = list(monomial)
        for atom in divisor:
            if atom not in remaining:
                return None
            remaining.remove(atom)
        if coefficient % scale:
            return None
        result.append((tuple(remaining), coefficient // scale))
    return _collect(result)


def mod(left: Dim, right: Dim) -> Dim:
    """`left % right`, with the sign of `right`."""
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    if floordiv(left, right) * right == left:
        return 0
    return _opaque("%", left, right)


def dim_min(left: Dim, right: Dim) -> Dim:
    if isinstance(left, int) and isinstance(right, int):
        return min(left, right)
    return left if left == right else _opaque("min", left, right)


def dim_max(left: Dim, right: Dim) -> Dim:
    if isinstance(left, int) and isinstance(right, int):
        return max(left, right)
    return left if left == right else _opaque("max", left, right)


def is_static(value: Dim) -> bool:
    return isinstance(value, int)


def product(shape: Iterable[Dim]) -> Dim:
    """The number of elements of a shape."""
    return prod(shape, start=1)


def free_symbols(value: Dim) -> frozenset[str]:
    if isinstance(value, int):
        return frozenset()
    names: set[str] = set()
    for monomial, _ in value.terms:
        for atom in monomial:
            if atom.kind == "symbol":
                names.add(atom.name)
            else:
                names |= free_symbols(parse_dim(atom.left)) | free_symbols(parse_dim(atom.right))
    return frozenset(names)


def evaluate(value: Dim, symbols: Mapping[str, int]) -> int:
    """The size at given symbol values. Raises KeyError for a symbol that is not given."""
    if isinstance(value, int):
        return value
    return sum(
        coefficient * prod(_evaluate_atom(atom, symbols) for atom in monomial) for monomial, coefficient in value.terms
    )


_APPLY: dict[str, Callable[[int, int], int]] = {
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "min": min,
    "max": max,
}


def _evaluate_atom(atom: Atom, symbols: Mapping[str, int]) -> int:
    if atom.kind == "symbol":
        return symbols[atom.name]
    left, right = (evaluate(parse_dim(text), symbols) for text in (atom.left, atom.right))
    return _APPLY[atom.kind](left, right)


def rename(value: Dim, names: Mapping[str, str]) -> Dim:
    """The size with its symbols called otherwise; those that are not in `names` keep their name."""
    if isinstance(value, int):
        return value
    total: Dim = 0
    for monomial, coefficient in value.terms:
        term: Dim = coefficient
        for atom in monomial:
            if atom.kind == "symbol":
                term = term * symbol(names.get(atom.name, atom.name))
            else:
                left, right = (str(rename(parse_dim(text), names)) for text in (atom.left, atom.right))
                term = term * SymExpr((((Atom(atom.kind, "", left, right),), 1),))
        total = total + term
    return total


@dataclass(frozen=True)
class Place:
    """Where a symbol is read off: dimension `dim` of input `input` is `scale * value + offset`."""

    input: int
    dim: int
    scale: int = 1
    offset: int = 0


def symbol_places(shapes: Sequence[tuple[Dim, ...]]) -> dict[str, Place]:
    """For every symbol that a dimension determines, the first one that is the symbol itself, else the first that is
    linear in it alone."""
    places: dict[str, Place] = {}
    for wanted in (True, False):
        for index, shape in enumerate(shapes):
            for axis, dim in enumerate(shape):
                found = _linear(dim)
                if found is not None and (found[1:] == (1, 0)) >= wanted:
                    places.setdefault(found[0], Place(index, axis, *found[1:]))
    return places


def _linear(value: Dim) -> tuple[str, int, int] | None:
    """(symbol, scale, offset) of a size `scale * symbol + offset` with a positive scale."""
    if isinstance(value, int):
        return None
    offset = dict(value.terms).get((), 0)
    terms = [(monomial, coefficient) for monomial, coefficient in value.terms if monomial]
    if len(terms) != 1 or len(terms[0][0]) != 1 or terms[0][0][0].kind != "symbol" or terms[0][1] < 1:
        return None
    return terms[0][0][0].name, terms[0][1], offset


_IN_C = {"//": "divided", "%": "remainder_of", "min": "smaller", "max": "larger"}


def c_text(value: Dim, names: Mapping[str, str]) -> str:
    """The size as a C expression over variables called `names[symbol]`, with the functions of plan.c."""
    if isinstance(value, int):
        return str(value)
    text = ""
    for monomial, coefficient in value.terms:
        factors = [] if abs(coefficient) == 1 and monomial else [f"(size){abs(coefficient)}"]
        for atom in monomial:
            if atom.kind == "symbol":
                factors.append(names[atom.name])
            else:
                left, right = (c_text(parse_dim(side), names) for side in (atom.left, atom.right))
                factors.append(f"{_IN_C[atom.kind]}({left}, {right})")
        body = " * ".join(factors)
        sign = "-" if coefficient < 0 else "+"
        text += f" {sign} {body}" if text else (f"-{body}" if sign == "-" else body)
    return text


def parse_dim(text: str) -> Dim:
    """Parse the text form: ints, symbols, `+ - * // %`, `min(a, b)`, `max(a, b)`, parentheses.

    Raises:
        ValueError: anything else; nothing is ever evaluated as Python.
    """
    if len(text) > 1000:
        raise ValueError("size expression is longer than 1000 characters")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a size: {text!r}") from error
    return _from_ast(tree.body, text)


def _from_ast(node: ast.expr, text: str) -> Dim:
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _from_ast(operand, text) * -1
        case ast.BinOp(left=left, op=operator, right=right):
            a, b = _from_ast(left, text), _from_ast(right, text)
            match operator:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv() if b != 0:
                    return floordiv(a, b)
                case ast.Mod() if b != 0:
                    return mod(a, b)
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=[left, right], keywords=[]):
            a, b = _from_ast(left, text), _from_ast(right, text)
            return dim_min(a, b) if name == "min" else dim_max(a, b)
    raise ValueError(f"not a size: {text!r}")
