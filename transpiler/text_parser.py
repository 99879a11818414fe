"""Reads the text form of a program, which `transpiler.text` describes and writes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from transpiler.attributes import MAX_NESTING, bad_graph, check_dtype, check_identifier, check_text, make_op
from transpiler.dims import Dim, SymbolRange, parse_dim
from transpiler.errors import Location
from transpiler.ir import Array, Graph, Input, Node, Output, Program, Role, TensorType, Value
from transpiler.naming import check_function_name
from transpiler.serialize import check_program
from transpiler.structure import Leaf, Literal, Mapping_, Sequence_, Structure

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+)|(?P<newline>\n)|(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<dim>`[^`\n]*`)
      |(?P<range>\d+\.\.\d*)
      |(?P<number>-?(?:\d+\.\d*(?:[eE][+-]?\d+)?|\d+(?:[eE][+-]?\d+)?|inf\b))|(?P<name>[A-Za-z_]\w*)
      |(?P<arrow>->)|(?P<division>//)|(?P<mark>[%$#:;,=(){}\[\]*+\-])""",
    re.VERBOSE | re.ASCII,
)


def parse_program(text: str, constants: Mapping[str, Array] | None = None) -> Program:
    """Inverse of `print_program`; `constants` has the data of the constants that the text names.

    Raises:
        TranspileError: "bad-graph": with the line for text that does not parse, and for graphs that do not
        verify.
    """
    return check_program(_Parser(text).program(constants or {}))


def parse_graph(text: str, constants: Mapping[str, Array] | None = None) -> Graph:
    """Inverse of `print_graph`. Raises TranspileError "bad-graph"."""
    program = _Parser(text).program(constants or {}, declared=False)
    (graph,) = program.functions.values()
    return check_program(program).functions[graph.name]


