"""Functions of float64 in C as SPIR-V, written out where they are called.

What is known when the kernel is made (ints, tables, the number of terms of a series) is worked out here; a loop whose
condition depends on data is a loop, and variables that change lie in memory of the invocation. A function that calls
itself does so after a reflection, with an argument for which it does not: the branch that would is left out the second
time.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transpiler.special_functions import FILES, special_file

from . import doubles
from .arithmetic import Arithmetic, Value
from .c_source import Function, Node, Source
from .c_statements import always_returns, as_block, as_node, calls, leaves, names, returns_in_part, walk
from .control import choose, repeat_while
from .dtypes import BOOL, FLOAT64, INT32, INT64, UINT32, DType, unsupported
from .memory import Memory, Storage
from .opcodes import Glsl

# Functions of the C library that are as good for all of float64.
OF_FLOAT64 = frozenset({"erf", "erfc", "log1p", "expm1", "tanh"})
# A number that is known, or a value.
Number = int | float | bool | Value
_COMPARISONS = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}
_STATIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_INTS = {"int": INT32, "int64_t": INT64}


@cache
def source() -> Source:
    """The functions that packages for CPUs have, and what they take from the C library."""
    found = Source()
    for file in FILES:
        found.read(special_file(file))
    found.read(Path(__file__).with_name("libm.c").read_text())
    return found


def defines(name: str) -> bool:
    """Whether kernels can call `name`: sines of float64 are for the others, their angles are limited."""
    return (name.startswith("tp_math_") or name in OF_FLOAT64) and name in source().functions


def call(s: Arithmetic, name: str, *args: Value) -> Value:
    """`name` of float64 values.

    Raises:
        TranspileError: arguments of another dtype.
    """
    if any(x.dtype != FLOAT64 for x in args):
        raise unsupported(f"the function {name} of {', '.join(str(x.dtype) for x in args)}")
    caller = _Caller(s)
    return caller.double(caller.function(source().functions[name], args))


class _Frame:
    """A call: its variables (numbers that are known, values, cells), its result, and whether it has returned."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.names: dict[str, Any] = {}
        self.types: dict[str, str] = {}
        self.result: Storage | None = None
        self.done: Storage | None = None
        self.broken: list[Storage] = []
        self.assigned = {str(node[1]) for node in walk(function.body) if node[0] == "set"}


