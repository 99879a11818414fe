"""Kernel objects + the plan in C + the C runtime -> one shared library, by the system's C compiler."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transpiler.artifacts import NUMPY
from transpiler.c_compiler import Compiler, c_compiler
from transpiler.c_plan import render_plan
from transpiler.elf import platform_facts
from transpiler.naming import checked_symbol
from transpiler.plan import KernelPlan
from transpiler.resources import tree
from transpiler.target import load_target

# The part of the runtime that is the same in every library, and the part that carries the package's name.
SHARED_FILES = ("runtime.c", "pool.c", "python.c")
# What picks one of the libraries, with a file of its own.
DISPATCHER_FILE = "dispatch.c"
# Compiled for the instruction set of the kernels.
RATES_FILE = "rates.c"
# Linked if a kernel calls one of their functions, which all have this prefix.
SPECIAL_FILES = ("special_bessel.c", "special_error.c", "special_gamma.c", "special_polynomials.c")
SPECIAL_PREFIX = b"tp_math_"
CEPHES = (b"tp_math_bessel_", b"tp_math_airy_")  # the functions whose approximations are not our own
RUNTIME_FILES = (
    "runtime.h", "exports.c", *SHARED_FILES, RATES_FILE,
    "special.h", "special_cephes.h", "special_tables.h", *SPECIAL_FILES,
)  # fmt: skip
# fmt: off
COMPILE = (
    "-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections",
)
LINK = (
    "-shared", "-Wl,--gc-sections", "-Wl,--no-undefined", "-Wl,-z,now", "-Wl,-z,nodelete",
    "-Wl,-z,noexecstack", "-Wl,--build-id=none", "-s", "-lm", "-lpthread",
)
# fmt: on
EXPORTS = "exports.map"
OUTPUT = (f"-Wl,--version-script={EXPORTS}", "-o", "out.so")


@dataclass(frozen=True)
class Linked:
    """A library for one ISA, and whose code it holds besides (`transpiler.sbom`)."""

    library: bytes
    third_party: tuple[str, ...] = ()


@dataclass(frozen=True)
class Binaries:
    """What is compiled of a package: a library per instruction set, best first, and the files for C programs by their
    paths in the package (`transpiler.c_abi`). `compiler` is what the compiler calls itself."""

    libraries: Mapping[str, Linked]
    c_files: Mapping[str, bytes]
    compiler: str = "unknown"

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.libraries)

    @property
    def third_party(self) -> tuple[str, ...]:
        return tuple(sorted({part for linked in self.libraries.values() for part in linked.third_party}))

    @property
    def requires(self) -> tuple[str, ...]:
        return (NUMPY,)

    def files(self, name: str) -> Mapping[str, bytes]:
        """The files of the package called `name`, by their paths in its folder."""
        libraries = {f"kernels/cpu/{isa}/{name}.so": linked.library for isa, linked in self.libraries.items()}
        return {**libraries, **self.c_files}

    def platform(self) -> Mapping[str, Any]:
        """What the ELF files need."""
        return platform_facts([content for path, content in self.files("any").items() if path.endswith(".so")])


@cache
def shared_objects(compiler: Compiler) -> tuple[bytes, ...]:
    """SHARED_FILES, compiled once per process; a build can start it while the kernels are being made.

    Raises:
        TranspileError: "link-failed".
    """
    return _compiled(compiler, SHARED_FILES)


@cache
def rates_object(compiler: Compiler, isa: str) -> tuple[bytes, ...]:
    """rates.c for an instruction set, whose multiply-adds it measures. Raises TranspileError "link-failed"."""
    chosen = load_target("cpu", isa).isa
    # -std=c11 would compute a multiply-add in two steps.
    vector = f"-DTP_VECTOR_BYTES={chosen.vector_bits // 8}"
    return _compiled(compiler, [RATES_FILE], (*compiler.options_for(chosen), vector, "-ffp-contract=fast"))


@cache
def special_objects(compiler: Compiler) -> tuple[bytes, ...]:
    """The special functions, compiled once per process. Raises TranspileError "link-failed"."""
    return _compiled(compiler, SPECIAL_FILES)


def _compiled(compiler: Compiler, files: Sequence[str], options: Sequence[str] = ()) -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory(prefix="transpile-runtime-") as folder:
        work = _work_folder(folder)
        for file in files:  # zig makes one object per command
            compiler.run([*COMPILE, *options, "-c", file], work)
        return tuple((work / file).with_suffix(".o").read_bytes() for file in files)


def link_library(
    objects: Sequence[bytes], plans: Sequence[KernelPlan], name: str, isa: str, compiler: Compiler | None = None
) -> Linked:
    """One shared library that exports the C ABI as `<name>_<isa>_*` and needs libc only.

    `compiler` is by default that of this machine.

    The same objects, plan and compiler give the same bytes. Symbols that the objects share (TVM's weak
    context pointers, float16 helpers) are merged.

    Raises:
        TranspileError: "no-c-compiler"; "link-failed" with what the compiler printed.
    """
    prefix = f"{checked_symbol(name)}_{checked_symbol(isa)}_"
    source = render_plan(plans, name, isa)
    compiler = compiler or c_compiler()
    with tempfile.TemporaryDirectory(prefix="transpile-link-") as folder:
        work = _work_folder(folder)
        (work / "plan.c").write_text(source, encoding="utf-8")
        (work / EXPORTS).write_text(f"{{ global: {prefix}*; local: *; }};\n", encoding="ascii")
        special = special_objects(compiler) if any(SPECIAL_PREFIX in item for item in objects) else ()
        linked = [*shared_objects(compiler), *rates_object(compiler, isa), *special, *objects]
        names = [f"object{index}.o" for index in range(len(linked))]
        for file, content in zip(names, linked, strict=True):
            (work / file).write_bytes(content)
        define = f"-DTRANSPILE_PREFIX={prefix}"
        compiler.run([*COMPILE, define, "plan.c", "exports.c", *names, *OUTPUT, *LINK], work)
        third_party = ("cephes",) if any(mark in item for item in objects for mark in CEPHES) else ()
        return Linked((work / "out.so").read_bytes(), third_party)


@cache
def link_dispatcher(name: str, declarations: str, carried: str, compiler: Compiler) -> bytes:
    """lib<name>.so, which exports `<name>_*` and loads the library of one instruction set.

    `declarations` and `carried` are the texts of <name>.h and carried.h.

    Raises:
        TranspileError: "link-failed" with what the compiler printed.
    """
    with tempfile.TemporaryDirectory(prefix="transpile-link-") as folder:
        work = Path(folder)
        shutil.copyfile(tree("templates") / "runtime" / "cpu" / DISPATCHER_FILE, work / DISPATCHER_FILE)
        (work / f"{name}.h").write_text(declarations, encoding="utf-8")
        (work / "carried.h").write_text(carried, encoding="utf-8")
        (work / EXPORTS).write_text(f"{{ global: {checked_symbol(name)}_*; local: *; }};\n", encoding="ascii")
        soname = f"-Wl,-soname,lib{name}.so"
        compiler.run([*COMPILE, DISPATCHER_FILE, *OUTPUT, soname, *LINK, "-ldl"], work)
        return (work / "out.so").read_bytes()


def _work_folder(folder: str) -> Path:
    for file in RUNTIME_FILES:
        shutil.copyfile(tree("templates") / "runtime" / "cpu" / file, Path(folder) / file)
    return Path(folder)
