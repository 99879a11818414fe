"""Reading a module back: what it declares and what it does, for tests and for looking at kernels."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .dtypes import Capability
from .module import MAGIC
from .opcodes import Decoration, ExecutionMode, Op


@dataclass(frozen=True)
class Reflection:
    """`entry` is the entry point's name, `names` are the debug names in order, `operations` how often an op occurs."""

    entry: str
    capabilities: frozenset[Capability]
    workgroup: tuple[int, ...]
    bindings: tuple[int, ...]
    names: tuple[str, ...]
    operations: Counter[Op]


def instructions(code: bytes) -> Iterator[tuple[Op, tuple[int, ...]]]:
    """The instructions of a module with their operands.

    Raises:
        ValueError: not SPIR-V, or an instruction that modules of ours do not have.
    """
    words = struct.unpack(f"<{len(code) // 4}I", code)
    if len(words) < 5 or words[0] != MAGIC:
        raise ValueError("not a SPIR-V module")
    position = 5
    while position < len(words):
        length = words[position] >> 16
        yield Op(words[position] & 0xFFFF), words[position + 1 : position + length]
        position += length


def text(words: tuple[int, ...]) -> str:
    """The literal string that `words` begin with."""
    return struct.pack(f"<{len(words)}I", *words).split(b"\0")[0].decode()


def reflect(code: bytes) -> Reflection:
    entry, workgroup = "", ()
    capabilities: set[Capability] = set()
    bindings: list[int] = []
    names: list[str] = []
    operations: Counter[Op] = Counter()
    local_size: tuple[int, ...] = workgroup
    for op, operands in instructions(code):
        operations[op] += 1
        match op:
            case Op.CAPABILITY:
                capabilities.add(Capability(operands[0]))
            case Op.ENTRY_POINT:
                entry = text(operands[2:])
            case Op.EXECUTION_MODE if operands[1] == ExecutionMode.LOCAL_SIZE:
                local_size = operands[2:]
            case Op.NAME:
                names.append(text(operands[1:]))
            case Op.DECORATE if operands[1] == Decoration.BINDING:
                bindings.append(operands[2])
    return Reflection(entry, frozenset(capabilities), local_size, tuple(sorted(bindings)), tuple(names), operations)
