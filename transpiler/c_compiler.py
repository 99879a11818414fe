"""The C compiler: the system's for this machine; zig, from PyPI, for another processor or an older glibc."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transpiler.errors import TranspileError, UsageError
from transpiler.naming import comment
from transpiler.target import Isa, host_triple

OLDEST_GLIBC = {"x86_64": (2, 17), "aarch64": (2, 17)}  # that zig has the symbols of, and that packages need


@dataclass(frozen=True)
class Compiler:
    """A command that compiles and links C for one triple."""

    command: tuple[str, ...]
    is_zig: bool = False

    def options_for(self, isa: Isa) -> tuple[str, ...]:
        """What makes it use the instructions of `isa`."""
        if self.is_zig:
            return (f"-mcpu={isa.mcpu.replace('-', '_')}",)
        return (f"-mcpu={isa.mcpu}",) if isa.machine == "aarch64" else (f"-march={isa.mcpu}",)

    def run(self, arguments: Sequence[str], work: Path) -> None:
        """Run it in `work`. Raises TranspileError "link-failed" with what it printed."""
        # What it prints is shown to the user: no translations.
        env = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
        command = [*self.command, *arguments]
        done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TranspileError(
                "link-failed",
                "The C compiler could not link the kernels.",
                notes=tuple(comment(line) for line in done.stderr.splitlines()[:20]),
                hints=("Check that it works and that libc's headers are there (`apt-get install libc6-dev`).",),
            )


def c_compiler(triple: str | None = None, glibc: str | None = None) -> Compiler:
    """The compiler for `triple`: $CC (with its arguments), else the first of cc, gcc and clang; zig for another
    machine than this one, unless $CC is set, and for libraries that shall run with `glibc` ("2.17") or newer.

    Raises:
        UsageError: "bad-glibc".
        TranspileError: "no-c-compiler".
    """
    triple = triple or host_triple()
    if glibc is not None:
        check_glibc(triple, glibc)
    if glibc is not None or (triple != host_triple() and not os.environ.get("CC")):
        return _zig(triple, glibc)
    chosen = shlex.split(os.environ.get("CC", ""))
    for command in [chosen] if chosen else [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(command[0])
        if path:
            return Compiler((path, *command[1:]))
    tried = f"CC={os.environ['CC']} was not found" if chosen else "none of cc, gcc and clang was found"
    raise TranspileError(
        "no-c-compiler",
        f"A C compiler is needed to link the kernels; {tried}.",
        hints=("Install one (`apt-get install gcc`), or name yours: `CC=/path/to/cc transpile ...`.",),
    )


def check_glibc(triple: str, glibc: str) -> None:
    """Refuse what is no version ("2.17") or older than the first one for the triple's processors.

    Raises:
        UsageError: "bad-glibc".
    """
    found = re.fullmatch(r"2\.(\d{1,2})", glibc)
    oldest = OLDEST_GLIBC[triple.partition("-")[0]]
    if not found or (2, int(found[1])) < oldest:
        least = ".".join(map(str, oldest))
        raise UsageError("bad-glibc", f"--glibc {glibc!r}: expected a version such as 2.28, at least {least}.")


def _zig(triple: str, glibc: str | None) -> Compiler:
    if importlib.util.find_spec("ziglang") is None:
        raise TranspileError(
            "no-c-compiler",
            f"Building for {triple}{f' with glibc {glibc}' if glibc else ''} needs a cross compiler.",
            hints=("Install zig: `pip install 'torch-transpiler[cross]'`, or name a compiler of yours with CC.",),
        )
    target = triple.replace("-unknown", "") + (f".{glibc}" if glibc else "")
    return Compiler((sys.executable, "-m", "ziglang", "cc", "-target", target), is_zig=True)
