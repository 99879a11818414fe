"""Sizes that vary from call to call: read off the arguments, checked, and put into expressions."""

from __future__ import annotations

import ast
import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
Sizes = Mapping[str, int]  # symbol -> its value in one call
Size = Callable[[Sizes], int]

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[[int, int], int]] = {"min": min, "max": max}


def parse_size(text: str) -> Size:
    """A size such as `2*seq + 1` as a function of the symbols; the text is never run as Python.

    Raises:
        ValueError: anything but ints, symbols, + - * // %, min(a, b) and max(a, b).
    """
    return _size(ast.parse(text, mode="eval").body)


def _size(node: ast.expr) -> Size:
    match node:
        case ast.Constant(value=int() as value):
            return lambda sizes: value
        case ast.Name(id=name):
            return lambda sizes: sizes[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _size(operand)
            return lambda sizes: -inner(sizes)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _applied(_OPERATORS[type(op)], _size(left), _size(right))
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=[left, right], keywords=[]):
            return _applied(_FUNCTIONS[name], _size(left), _size(right))
    raise ValueError(f"not a size: {ast.unparse(node)}")


def _applied(function: Callable[[int, int], int], left: Size, right: Size) -> Size:
    return lambda sizes: function(left(sizes), right(sizes))


class Shape:
    """A shape some of whose dimensions are expressions over symbols."""

    def __init__(self, dims: Sequence[int | str]) -> None:
        self.dims = tuple(dims)
        self.varying = [(axis, parse_size(dim)) for axis, dim in enumerate(dims) if isinstance(dim, str)]

    def __str__(self) -> str:
        inside = ", ".join(map(str, self.dims))
        return f"({inside},)" if len(self.dims) == 1 else f"({inside})"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether rank and fixed dimensions are those of `shape`."""
        return len(shape) == len(self.dims) and all(
            isinstance(dim, str) or dim == size for dim, size in zip(self.dims, shape, strict=True)
        )

    def at(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape in one call."""
        shape: list[Any] = list(self.dims)
        for axis, size in self.varying:
            shape[axis] = size(sizes)
        return tuple(shape)


@dataclass(frozen=True)
class Symbol:
    """A size that varies: dimension `dim` of flat input `input` is `scale * value + offset`.

    `index` is its number in the native library.
    """

    name: str
    index: int
    low: int
    high: int | None
    input: int
    dim: int
    scale: int
    offset: int
    example: int


class Symbols:
    """All symbols of a model; `bind` gives their values in a call."""

    def __init__(self, entries: Sequence[Mapping[str, Any]], inputs: Sequence[tuple[str, Shape]]) -> None:
        self.all = tuple(Symbol(**entry) for entry in entries)
        self._inputs = inputs
        names = {symbol.index: symbol.name for symbol in self.all}
        self._names = [names.get(index, "") for index in range(max(names, default=-1) + 1)]
        self._format = struct.Struct(f"{len(self._names)}q")
        known = {(symbol.input, symbol.dim) for symbol in self.all}
        self._checked = [
            (index, axis, size)
            for index, (_, shape) in enumerate(inputs)
            for axis, size in shape.varying
            if (index, axis) not in known
        ]

    def bind(self, arrays: Sequence[Array]) -> dict[str, int]:
        """The value of every symbol.

        Raises:
            ValueError: names the argument, the dimension, what it is and what is allowed.
        """
        sizes: dict[str, int] = {}
        for symbol in self.all:
            size = arrays[symbol.input].shape[symbol.dim]
            value, rest = divmod(size - symbol.offset, symbol.scale)
            if rest or value < symbol.low or (symbol.high is not None and value > symbol.high):
                where = self._where(symbol.input, symbol.dim)
                raise ValueError(f"{where} is {size}, allowed {allowed(symbol)}")
            sizes[symbol.name] = value
        for index, axis, expected in self._checked:
            size, wanted = arrays[index].shape[axis], expected(sizes)
            if size != wanted:
                where, because = self._where(index, axis), self._because(index, axis, sizes)
                raise ValueError(f"{where} is {size}, expected {wanted}{because}")
        return sizes

    def packed(self, sizes: Sizes) -> bytes:
        """The values as the native library takes them: 0 for the symbols of other functions."""
        return self._format.pack(*[sizes[name] if name else 0 for name in self._names])

    def examples(self) -> dict[str, int]:
        """The values that the model was captured with."""
        return {symbol.name: symbol.example for symbol in self.all}

    def _where(self, index: int, axis: int) -> str:
        name, shape = self._inputs[index]
        return f"{name}: dimension {axis} ({shape.dims[axis]})"

    def _because(self, index: int, axis: int, sizes: Sizes) -> str:
        """Which argument gave the symbols of a dimension their values."""
        text = str(self._inputs[index][1].dims[axis])
        used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        given = [
            f"{symbol.name} is {sizes[symbol.name]} in {self._inputs[symbol.input][0]}"
            for symbol in self.all
            if symbol.name in used
        ]
        return f": {', '.join(given)}" if given else ""


def allowed(symbol: Symbol) -> str:
    """The sizes that a symbol's dimension may have."""
    low = symbol.scale * symbol.low + symbol.offset
    text = f"{low} or more" if symbol.high is None else f"{low}..{symbol.scale * symbol.high + symbol.offset}"
    if symbol.scale == 1:
        return text
    plus = f" plus {symbol.offset}" if symbol.offset else ""
    return f"{text} in multiples of {symbol.scale}{plus}"
