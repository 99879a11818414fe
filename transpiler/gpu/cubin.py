"""What a kernel takes of a GPU, read from its machine code.

A cubin is an ELF file: a kernel has its code in the section `.text.<name>`, static shared memory in
`.nv.shared.<name>`; `.nv.info` has every kernel's number of registers (EIATTR_REGCOUNT) and the size of its stack frame
(EIATTR_FRAME_SIZE), which is memory that registers were spilled to or that an indexed local array needs. The code
itself is instructions of 16 bytes: enough of them are known to tell whether a kernel has what its schedule promises.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
SYMBOLS = 2  # sh_type of a symbol table
# Attributes of .nv.info, and the format of those that have a size.
FRAME_SIZE, REGISTERS, SIZED = 0x11, 0x2F, 4
# An instruction of compute capability 7 and later is 16 bytes, its low 12 bits say what it does. NVIDIA does not
# publish them: these were found by compiling single instructions.
INSTRUCTION = struct.Struct("<QQ")
OPERATIONS = {
    0x9F0: "HGMMA",  # wgmma
    0xDF0: "HGMMA",  # and with its left operand in registers
    0x9C5: "WARPGROUP",  # wgmma.fence and wgmma.wait_group
    0x23C: "HMMA",  # mma.sync of half floats and TF32
    0x83B: "LDSM",  # ldmatrix
    0xFAE: "LDGSTS",  # cp.async
    0x223: "FFMA",
    0x981: "LDG",
    0x986: "STG",
    0x984: "LDS",
    0x388: "STS",
    0x5B4: "UTMALDG",  # cp.async.bulk.tensor of a box
    0x3B4: "UTMALDG",  # and of pixels
    0x9A7: "SYNCS",  # mbarrier.arrive
    0x5A7: "SYNCS",  # mbarrier.try_wait
    0x9C8: "USETMAXREG",  # setmaxnreg
    0x308: "MUFU",  # powers and reciprocals
    0xB1D: "BAR",
    0x9C7: "UCGABAR",  # barrier.cluster.arrive
    0xDC7: "UCGABAR",  # barrier.cluster.wait
    0x992: "MEMBAR",
    0xF89: "SHFL",  # by a constant
    0x589: "SHFL",  # from the lane in a register
}
MULTICAST = 0x800  # in the upper half of a UTMALDG: its box goes to several blocks


@dataclass(frozen=True)
class Usage:
    """Registers of a thread, bytes of its stack frame (local memory), bytes of static shared memory of a block."""

    registers: int
    stack: int
    shared: int


@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    link: int
    size: int
    data: bytes


def usage(cubin: bytes) -> dict[str, Usage]:
    """By kernel. Raises ValueError for what is no cubin."""
    try:
        sections = list(_sections(cubin))
        facts = {(name, attribute): value for name, attribute, value in _facts(sections)}
    except struct.error as error:
        raise ValueError(f"not a cubin: {error}") from error
    shared = {item.name.removeprefix(".nv.shared."): item.size for item in sections if ".nv.shared." in item.name}
    found = {}
    for section in sections:
        if section.name.startswith(".text."):
            name = section.name.removeprefix(".text.")
            registers, stack = facts[name, REGISTERS], facts.get((name, FRAME_SIZE), 0)
            found[name] = Usage(registers, stack, shared.get(name, 0))
    return found


def operations(cubin: bytes) -> dict[str, Counter[str]]:
    """How many instructions of each kind of `OPERATIONS` a kernel has, "UTMALDG.MULTICAST" besides, and in all ("all").
    Raises ValueError."""
    found = {}
    for section in _sections(cubin):
        if section.name.startswith(".text."):
            words = [(low & 0xFFF, high) for low, high in INSTRUCTION.iter_unpack(section.data)]
            counted = Counter(OPERATIONS[word] for word, _ in words if word in OPERATIONS)
            several = sum(OPERATIONS.get(word) == "UTMALDG" and bool(high & MULTICAST) for word, high in words)
            counted += Counter({"UTMALDG.MULTICAST": several, "all": len(words)})
            found[section.name.removeprefix(".text.")] = counted
    return found


def sequences(cubin: bytes) -> dict[str, list[str]]:
    """The instructions of `OPERATIONS` in the order in which a kernel's code has them. Raises ValueError."""
    return {
        section.name.removeprefix(".text."): [
            OPERATIONS[low & 0xFFF] for low, _ in INSTRUCTION.iter_unpack(section.data) if low & 0xFFF in OPERATIONS
        ]
        for section in _sections(cubin)
        if section.name.startswith(".text.")
    }


def _sections(cubin: bytes) -> Iterator[_Section]:
    if cubin[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a cubin: no 64-bit ELF file")
    (start,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    heads = [_SECTION.unpack_from(cubin, start + index * size) for index in range(count)]
    texts = cubin[heads[names][4] :]
    for name, kind, _, _, offset, length, link, _, _, _ in heads:
        yield _Section(_text(texts, name), kind, link, length, cubin[offset : offset + length])


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()


def _facts(sections: list[_Section]) -> Iterator[tuple[str, int, int]]:
    """(kernel, attribute, value)"""
    names = _symbols(sections)
    for section in sections:
        if section.name != ".nv.info":
            continue
        position = 0
        while position < len(section.data):
            form, attribute, value = struct.unpack_from("<BBH", section.data, position)
            position += 4
            if form == SIZED:
                if attribute in (FRAME_SIZE, REGISTERS):
                    symbol, number = struct.unpack_from("<II", section.data, position)
                    yield names[symbol], attribute, number
                position += value


def _symbols(sections: list[_Section]) -> Mapping[int, str]:
    found = {}
    for section in sections:
        if section.kind == SYMBOLS:
            texts = sections[section.link].data
            for index in range(len(section.data) // _SYMBOL.size):
                found[index] = _text(texts, _SYMBOL.unpack_from(section.data, index * _SYMBOL.size)[0])
    return found