class _Parser:
    """Recursive descent over (kind, text, line) tokens."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str, int]] = []
        position, line = 0, 1
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise bad_graph(f"line {line}: unexpected {text[position]!r}")
            kind = str(match.lastgroup)
            if kind == "newline":
                line += 1
            elif kind != "space":
                self.tokens.append((kind, match[0], line))
            position = match.end()
        self.tokens.append(("end", "", line))
        self.at = 0

    # --- tokens ---------------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        return self.tokens[self.at][1]

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0]

    @property
    def line(self) -> int:
        return self.tokens[self.at][2]

    def fail(self, expected: str) -> Exception:
        found = repr(self.text) if self.kind != "end" else "the end"
        return bad_graph(f"line {self.line}: expected {expected}, found {found}")

    def take(self, kind: str, what: str = "") -> str:
        if self.kind != kind:
            raise self.fail(what or f"a {kind}")
        text = self.text
        self.at += 1
        return text

    def expect(self, text: str) -> None:
        if self.text != text or self.kind == "string":
            raise self.fail(repr(text))
        self.at += 1

    def accept(self, text: str) -> bool:
        if self.text == text and self.kind != "string":
            self.at += 1
            return True
        return False

    def string(self) -> str:
        token = self.take("string")
        try:
            return check_text(json.loads(token), "text")
        except ValueError:
            raise bad_graph(f"line {self.line}: {token} is not a string") from None

    def integer(self) -> int:
        token = self.take("number")
        if not re.fullmatch(r"-?\d{1,18}", token):
            raise bad_graph(f"line {self.line}: {token} is not an integer")
        return int(token)

    # --- grammar --------------------------------------------------------------------------------------------

    def program(self, constants: Mapping[str, Array], *, declared: bool = True) -> Program:
        named = []
        while self.accept("constant"):
            named.append(self.string())
        aliases = {}
        while self.accept("alias"):
            key = self.string()
            self.expect("=")
            aliases[key] = self.string()
        functions: dict[str, Graph] = {}
        while self.kind != "end":
            graph = self.graph()
            functions[graph.name] = graph
        if not functions:
            raise self.fail("'func'")
        if declared and (missing := [key for key in named if key not in constants]):
            raise bad_graph(f"constant {', '.join(map(repr, missing))} is not given")
        kept = {key: constants[key] for key in named} if declared else dict(constants)
        return Program(functions, kept, aliases)

    def graph(self) -> Graph:
        self.expect("func")
        name = check_function_name(check_identifier(self.take("name"), "function"))
        self.values: dict[str, Value] = {}
        self.expect("(")
        inputs = []
        while not self.accept(")"):
            inputs.append(self.input())
        symbols: dict[str, SymbolRange] = {}
        if self.accept("where"):
            while not symbols or self.accept(","):
                symbol = check_identifier(self.take("name"), "symbol")
                self.expect("in")
                low, _, high = self.take("range").partition("..")
                symbols[symbol] = SymbolRange(int(low), int(high) if high else None)
        self.expect("{")
        in_structure = self.structure(0) if self.accept("in") else None
        nodes = []
        while not self.accept("return"):
            nodes.append(self.node())
        outputs = []
        while self.text == "%":
            value = self.use()
            outputs.append(Output(value, self.string() if self.accept("->") else None))
            if not self.accept(","):
                break
        out_structure = self.structure(0) if self.accept("out") else None
        self.expect("}")
        return Graph(name, tuple(inputs), tuple(nodes), tuple(outputs), in_structure, out_structure, symbols)

    def input(self) -> Input:
        name, type_ = self.typed()
        role = self.take("name", "a role")
        if role not in list(Role):
            raise bad_graph(f"line {self.line}: unknown role {role!r}; known: {', '.join(Role)}")
        key = self.string()
        self.expect(",")
        (value,) = self.define([(name, type_)])
        return Input(value, Role(role), key)

    def node(self) -> Node:
        declared = [self.typed()]
        while self.accept(","):
            declared.append(self.typed())
        self.expect("=")
        op = self.take("name", "an op")
        self.expect("(")
        inputs: list[Value] = []
        while not self.accept(")"):
            if inputs:
                self.expect(",")
            inputs.append(self.use())
        attributes: dict[str, Any] = {}
        if self.accept("{"):
            while not self.accept("}"):
                if attributes:
                    self.expect(",")
                key = self.take("name", "an attribute")
                self.expect("=")
                attributes[key] = self.attribute(0)
        return Node(make_op(op, attributes), tuple(inputs), self.define(declared))

    def typed(self) -> tuple[str, TensorType]:
        self.expect("%")
        name = check_identifier(self.take("name"), "value")
        self.expect(":")
        dtype = check_dtype(self.take("name", "a dtype"))
        self.expect("[")
        shape: list[Dim] = []
        while not self.accept("]"):
            if shape:
                self.expect(",")
            shape.append(self.dim())
        return name, TensorType(dtype, tuple(shape))

    def dim(self) -> Dim:
        """Everything up to a comma or bracket outside of parentheses, read by `parse_dim`."""
        parts, depth = [], 0
        while self.kind != "end" and (depth or self.text not in (",", "]")):
            depth += (self.text == "(") - (self.text == ")")
            parts.append(self.text)
            self.at += 1
        return self.parse_dim(" ".join(parts))

    def parse_dim(self, text: str) -> Dim:
        try:
            return parse_dim(text)
        except ValueError as error:
            raise bad_graph(f"line {self.line}: {error}") from error

    def use(self) -> Value:
        self.expect("%")
        name = self.take("name")
        if name not in self.values:
            raise bad_graph(f"line {self.line}: %{name} is used before its definition")
        return self.values[name]

    def define(self, declared: list[tuple[str, TensorType]]) -> tuple[Value, ...]:
        commented = self.accept("#")
        values = []
        for index, (name, type_) in enumerate(declared):
            if commented and index:
                self.expect(";")
            values.append(self.origin(name, type_) if commented else Value(name, type_))
        self.values.update({value.name: value for value in values})
        return tuple(values)

    def origin(self, name: str, type_: TensorType) -> Value:
        path = self.string() if self.accept("path") else None
        hint = self.string() if self.accept("hint") else None
        location = None
        if self.accept("at"):
            file = self.string()
            self.expect(":")
            line = self.integer()
            function = self.string() if self.accept("in") else ""
            module_path = self.string() if self.accept("of") else ""
            location = Location(file, line, function, self.string() if self.accept("text") else "", module_path)
        return Value(name, type_, path, location, hint)

    def attribute(self, depth: int) -> Any:
        if depth > MAX_NESTING:
            raise bad_graph(f"line {self.line}: nested too deeply")
        if self.kind == "dim":
            return self.parse_dim(self.take("dim")[1:-1])
        if self.accept("("):
            items: list[Any] = []
            while not self.accept(")"):
                items.append(self.attribute(depth + 1))
                if self.text != ")":
                    self.expect(",")
            return tuple(items)
        return self.literal()

    def literal(self) -> Any:
        if self.kind == "string":
            return self.string()
        if self.kind == "number":
            token = self.text
            if re.fullmatch(r"-?\d+", token):
                return self.integer()
            return float(self.take("number"))
        words = {"None": None, "True": True, "False": False, "inf": math.inf, "nan": math.nan}
        if self.kind == "name" and self.text in words:
            return words[self.take("name")]
        raise self.fail("a value")

    def structure(self, depth: int) -> Structure:
        if depth > 64:
            raise bad_graph(f"line {self.line}: nested too deeply")
        if self.accept("$"):
            return Leaf(self.integer())
        for kind, opening, closing in (("tuple", "(", ")"), ("list", "[", "]")):
            if self.accept(opening):
                items: list[Structure] = []
                while not self.accept(closing):
                    items.append(self.structure(depth + 1))
                    if self.text != closing:
                        self.expect(",")
                return Sequence_(kind, tuple(items))
        if self.text == "{" or (self.kind == "name" and self.tokens[self.at + 1][1] in ("{", "(")):
            type_name = check_identifier(self.take("name"), "type") if self.kind == "name" else ""
            named_tuple = self.accept("(")
            if not named_tuple:
                self.expect("{")
            fields: list[tuple[str, Structure]] = []
            while not self.accept(")" if named_tuple else "}"):
                if fields:
                    self.expect(",")
                key = self.string()
                self.expect(":")
                fields.append((check_identifier(key, "field") if type_name else key, self.structure(depth + 1)))
            kind = "namedtuple" if named_tuple else "record" if type_name else "dict"
            return Mapping_(kind, tuple(fields), type_name)
        return Literal(self.literal())
