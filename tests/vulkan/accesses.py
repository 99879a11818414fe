"""Kernels that report accesses outside of their buffers.

Drivers may check bounds themselves, as lavapipe does: a load from behind a buffer gives 0 there, and nothing says so.
Finished modules are rewritten: wherever an element's address is made, its index is compared with the length of what is
bound, and a word at a binding of its own becomes 1 if it is too large. Elements of 8 and 16 bits are bound in whole
words, so that up to three behind the end of a buffer are not found.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.conformance.launches import GUARD
from tests.vulkan.library import VulkanLibrary
from transpiler.gpu.launches import Launch
from transpiler.ir import Array
from transpiler.spirv.module import encode
from transpiler.spirv.opcodes import DEVICE_SCOPE, Decoration, Op, StorageClass
from transpiler.spirv.reflect import instructions

ARRAY_LENGTH = 68  # OpArrayLength, which modules of ours do not have
_TYPES = {op for op in Op if op.name.startswith("TYPE_")}


class CheckingLibrary(VulkanLibrary):
    """Kernels whose launches fail with an AssertionError where they reach outside of a buffer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._files = {file: with_checks(code) for file, code in self._files.items()}
        self._report = np.zeros(4, np.uint8)

    def bound(self, launch: Launch, memory: Sequence[Array]) -> tuple[list[Array], list[list[tuple[int, int]]]]:
        arrays, pieces = super().bound(launch, memory)
        assert all(len(parts) == 1 for parts in pieces), "of buffers in one piece only"
        whole = [[(0, max(-(-(array.nbytes - GUARD) // 4) * 4, 4))] for array in arrays]
        return [*arrays, self._report], [*whole, [(0, 4)]]

    def launch(self, name: str, launch: Launch, memory: Sequence[Array], symbols: Mapping[str, int]) -> None:
        self._report[:] = 0
        super().launch(name, launch, memory, symbols)
        assert not self._report.any(), f"{name}: {launch.entry} reaches outside of a buffer"


def with_checks(code: bytes) -> bytes:
    """The module with a report at the binding behind its last one."""
    module = _Rewritten(code)
    flag, word = module.type(Op.TYPE_BOOL), module.type(Op.TYPE_INT, 32, 0)
    zero, one = module.constant(word, 0), module.constant(word, 1)
    scope, pointer = (
        module.constant(word, DEVICE_SCOPE),
        module.type(Op.TYPE_POINTER, StorageClass.STORAGE_BUFFER, word),
    )
    report = module.report(word)
    body: list[int] = []
    for op, operands in module.functions:
        body += encode(op, *operands)
        if op is not Op.ACCESS_CHAIN or operands[2] not in module.buffers:
            continue
        _, _, buffer, _, index = operands
        assert index in module.words, "an index of other than 32 bits"
        length, inside, outside, place, old = (module.new_id() for _ in range(5))
        body += [5 << 16 | ARRAY_LENGTH, word, length, buffer, 0]
        body += encode(Op.U_LESS_THAN, flag, inside, index, length)
        body += encode(Op.SELECT, word, outside, inside, zero, one)
        body += encode(Op.ACCESS_CHAIN, pointer, place, report, zero)
        body += encode(Op.ATOMIC_OR, word, old, place, scope, zero, outside)
    return module.assemble(body)


class _Rewritten:
    """A module to which types, constants and a buffer are added. `functions` are the instructions of its functions,
    `buffers` the variables of its storage buffers, `words` the ids that are ints of 32 bits."""

    def __init__(self, code: bytes) -> None:
        self.header = list(struct.unpack("<5I", code[:20]))
        every = list(instructions(code))
        kinds = [op for op, _ in every]
        types, functions = next(n for n, op in enumerate(kinds) if op in _TYPES), kinds.index(Op.FUNCTION)
        self.head, self.globals, self.functions = every[:types], every[types:functions], every[functions:]
        self.added: list[int] = []
        self.decorations: list[int] = []
        self.known: dict[tuple[int, ...], int] = {}
        for op, operands in self.globals:
            at = 0 if op in _TYPES else 1
            self.known[(op, *operands[:at], *operands[at + 1 :])] = operands[at]
        self.buffers = {
            operands[1]
            for op, operands in self.globals
            if op is Op.VARIABLE and operands[2] == StorageClass.STORAGE_BUFFER
        }
        ints = {self.known.get((Op.TYPE_INT, 32, sign)) for sign in (0, 1)}
        self.words = {
            operands[1] for _, operands in (*self.globals, *self.functions) if len(operands) > 1 and operands[0] in ints
        }

    def new_id(self) -> int:
        self.header[3] += 1
        return self.header[3] - 1

    def type(self, op: Op, *operands: int) -> int:
        key = (op, *operands)
        if key not in self.known:
            self.known[key] = self.new_id()
            self.added += encode(op, self.known[key], *operands)
        return self.known[key]

    def constant(self, type_: int, value: int) -> int:
        key = (Op.CONSTANT, type_, value)
        if key not in self.known:
            self.known[key] = self.new_id()
            self.added += encode(Op.CONSTANT, type_, self.known[key], value)
        return self.known[key]

    def report(self, word: int) -> int:
        """A buffer of one word, at the next binding."""
        bindings = [words[2] for op, words in self.head if op is Op.DECORATE and words[1] == Decoration.BINDING]
        block, variable = self.new_id(), self.new_id()
        self.decorations += encode(Op.DECORATE, block, Decoration.BLOCK)
        self.decorations += encode(Op.MEMBER_DECORATE, block, 0, Decoration.OFFSET, 0)
        self.decorations += encode(Op.DECORATE, variable, Decoration.DESCRIPTOR_SET, 0)
        self.decorations += encode(Op.DECORATE, variable, Decoration.BINDING, max(bindings, default=-1) + 1)
        self.added += encode(Op.TYPE_STRUCT, block, word)
        pointer = self.type(Op.TYPE_POINTER, StorageClass.STORAGE_BUFFER, block)
        self.added += encode(Op.VARIABLE, pointer, variable, StorageClass.STORAGE_BUFFER)
        return variable

    def assemble(self, body: Sequence[int]) -> bytes:
        def written(part: Sequence[tuple[Op, tuple[int, ...]]]) -> list[int]:
            return [word for op, operands in part for word in encode(op, *operands)]

        words = [*self.header, *written(self.head), *self.decorations, *written(self.globals), *self.added, *body]
        return struct.pack(f"<{len(words)}I", *words)
