"""Reading the functions of float64 that packages for CPUs have in C: one home for a formula, whatever the target.

The subset is what `templates/runtime/cpu/special*.c` and `libm.c` are written in: double and int variables, tables of
constants, if, for, return, break, expressions. Anything else is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# An expression or a statement: its kind, then its parts.
Node = tuple[object, ...]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<name>\w+)"
    r"|(?P<sign>\+\+|--|[-+*/]=|==|!=|<=|>=|&&|\|\||[-+*/%<>=!?:;,(){}\[\]&]))"
)
_TYPES = ("double", "int", "int64_t", "void")
_BINARY = (("||",), ("&&",), ("==", "!="), ("<", ">", "<=", ">="), ("+", "-"), ("*", "/", "%"))


@dataclass(frozen=True)
class Function:
    """`parameters` are (type, name)."""

    name: str
    type: str
    parameters: tuple[tuple[str, str], ...]
    body: tuple[Node, ...]


@dataclass
class Source:
    """What some files define."""

    functions: dict[str, Function] = field(default_factory=dict)
    tables: dict[str, Node] = field(default_factory=dict)
    constants: dict[str, Node] = field(default_factory=dict)

    def read(self, text: str) -> None:
        """Raises SyntaxError for what is not of the subset."""
        _Parser(text, self).file()


def _tokens(text: str) -> Iterator[str]:
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)
    text = re.sub(r"^\s*#(?:[^\n\\]|\\\n|\\.)*$", " ", text, flags=re.MULTILINE).rstrip()
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise SyntaxError(f"C: {text[position : position + 40]!r}")
        position = match.end()
        yield match.group().strip()


class _Parser:
    def __init__(self, text: str, source: Source) -> None:
        self.tokens = [*_tokens(text), ""]
        self.position = 0
        self.source = source

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[min(self.position + ahead, len(self.tokens) - 1)]

    def take(self, *expected: str) -> str:
        token = self.peek()
        if expected and token not in expected:
            around = " ".join(self.tokens[max(self.position - 8, 0) : self.position + 4])
            raise SyntaxError(f"C: {' or '.join(expected)} expected, not {token!r}, in: {around}")
        self.position += 1
        return token

    def accept(self, token: str) -> bool:
        if self.peek() != token:
            return False
        self.position += 1
        return True

    # --- definitions
    def file(self) -> None:
        while self.peek():
            while self.peek() in ("static", "inline", "const"):
                self.take()
            type_ = self.take(*_TYPES)
            name = self.take()
            if self.peek() != "(":
                self._constant(name)
            else:
                self._function(type_, name)

    def _constant(self, name: str) -> None:
        table = self.accept("[")
        if table:
            self.take("]")
        self.take("=")
        if table:
            self.source.tables[name] = self._table()
        else:
            self.source.constants[name] = self.expression()
        self.take(";")

    def _table(self) -> Node:
        self.take("{")
        items = []
        while not self.accept("}"):
            items.append(self.expression())
            self.accept(",")
        return tuple(items)

    def _function(self, type_: str, name: str) -> None:
        while True:
            parameters = self._parameters()
            if self.peek() == "{":
                self.source.functions[name] = Function(name, type_, parameters, self.block())
                return
            if self.take(",", ";") == ";":  # declarations
                return
            name = self.take()

    def _parameters(self) -> tuple[tuple[str, str], ...]:
        self.take("(")
        found = []
        while not self.accept(")"):
            self.accept("const")
            type_ = self.take(*_TYPES)
            if self.accept("*"):
                type_ = "table"
            found.append((type_, self.take()))
            self.accept(",")
        return tuple(found)

    # --- statements
    def block(self) -> tuple[Node, ...]:
        self.take("{")
        statements: list[Node] = []
        while not self.accept("}"):
            statements += self.statement()
        return tuple(statements)

    def body(self) -> tuple[Node, ...]:
        return self.block() if self.peek() == "{" else tuple(self.statement())

    def statement(self) -> list[Node]:
        token = self.peek()
        if token in ("static", "const", *_TYPES):
            return self._declaration()
        if token == "if":
            self.take()
            self.take("(")
            condition = self.expression()
            self.take(")")
            then = self.body()
            return [("if", condition, then, self.body() if self.accept("else") else ())]
        if token == "for":
            return [self._for()]
        if token in ("return", "break"):
            self.take()
            node: Node = ("break",) if token == "break" else ("return", self.expression())
            self.take(";")
            return [node]
        node = ("do", self.expression())
        self.take(";")
        return [node]

    def _declaration(self) -> list[Node]:
        while self.peek() in ("static", "const"):
            self.take()
        type_ = self.take(*_TYPES)
        found: list[Node] = []
        while True:
            name = self.take()
            if self.accept("["):
                self.take("]")
                self.take("=")
                found.append(("table", name, self._table()))
            else:
                found.append(("declare", type_, name, self.expression() if self.accept("=") else None))
            if self.take(",", ";") == ";":
                return found

    def _for(self) -> Node:
        self.take("for")
        self.take("(")
        begin = [] if self.accept(";") else self.statement()
        condition = self.expression()
        self.take(";")
        steps = [self.expression()]
        while self.accept(","):
            steps.append(self.expression())
        self.take(")")
        return ("for", tuple(begin), condition, tuple(("do", step) for step in steps), self.body())

    # --- expressions
    def expression(self) -> Node:
        left = self._choice()
        if self.peek() in ("=", "+=", "-=", "*=", "/="):
            sign, right = self.take(), self.expression()
            return ("set", left[1], right if sign == "=" else (sign[0], left, right))
        return left

    def _choice(self) -> Node:
        condition = self._binary(0)
        if not self.accept("?"):
            return condition
        then = self.expression()
        self.take(":")
        return ("?", condition, then, self._choice())

    def _binary(self, level: int) -> Node:
        if level == len(_BINARY):
            return self._unary()
        left = self._binary(level + 1)
        while self.peek() in _BINARY[level]:
            left = (self.take(), left, self._binary(level + 1))
        return left

    def _unary(self) -> Node:
        token = self.peek()
        if token in ("-", "!"):
            self.take()
            return ("negate" if token == "-" else "not", self._unary())
        if token in ("++", "--"):
            self.take()
            operand = self._unary()
            return ("set", operand[1], (token[0], operand, ("number", 1)))
        if token == "&":  # what is written through a pointer is not read
            self.take()
            return self._unary()
        if token == "(" and self.peek(1) in _TYPES and self.peek(2) == ")":
            self.take()
            type_ = self.take()
            self.take()
            return ("cast", type_, self._unary())
        return self._postfix()

    def _postfix(self) -> Node:
        token = self.take()
        if token == "(":
            inside = self.expression()
            self.take(")")
            return inside
        if token[0].isdigit() or token[0] == ".":
            return ("number", int(token) if token.isdigit() else float(token))
        if self.accept("("):
            arguments = []
            while not self.accept(")"):
                arguments.append(self.expression())
                self.accept(",")
            return ("call", token, tuple(arguments))
        if self.accept("["):
            index = self.expression()
            self.take("]")
            return ("item", token, index)
        return ("name", token)