class _Caller:
    """Writes calls. `stack` are the functions that are being written out."""

    def __init__(self, s: Arithmetic) -> None:
        self.s = s
        self.memory = Memory(s)
        self.frames: list[_Frame] = []

    # --- numbers
    def double(self, x: Number) -> Value:
        if not isinstance(x, Value):
            return self.s.const(float(x), FLOAT64)
        return self.s.cast(x, FLOAT64)

    def whole(self, x: Number, dtype: DType) -> Value:
        return self.s.cast(x, dtype) if isinstance(x, Value) else self.s.const(int(x), dtype)

    def truth(self, x: Number) -> Value | bool:
        if not isinstance(x, Value):
            return bool(x)
        return x if x.dtype == BOOL else self.s.compare("ne", x, self.s.const(0, x.dtype))

    def cell(self, name: str, dtype: DType, value: Value) -> Storage:
        made = self.memory.array(name, dtype, 1, shared=False)
        self.write(made, value)
        return made

    def read(self, cell: Storage) -> Value:
        return self.memory.load(cell, self.s.const(0, UINT32))

    def write(self, cell: Storage, value: Value) -> None:
        self.memory.store(cell, self.s.const(0, UINT32), value)

    # --- calls
    def function(self, function: Function, args: Sequence[Any]) -> Number:
        frame = _Frame(function)
        self.frames.append(frame)
        for (type_, name), argument in zip(function.parameters, args, strict=True):
            self.declare(type_, name, argument)
        *before, last = function.body
        if last[0] == "return" and not any(node[0] == "return" for node in walk(before)):
            self.run(before)
            result = self.converted(function.type, self.value(as_node(last[1])))
        else:
            dtype = _INTS.get(function.type, FLOAT64)
            frame.result = self.cell("result", dtype, self.s.const(0, dtype))
            if returns_in_part(function.body):
                frame.done = self.cell("done", BOOL, self.s.const(False, BOOL))
            self.run(function.body)
            result = self.read(frame.result)
        self.frames.pop()
        return result

    def converted(self, type_: str, x: Number) -> Number:
        if type_ == "double":
            return self.double(x) if isinstance(x, Value) else float(x)
        return self.whole(x, _INTS[type_]) if isinstance(x, Value) else int(x)

    def declare(self, type_: str, name: str, x: Any) -> None:
        frame = self.frames[-1]
        frame.types[name] = type_
        if type_ == "table":
            frame.names[name] = x
        elif type_ == "double" and name in frame.assigned:
            frame.names[name] = self.cell(name, FLOAT64, self.double(0 if x is None else x))
        else:
            frame.names[name] = self.converted(type_, 0 if x is None else x)

    # --- statements
    def run(self, statements: Sequence[Node]) -> None:
        frame = self.frames[-1]
        for position, node in enumerate(statements):
            rest = statements[position + 1 :]
            match node[0]:
                case "if":
                    if self.choice(node, rest):
                        return
                case "for":
                    self.loop(node)
                case "return":
                    assert frame.result is not None
                    value = self.value(as_node(node[1]))
                    self.write(frame.result, self.double(value) if frame.result.dtype == FLOAT64 else
                               self.whole(value, frame.result.dtype))  # fmt: skip
                    if frame.done is not None:
                        self.write(frame.done, self.s.const(True, BOOL))
                    return
                case "break":
                    self.write(frame.broken[-1], self.s.const(True, BOOL))
                    return
                case "declare":
                    self.declare(str(node[1]), str(node[2]), None if node[3] is None else self.value(as_node(node[3])))
                case "table":
                    frame.names[str(node[1])] = node[2]
                case _:
                    self.value(as_node(node[1]))
            if rest and leaves(node):
                self.unless_left(rest)
                return

    def choice(self, node: Node, rest: Sequence[Node]) -> bool:
        """Whether `rest` has been run too."""
        then, otherwise = as_block(node[2]), as_block(node[3])
        name = self.frames[-1].function.name
        again = any(frame.function.name == name for frame in self.frames[:-1])
        condition = False if again and calls(then, name) else self.truth(self.value(as_node(node[1])))
        if not isinstance(condition, Value):
            self.run([*(then if condition else otherwise), *rest])
            return True
        if then and always_returns(then):
            self.choose(condition, then, [*otherwise, *rest])
            return True
        self.choose(condition, then, otherwise)
        return False

    def choose(self, condition: Value, then: Sequence[Node], otherwise: Sequence[Node]) -> None:
        def side(statements: Sequence[Node]) -> tuple[Value, ...]:
            names = dict(self.frames[-1].names)
            self.run(statements)
            self.frames[-1].names = names
            return ()

        choose(self.s, condition, lambda: side(then), lambda: side(otherwise))

    def unless_left(self, rest: Sequence[Node]) -> None:
        """`rest`, if nothing has returned or broken out of the loop."""
        frame = self.frames[-1]
        flags = [self.read(cell) for cell in (frame.done, *frame.broken[-1:]) if cell is not None]
        left = flags[0] if len(flags) == 1 else self.s.logical_or(*flags)
        self.choose(left, (), rest)

    def loop(self, node: Node) -> None:
        begin, condition, steps, body = as_block(node[1]), as_node(node[2]), as_block(node[3]), as_block(node[4])
        frame = self.frames[-1]
        self.run(begin)
        if all(self.is_known(name) for name in names(condition)):
            while self.value(condition):
                self.run(body)
                self.run(steps)
            return
        changed = {str(item[1]) for item in walk((*steps, *body)) if item[0] == "set"}
        for name in changed:
            value = frame.names.get(name)
            if isinstance(value, int | Value) and not isinstance(value, bool):
                dtype = _INTS.get(frame.types[name], FLOAT64)
                frame.names[name] = self.cell(name, dtype, self.whole(value, dtype))
        frame.broken.append(self.cell("broken", BOOL, self.s.const(False, BOOL)))
        exits = [frame.broken[-1], *([frame.done] if frame.done is not None else [])]

        def again() -> Value:
            going = self.truth(self.value(condition))
            assert isinstance(going, Value)
            for cell in exits:
                going = self.s.logical_and(going, self.s.logical_not(self.read(cell)))
            return going

        def turn(_: Any) -> None:
            names = dict(frame.names)
            self.run(body)
            self.run(steps)
            frame.names = names

        repeat_while(self.s, again, turn)
        frame.broken.pop()

    def is_known(self, name: str) -> bool:
        found = self.frames[-1].names.get(name)
        return found is not None and not isinstance(found, Value | Storage)

    # --- expressions
    def value(self, node: Node) -> Any:
        kind, *parts = node
        match kind:
            case "number":
                return parts[0]
            case "name":
                return self.variable(str(parts[0]))
            case "item":
                index = self.value(as_node(parts[1]))
                assert isinstance(index, int), "a table is read at places that are known"
                return self.value(as_node(self.variable(str(parts[0]))[index]))
            case "set":
                return self.assign(str(parts[0]), self.value(as_node(parts[1])))
            case "negate":
                x = self.value(as_node(parts[0]))
                return self.s.negate(x) if isinstance(x, Value) else -x
            case "not":
                x = self.truth(self.value(as_node(parts[0])))
                return self.s.logical_not(x) if isinstance(x, Value) else not x
            case "cast":
                return self.converted(str(parts[0]), self.value(as_node(parts[1])))
            case "?":
                return self.conditional(*map(as_node, parts))
            case "call":
                return self.named(str(parts[0]), [as_node(item) for item in as_block(parts[1])])
            case "&&" | "||":
                return self.logical(str(kind), as_node(parts[0]), as_node(parts[1]))
            case _:
                return self.binary(str(kind), self.value(as_node(parts[0])), self.value(as_node(parts[1])))

    def variable(self, name: str) -> Any:
        for frame in self.frames[-1:]:
            if name in frame.names:
                held = frame.names[name]
                return self.read(held) if isinstance(held, Storage) else held
        everything = source()
        if name in everything.constants:
            return self.value(everything.constants[name])
        if name in everything.tables:
            return everything.tables[name]
        return {"INFINITY": math.inf, "NAN": math.nan}[name]

    def assign(self, name: str, x: Number) -> Number:
        frame = self.frames[-1]
        held = frame.names[name]
        if not isinstance(held, Storage):
            assert not isinstance(x, Value), f"{name} is of data"
            frame.names[name] = self.converted(frame.types[name], x)
            return x
        value = self.double(x) if held.dtype == FLOAT64 else self.whole(x, held.dtype)
        self.write(held, value)
        return value

    def conditional(self, condition: Node, then: Node, otherwise: Node) -> Number:
        chosen = self.truth(self.value(condition))
        if not isinstance(chosen, Value):
            known: Number = self.value(then if chosen else otherwise)
            return known
        whole = self.is_whole(then) or self.is_whole(otherwise)

        def side(node: Node) -> tuple[Value, ...]:
            x = self.value(node)
            return (self.whole(x, INT64) if whole else self.double(x),)

        return choose(self.s, chosen, lambda: side(then), lambda: side(otherwise))[0]

    @staticmethod
    def is_whole(node: Node) -> bool:
        return node[0] == "cast" and node[1] == "int64_t"

    def logical(self, sign: str, left: Node, right: Node) -> Value | bool:
        a = self.truth(self.value(left))
        if not isinstance(a, Value):
            short = a if sign == "||" else not a
            return a if short else self.truth(self.value(right))
        b = self.truth(self.value(right))
        if not isinstance(b, Value):
            return self.s.select(a, self.s.const(True, BOOL), self.s.const(b, BOOL)) if sign == "||" else (
                a if b else self.s.const(False, BOOL)
            )  # fmt: skip
        return self.s.logical_or(a, b) if sign == "||" else self.s.logical_and(a, b)

    def binary(self, sign: str, a: Number, b: Number) -> Number:
        if not isinstance(a, Value) and not isinstance(b, Value):
            if sign in _STATIC:
                known: Number = _STATIC[sign](a, b)
                return known
            whole = isinstance(a, int) and isinstance(b, int)
            if sign == "/":
                return int(a / b) if whole else a / b
            return int(math.fmod(a, b))
        dtypes = [x.dtype for x in (a, b) if isinstance(x, Value)]
        if any(isinstance(x, float) for x in (a, b)) or FLOAT64 in dtypes:
            x, y = self.double(a), self.double(b)
        else:
            dtype = INT64 if INT64 in dtypes else INT32
            x, y = self.whole(a, dtype), self.whole(b, dtype)
        if sign in _COMPARISONS:
            return self.s.compare(_COMPARISONS[sign], x, y)
        arithmetic = {"+": self.s.add, "-": self.s.sub, "*": self.s.mul, "/": self.s.divide, "%": self.s.remainder}
        return arithmetic[sign](x, y)

    def named(self, name: str, arguments: Sequence[Node]) -> Any:
        if name == "COUNT":
            return len(self.variable(str(arguments[0][1])))
        if name == "RATIO":
            numerator, denominator, at = arguments
            horner = [
                ("call", "horner", (table, ("call", "COUNT", (table,)), at)) for table in (numerator, denominator)
            ]
            return self.value(("/", horner[0], horner[1]))
        if name in source().functions:
            function = source().functions[name]
            values = [
                self.variable(str(argument[1])) if type_ == "table" else self.value(argument)
                for (type_, _), argument in zip(function.parameters, arguments, strict=True)
            ]
            return self.function(function, values)
        x, *rest = (self.double(self.value(item)) for item in arguments)
        return _BUILT_IN[name](self.s, x, *rest)


_BUILT_IN: Mapping[str, Callable[..., Value]] = {
    "fabs": Arithmetic.magnitude,
    "floor": lambda s, x: s.glsl(Glsl.FLOOR, FLOAT64, x),
    "sqrt": lambda s, x: s.select(x < s.const(0.0, FLOAT64), s.const(math.nan, FLOAT64), s.glsl(Glsl.SQRT, FLOAT64, x)),
    "copysign": Arithmetic.copy_sign,
    "isnan": Arithmetic.is_nan,
    "isinf": Arithmetic.is_infinite,
    "exp": doubles.exp,
    "log": doubles.log,
}
