"""What a shared library asks of the system that loads it, read from its ELF file, and the wheel tag that says so.

Layouts: System V ABI (gABI) chapters 4 and 5; symbol versions: Drepper, "ELF Symbol Versioning"; tags: PEP 600.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MACHINES = {62: "x86_64", 183: "aarch64"}
PT_LOAD, PT_DYNAMIC = 1, 2
DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_RPATH, DT_RUNPATH = 1, 5, 10, 15, 29
DT_VERNEED, DT_VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF
# What every manylinux system has; a library that needs another one gets no manylinux tag.
SYSTEM = frozenset({"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"})
LOADER = "ld-linux-"
GLIBC = "GLIBC_"
# The oldest tag in use: no Python or numpy that a package runs with is built for an older glibc.
OLDEST = (2, 17)
MAX_LIBRARIES = 1000


class ElfError(ValueError):
    """Not a 64-bit little-endian shared library, or a damaged one."""


@dataclass(frozen=True)
class Needs:
    """The processor, the libraries to be loaded first, and library -> the symbol versions that it must have."""

    machine: str
    libraries: tuple[str, ...]
    versions: Mapping[str, tuple[str, ...]]
    search_path: bool = False

    @property
    def glibc(self) -> tuple[int, int] | None:
        """The oldest glibc that has every symbol; None if another C library or none is needed."""
        names = [version for versions in self.versions.values() for version in versions]
        numbers = [_number(name) for name in names if name.startswith(GLIBC)]
        if not numbers or any(number is None for number in numbers):
            return None
        return max(number for number in numbers if number is not None)


def read_needs(library: bytes) -> Needs:
    """What `library` needs.

    Raises:
        ElfError: it is not a 64-bit little-endian ELF shared library for a known processor.
    """
    try:
        return _read(library)
    except ElfError:
        raise
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise ElfError(f"damaged ELF file: {error}") from error


def platform_tag(libraries: Sequence[Needs]) -> str:
    """The wheel tag of all `libraries` together: `manylinux_<major>_<minor>_<machine>` of the newest glibc that one of
    them needs, or `linux_<machine>` if one needs what manylinux systems need not have.

    Raises:
        ElfError: there are none, or they are for different processors.
    """
    machines = sorted({item.machine for item in libraries})
    if len(machines) != 1:
        raise ElfError(f"expected libraries for one processor, got {', '.join(machines) or 'none'}")
    glibc = newest_glibc(libraries)
    if glibc is None:
        return f"linux_{machines[0]}"
    major, minor = max(glibc, OLDEST)
    return f"manylinux_{major}_{minor}_{machines[0]}"


def newest_glibc(libraries: Sequence[Needs]) -> tuple[int, int] | None:
    """The glibc that all `libraries` run with; None if that alone is not enough."""
    found = []
    for item in libraries:
        foreign = [name for name in item.libraries if name not in SYSTEM and not name.startswith(LOADER)]
        if foreign or item.search_path or item.glibc is None:
            return None
        found.append(item.glibc)
    return max(found, default=None)


def platform_facts(libraries: Sequence[bytes]) -> dict[str, Any]:
    """What the manifest says of the systems that `libraries` run on: "tag", "machine", "glibc", "libraries".

    Raises:
        ElfError: as `read_needs` and `platform_tag`.
    """
    needs = [read_needs(library) for library in libraries]
    glibc = newest_glibc(needs)
    return {
        "tag": platform_tag(needs),
        "machine": needs[0].machine,
        "glibc": None if glibc is None else "{}.{}".format(*glibc),
        "libraries": sorted({name for item in needs for name in item.libraries}),
    }


def _number(version: str) -> tuple[int, int] | None:
    """(2, 34) of GLIBC_2.34; None for GLIBC_PRIVATE, which no other build of glibc need have."""
    parts = version.removeprefix(GLIBC).split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts):
        return None
    return int(parts[0]), int(parts[1])


def _read(data: bytes) -> Needs:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ElfError("not a 64-bit little-endian ELF file")
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind != 3:
        raise ElfError("an ELF file, but no shared library")
    if machine not in MACHINES:
        raise ElfError(f"ELF machine {machine} is not known; known: {', '.join(MACHINES.values())}")
    segments = _segments(data)
    dynamic = _dynamic(data, segments)
    single = dict(dynamic)
    strings = _file_offset(segments, single.get(DT_STRTAB, 0))
    end = strings + single.get(DT_STRSZ, 0)

    def text(offset: int) -> str:
        return data[strings + offset : data.index(b"\0", strings + offset, end)].decode("ascii")

    needed = tuple(text(value) for tag, value in dynamic if tag == DT_NEEDED)
    versions = {}
    if DT_VERNEED in single:
        versions = _versions(data, _file_offset(segments, single[DT_VERNEED]), single[DT_VERNEEDNUM], text)
    return Needs(MACHINES[machine], needed, versions, DT_RPATH in single or DT_RUNPATH in single)


def _segments(data: bytes) -> list[tuple[int, int, int, int]]:
    """(type, offset in the file, address, bytes in the file) of every segment."""
    start, size, count = (
        *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54),
    )  # fmt: skip
    rows = []
    for index in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, start + index * size)
        rows.append((kind, offset, address, length))
    return rows


def _dynamic(data: bytes, segments: Sequence[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
    """The entries of the dynamic section up to the one that ends it."""
    entries: list[tuple[int, int]] = []
    for kind, offset, _, length in segments:
        if kind == PT_DYNAMIC:
            for at in range(offset, offset + length, 16):
                tag, value = struct.unpack_from("<QQ", data, at)
                if tag == 0:
                    return entries
                entries.append((tag, value))
    if not entries:
        raise ElfError("an ELF file without a dynamic section")
    return entries


def _file_offset(segments: Sequence[tuple[int, int, int, int]], address: int) -> int:
    for kind, offset, start, length in segments:
        if kind == PT_LOAD and start <= address < start + length:
            return address - start + offset
    raise ElfError(f"damaged ELF file: no segment holds address {address:#x}")


def _versions(data: bytes, at: int, count: int, text: Callable[[int], str]) -> dict[str, tuple[str, ...]]:
    """The table of needed versions: a record per library, each with a list of its own, linked by offsets."""
    found: dict[str, tuple[str, ...]] = {}
    if count > MAX_LIBRARIES:
        raise ElfError(f"damaged ELF file: versions of {count} libraries")
    for _ in range(count):
        _, entries, file, first, following = struct.unpack_from("<HHIII", data, at)
        names, place = [], at + first
        for _ in range(entries):
            _, _, _, name, step = struct.unpack_from("<IHHII", data, place)
            names.append(text(name))
            place += step
        found[text(file)] = (*found.get(text(file), ()), *names)
        at += following
    return found
