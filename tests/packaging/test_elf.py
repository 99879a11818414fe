"""What a library needs, and the wheel tag that follows from it."""

from contextlib import suppress

import pytest

from tests.unit import toy
from transpiler.elf import ElfError, Needs, platform_facts, platform_tag, read_needs


def needs(*versions: str, libraries: tuple[str, ...] = ("libc.so.6",), machine: str = "x86_64") -> Needs:
    return Needs(machine, libraries, {"libc.so.6": versions})


@pytest.mark.parametrize(
    ("item", "tag"),
    [
        (needs("GLIBC_2.2.5"), "manylinux_2_17_x86_64"),
        (needs("GLIBC_2.2.5", "GLIBC_2.34", "GLIBC_2.4"), "manylinux_2_34_x86_64"),
        (needs("GLIBC_2.17", machine="aarch64"), "manylinux_2_17_aarch64"),
        (needs("GLIBC_2.28", libraries=("libm.so.6", "ld-linux-x86-64.so.2")), "manylinux_2_28_x86_64"),
        (needs("GLIBC_2.17", libraries=("libc.so.6", "libgomp.so.1")), "linux_x86_64"),
        (needs("GLIBC_2.17", "GLIBC_PRIVATE"), "linux_x86_64"),
        (Needs("x86_64", ("libc.musl-x86_64.so.1",), {}), "linux_x86_64"),
        (Needs("x86_64", ("libc.so.6",), {"libc.so.6": ("GLIBC_2.17",)}, search_path=True), "linux_x86_64"),
    ],
)
def test_tags(item: Needs, tag: str) -> None:
    assert platform_tag([item]) == tag


def test_the_tag_holds_for_all_libraries() -> None:
    old, new = needs("GLIBC_2.17"), needs("GLIBC_2.31")
    assert platform_tag([old, new]) == "manylinux_2_31_x86_64"
    assert platform_tag([new, needs("GLIBC_2.17", libraries=("libfoo.so",))]) == "linux_x86_64"
    for items in ([], [old, needs("GLIBC_2.17", machine="aarch64")]):
        with pytest.raises(ElfError, match="for one processor"):
            platform_tag(items)


def test_a_linked_library() -> None:
    item = read_needs(toy.linked().library)
    assert "libc.so.6" in item.libraries
    assert item.glibc is not None
    assert item.glibc >= (2, 14), "memcpy of x86-64 is that old"
    facts = platform_facts([toy.linked().library])
    assert facts["machine"] == "x86_64"
    assert facts["tag"] == f"manylinux_{facts['glibc'].replace('.', '_')}_x86_64"


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh\n" * 20, b"\x7fELF\x01\x01" + bytes(100)])
def test_what_is_no_library(data: bytes) -> None:
    with pytest.raises(ElfError):
        read_needs(data)


def test_truncated_and_changed_libraries_raise_nothing_else() -> None:
    library = toy.linked().library
    for cut in range(0, len(library), 997):  # behind the dynamic section nothing is read
        with suppress(ElfError):
            assert read_needs(library[:cut]) == read_needs(library)
    changed = bytearray(library)
    for at in range(16, 0x240):  # the header and the table of segments
        changed[at] ^= 0xFF
        with suppress(ElfError):
            read_needs(bytes(changed))
        changed[at] ^= 0xFF
    assert read_needs(bytes(changed)) == read_needs(library)
