"""A SPIR-V module being written: sections, ids, types, constants, blocks.

Ids are given in the order of first use and nothing is iterated in hash order, so the same calls give the same words.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from .dtypes import BOOL, EXTENSIONS, FLOAT16, FLOAT32, Capability, DType
from .opcodes import Decoration, Glsl, Op, StorageClass
from .turns import Turns

MAGIC, VERSION_1_3 = 0x07230203, 0x00010300


def text_words(text: str) -> list[int]:
    """A literal string: UTF-8, ended by a zero, padded to words."""
    data = text.encode() + b"\0"
    data += b"\0" * (-len(data) % 4)
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def encode(op: Op, *words: int) -> list[int]:
    return [(len(words) + 1) << 16 | op, *(word & 0xFFFFFFFF for word in words)]


class Module:
    """Sections are lists of words, joined by `assemble` in the order that SPIR-V wants.

    Pure instructions are value-numbered: the same operation on the same operands is written once per scope of
    blocks that its first place dominates.

    `wide_halves`: float16 is held as the float32 of the same value, and needs no feature.
    """

    def __init__(self, *, wide_halves: bool = False) -> None:
        self.wide_halves = wide_halves
        self._last_id = 0
        self.capabilities: set[Capability] = {Capability.SHADER}
        self.modes: list[int] = []
        self.names: list[int] = []
        self.decorations: list[int] = []
        self.globals: list[int] = []  # types, constants, variables
        self.variables: list[int] = []  # of the function
        self.body: list[int] = []
        self.helpers: list[int] = []  # functions that the function calls
        self.interface: list[int] = []
        self._unique: dict[tuple[int, ...], int] = {}
        self._scopes: list[dict[tuple[int, ...], int]] = [{}]
        self._products: dict[int, tuple[int, int]] = {}
        self.float_bits: set[int] = set()
        self.block = 0
        self.open = True  # whether the current block still lacks its terminator
        self.glsl = self.new_id()
        self.turns = Turns()

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def need(self, capability: Capability) -> None:
        self.capabilities.add(capability)

    def name(self, id_: int, text: str) -> None:
        self.names += encode(Op.NAME, id_, *text_words(text))

    def decorate(self, id_: int, decoration: Decoration, *words: int) -> None:
        self.decorations += encode(Op.DECORATE, id_, decoration, *words)

    # --- types and constants
    def type(self, op: Op, *words: int) -> int:
        """The one id of a type."""
        return self._shared((op, *words), lambda id_: encode(op, id_, *words))

    def _shared(self, key: tuple[int, ...], write: Callable[[int], list[int]]) -> int:
        if key not in self._unique:
            id_ = self._unique[key] = self.new_id()
            self.globals += write(id_)
        return self._unique[key]

    def scalar_type(self, dtype: DType) -> int:
        """The type of a value in memory or in a register. What it needs is declared by its users."""
        if dtype == FLOAT16 and self.wide_halves:
            dtype = FLOAT32
        match dtype.kind:
            case "bool":
                return self.type(Op.TYPE_BOOL)
            case "float":
                self.float_bits.add(dtype.bits)
                if dtype.bits == 64:
                    self.need(Capability.FLOAT64)
                return self.type(Op.TYPE_FLOAT, dtype.bits)
            case _:
                if dtype.bits == 64:
                    self.need(Capability.INT64)
                return self.type(Op.TYPE_INT, dtype.bits, int(dtype.kind == "int"))

    def pointer(self, storage: StorageClass, type_: int) -> int:
        return self.type(Op.TYPE_POINTER, storage, type_)

    def struct(self, *members: int) -> int:
        """A new struct type, as each has its own decorations."""
        id_ = self.new_id()
        self.globals += encode(Op.TYPE_STRUCT, id_, *members)
        self.decorate(id_, Decoration.BLOCK)
        return id_

    def member_offset(self, struct_: int, member: int, offset: int) -> None:
        self.decorations += encode(Op.MEMBER_DECORATE, struct_, member, Decoration.OFFSET, offset)

    def runtime_array(self, element: int, stride: int) -> int:
        fresh = (Op.TYPE_RUNTIME_ARRAY, element) not in self._unique
        array = self.type(Op.TYPE_RUNTIME_ARRAY, element)
        if fresh:
            self.decorate(array, Decoration.ARRAY_STRIDE, stride)
        return array

    def variable(self, pointer: int, storage: StorageClass) -> int:
        id_ = self.new_id()
        section = self.variables if storage == StorageClass.FUNCTION else self.globals
        section += encode(Op.VARIABLE, pointer, id_, storage)
        return id_

    def constant(self, value: float | int | bool, dtype: DType) -> int:
        """A literal of a register dtype. Ints are taken modulo their width."""
        type_ = self.scalar_type(dtype)
        if dtype == BOOL:
            op = Op.CONSTANT_TRUE if value else Op.CONSTANT_FALSE
            return self._shared((op, type_), lambda id_: encode(op, type_, id_))
        if dtype == FLOAT16 and self.wide_halves:
            with np.errstate(over="ignore"):
                return self.constant(float(np.float16(value)), FLOAT32)
        if dtype.is_float:
            with np.errstate(over="ignore"):
                raw = int.from_bytes(np.array(value, f"<f{dtype.nbytes}").tobytes(), "little")
        else:
            raw = int(value) & ((1 << dtype.bits) - 1)
        words = [raw & 0xFFFFFFFF, raw >> 32] if dtype.bits == 64 else [raw]
        return self._shared((Op.CONSTANT, type_, *words), lambda id_: encode(Op.CONSTANT, type_, id_, *words))

    def flag(self, number: int, name: str) -> int:
        """A bool that is false unless the pipeline says otherwise: specialization constant `number`."""
        type_ = self.type(Op.TYPE_BOOL)

        def write(id_: int) -> list[int]:
            self.name(id_, name)
            self.decorate(id_, Decoration.SPEC_ID, number)
            return encode(Op.SPEC_CONSTANT_FALSE, type_, id_)

        return self._shared((Op.SPEC_CONSTANT_FALSE, number), write)

    # --- instructions
    def emit(self, op: Op, *words: int) -> None:
        assert self.open, f"{op.name} behind the end of a block"
        self.body += encode(op, *words)

    def result(self, op: Op, type_: int, *words: int) -> int:
        """An instruction whose value depends on when it runs."""
        id_ = self.new_id()
        self.emit(op, type_, id_, *words)
        return id_

    def pure(self, op: Op, type_: int, *words: int, exact: bool = False) -> int:
        """An instruction whose value depends on its operands alone; `exact` floats must not be contracted."""
        key = (op, type_, *words)
        for scope in reversed(self._scopes):
            if key in scope:
                return scope[key]
        id_ = self.result(op, type_, *words)
        if exact:
            self.decorate(id_, Decoration.NO_CONTRACTION)
        if op == Op.F_MUL:
            self._products[id_] = (words[0], words[1])
        self._scopes[-1][key] = id_
        return id_

    def extended(self, instruction: Glsl, type_: int, *words: int) -> int:
        return self.pure(Op.EXT_INST, type_, self.glsl, instruction, *words)

    def product(self, id_: int) -> tuple[int, int] | None:
        """The factors, if `id_` is a product of floats."""
        return self._products.get(id_)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Values that are made inside are not seen behind it: its blocks do not dominate what follows."""
        self._scopes.append({})
        yield
        self._scopes.pop()

    # --- blocks
    def begin(self, label: int) -> None:
        self.open = True
        self.emit(Op.LABEL, label)
        self.block = label

    def branch(self, label: int) -> None:
        """Ends the block, unless it has ended."""
        if self.open:
            self.emit(Op.BRANCH, label)
            self.open = False

    def branch_if(self, condition: int, then: int, otherwise: int) -> None:
        self.emit(Op.BRANCH_CONDITIONAL, condition, then, otherwise)
        self.open = False

    def leave(self) -> None:
        self.emit(Op.RETURN)
        self.open = False

    # --- functions
    @contextmanager
    def helper(self, name: str, result: int, *parameters: int) -> Iterator[tuple[int, list[int]]]:
        """A function beside the main one, of these types: its id and those of its parameters. What is written inside
        is its body, whose last block must end."""
        outside = self.body, self._scopes, self.block, self.open
        signature = self.type(Op.TYPE_FUNCTION, result, *parameters)
        id_, arguments = self.new_id(), [self.new_id() for _ in parameters]
        self.name(id_, name)
        self.body, self._scopes = [], [{}]
        self.begin(self.new_id())
        yield id_, arguments
        assert not self.open, f"{name} does not end"
        self.helpers += encode(Op.FUNCTION, result, id_, 0, signature)
        for type_, argument in zip(parameters, arguments, strict=True):
            self.helpers += encode(Op.FUNCTION_PARAMETER, type_, argument)
        self.helpers += [*self.body, *encode(Op.FUNCTION_END)]
        self.body, self._scopes, self.block, self.open = outside

    def leave_with(self, id_: int) -> None:
        self.emit(Op.RETURN_VALUE, id_)
        self.open = False

    # --- the end
    def assemble(self, entry: list[int], function: list[int]) -> bytes:
        """The module's bytes; `entry` holds the entry point, `function` everything of the function."""
        head: list[int] = []
        for capability in sorted(self.capabilities):
            head += encode(Op.CAPABILITY, capability)
        for extension in sorted({EXTENSIONS[item] for item in self.capabilities if item in EXTENSIONS}):
            head += encode(Op.EXTENSION, *text_words(extension))
        head += encode(Op.EXT_INST_IMPORT, self.glsl, *text_words("GLSL.std.450"))
        logical_addressing, glsl450 = 0, 1
        head += encode(Op.MEMORY_MODEL, logical_addressing, glsl450)
        words = [*head, *entry, *self.modes, *self.names, *self.decorations, *self.globals, *function, *self.helpers]
        return struct.pack(f"<5I{len(words)}I", MAGIC, VERSION_1_3, 0, self._last_id + 1, 0, *words)
