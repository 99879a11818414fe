"""Kernel objects + the plan in C + the C runtime -> one shared library, by the system's C compiler."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transpiler.c_plan import render_plan
from transpiler.errors import TranspileError
from transpiler.naming import checked_symbol, comment
from transpiler.plan import KernelPlan
from transpiler.resources import tree
from transpiler.target import load_target

# The part of the runtime that is the same in every library, and the part that carries the package's name.
SHARED_FILES = ("runtime.c", "pool.c")
# Compiled for the instruction set of the kernels.
RATES_FILE = "rates.c"
# Linked if a kernel calls one of their functions, which all have this prefix.
SPECIAL_FILES = ("special_bessel.c", "special_error.c", "special_gamma.c", "special_polynomials.c")
SPECIAL_PREFIX = b"tp_math_"
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
@dataclass(frozen=True)
class Linked:
    """A library for one ISA and the C text of its plan."""

    library: bytes
    plan_source: str


def c_compiler() -> tuple[str, ...]:
    """The command of the C compiler: $CC (with its arguments), else the first of cc, gcc and clang.

    Raises:
        TranspileError: "no-c-compiler".
    """
    chosen = shlex.split(os.environ.get("CC", ""))
    for command in [chosen] if chosen else [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(command[0])
        if path:
            return (path, *command[1:])
    tried = f"CC={os.environ['CC']} was not found" if chosen else "none of cc, gcc and clang was found"
    raise TranspileError(
        "no-c-compiler",
        f"A C compiler is needed to link the kernels; {tried}.",
        hints=("Install one (`apt-get install gcc`), or name yours: `CC=/path/to/cc transpile ...`.",),
    )


@cache
def shared_objects(compiler: tuple[str, ...]) -> tuple[bytes, ...]:
    """runtime.c and pool.c, compiled once per process; a build can start it while the kernels are being made.

    Raises:
        TranspileError: "link-failed".
    """
    return _compiled(compiler, SHARED_FILES)


@cache
def rates_object(compiler: tuple[str, ...], isa: str) -> tuple[bytes, ...]:
    """rates.c for an instruction set, whose multiply-adds it measures. Raises TranspileError "link-failed"."""
    chosen = load_target("cpu", isa).isa
    # -std=c11 would compute a multiply-add in two steps.
    options = (f"-march={chosen.mcpu}", f"-DTP_VECTOR_BYTES={chosen.vector_bits // 8}", "-ffp-contract=fast")
    return _compiled((*compiler, *options), [RATES_FILE])


@cache
def special_objects(compiler: tuple[str, ...]) -> tuple[bytes, ...]:
    """The special functions, compiled once per process. Raises TranspileError "link-failed"."""
    return _compiled(compiler, SPECIAL_FILES)


def _compiled(compiler: tuple[str, ...], files: Sequence[str]) -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory(prefix="transpile-runtime-") as folder:
        work = _work_folder(folder)
        _run([*compiler, *COMPILE, "-c", *files], work)
        return tuple((work / file).with_suffix(".o").read_bytes() for file in files)


def link_library(objects: Sequence[bytes], plans: Sequence[KernelPlan], name: str, isa: str) -> Linked:
    """One shared library that exports the C ABI as `<name>_<isa>_*` and needs libc only.

    The same objects, plan and compiler give the same bytes. Symbols that the objects share (TVM's weak
    context pointers, float16 helpers) are merged.

    Raises:
        TranspileError: "no-c-compiler"; "link-failed" with what the compiler printed.
    """
    prefix = f"{checked_symbol(name)}_{checked_symbol(isa)}_"
    source = render_plan(plans, f"{name} for {isa}")
    compiler = c_compiler()
    with tempfile.TemporaryDirectory(prefix="transpile-link-") as folder:
        work = _work_folder(folder)
        (work / "plan.c").write_text(source, encoding="utf-8")
        (work / "exports.map").write_text(f"{{ global: {prefix}*; local: *; }};\n", encoding="ascii")
        special = special_objects(compiler) if any(SPECIAL_PREFIX in item for item in objects) else ()
        linked = [*shared_objects(compiler), *rates_object(compiler, isa), *special, *objects]
        names = [f"object{index}.o" for index in range(len(linked))]
        for file, content in zip(names, linked, strict=True):
            (work / file).write_bytes(content)
        define = f"-DTRANSPILE_PREFIX={prefix}"
        output = ["-Wl,--version-script=exports.map", "-o", "out.so"]
        _run([*compiler, *COMPILE, define, "plan.c", "exports.c", *names, *output, *LINK], work)
        return Linked((work / "out.so").read_bytes(), source)


def _work_folder(folder: str) -> Path:
    for file in RUNTIME_FILES:
        shutil.copyfile(tree("templates") / "runtime" / "cpu" / file, Path(folder) / file)
    return Path(folder)


def _run(command: Sequence[str], work: Path) -> None:
    # What it prints is shown to the user: no translations.
    env = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TranspileError(
            "link-failed",
            "The C compiler could not link the kernels.",
            notes=tuple(comment(line) for line in done.stderr.splitlines()[:20]),
            hints=("Check that it works and that libc's headers are there (`apt-get install libc6-dev`).",),
        )
