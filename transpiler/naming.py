"""Text that comes from outside, made safe for generated code, and readable names that never collide.

Nothing that a user or a file controls reaches generated source except through these functions: identifiers
are checked, strings printed by `repr` (Python) or `c_string` (C), comments and docstrings neutralised.
"""

from __future__ import annotations

import builtins
import keyword
import re
import sys
import textwrap
from collections.abc import Iterable

from transpiler.errors import Location, TranspileError, UsageError

_C_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED = frozenset(keyword.kwlist) | frozenset(keyword.softkwlist) | frozenset(dir(builtins))
# Python would import, `#include <name.h>` find and `-lname` link something else; or these it would hide from others.
# fmt: off
_OTHERS = frozenset(sys.stdlib_module_names) | frozenset({
    "numpy", "test",
    "alloca", "assert", "complex", "ctype", "dlfcn", "endian", "errno", "fcntl", "features", "fenv", "float",
    "inttypes", "iso646", "limits", "locale", "math", "pthread", "sched", "setjmp", "signal", "stdalign", "stdarg",
    "stdatomic", "stdbool", "stddef", "stdint", "stdio", "stdlib", "stdnoreturn", "string", "strings", "tgmath",
    "threads", "time", "uchar", "unistd", "wchar", "wctype",
    "c", "dl", "gcc_s", "m", "rt", "util",
})
# fmt: on


DEFAULT_VERSION = "0.1.0"
# PEP 440, in the form that it calls normalised: others would be another text in the name of the wheel.
_VERSION = re.compile(
    r"([1-9]\d*!)?(0|[1-9]\d*)(\.(0|[1-9]\d*))*((a|b|rc)(0|[1-9]\d*))?(\.post(0|[1-9]\d*))?(\.dev(0|[1-9]\d*))?"
    r"(\+[a-z0-9]+(\.[a-z0-9]+)*)?",
    re.ASCII,
)


def package_version(version: str) -> str:
    """`version` itself if it can be that of a Python project.

    Raises:
        UsageError: "bad-version".
    """
    if _VERSION.fullmatch(version) and len(version) <= 64:
        return version
    raise UsageError(
        "bad-version", f"{version!r} is no version: expected one such as 1.2, 1.2rc1 or 1.2+cpu (PEP 440)."
    )


def package_name(name: str) -> str:
    """`name` itself if it can name a Python package, its project, C symbols, a header and a library.

    Raises:
        UsageError: "bad-name", with the name that would do.
    """
    fits = _C_IDENTIFIER.fullmatch(name) and name.strip("_") == name and len(name) <= 64
    if fits and name not in RESERVED | _OTHERS:
        return name
    better = identifier(name, "model").strip("_").lower()
    if better in RESERVED | _OTHERS:
        better = f"{better}_model"
    why = ": it is that of another Python or C library" if fits and name in _OTHERS else ""
    raise UsageError(
        "bad-name",
        f"{name!r} cannot be the name of a Python package{why}.",
        hints=(f"Give one of letters, digits and inner _, such as --name {better}.",),
    )


def identifier(text: str, fallback: str) -> str:
    """An ASCII identifier like `text`: `layer1.0.conv` -> `layer1_0_conv`; `fallback` if nothing is left."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")[:60].rstrip("_")
    if not name:
        return fallback
    if name[0].isdigit():
        name = f"{fallback}_{name}"
    return f"{name}_" if name in RESERVED else name


def checked_symbol(name: str) -> str:
    """`name`, which must be a C identifier. Raises ValueError: a bug of the pass that made the name."""
    if not _C_IDENTIFIER.fullmatch(name):
        raise ValueError(f"{name!r} is not a C identifier")
    return name


def is_parameter(name: str) -> bool:
    """Whether a parameter may be called `name`; builtins may be shadowed: `forward(self, input)`."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and name != "self"


# What a generated model has already; its functions are methods beside these.
# fmt: off
_MODEL_MEMBERS = frozenset({
    "close", "device", "devices", "flatten", "folder", "functions", "hardware", "infer", "isa", "kernels",
    "load_state", "load_weights", "manifest", "measure_rates", "native", "passed_over", "plans", "prepare",
    "prepare_file", "profile", "reset", "runnable_isas", "save_prepared", "seed", "session", "state", "tap",
    "tap_values", "taps", "taps_of", "threads", "timeline",
})
# fmt: on


def check_function_name(name: object) -> str:
    """`name`, if a function of a generated model can be called so.

    Raises:
        TranspileError: "bad-function".
    """
    plain = isinstance(name, str) and _C_IDENTIFIER.fullmatch(name) and not keyword.iskeyword(name) and len(name) <= 64
    if plain and name not in _MODEL_MEMBERS and not str(name).startswith(("_", "plan_")):
        return str(name)
    raise TranspileError(
        "bad-function",
        f"A function of a model cannot be called {name!r}",
        hints=["choose a name of letters, digits and _ that no method of a generated model has"],
    )


class Namer:
    """Hands out names that are unique, not reserved, and as close to what was asked for as possible."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def take(self, wanted: str, fallback: str = "value") -> str:
        """`wanted` as an identifier, with `_2`, `_3`, ... appended while it is taken."""
        base = identifier(wanted, fallback)
        name, count = base, 1
        while name in self._taken:
            count += 1
            name = f"{base.rstrip('_')}_{count}"
        self._taken.add(name)
        return name

    def free(self, name: str) -> None:
        """`name` may be handed out again."""
        self._taken.discard(name)


def comment(text: str, width: int = 200) -> str:
    """`text` on one line, printable, at most `width` characters: what may follow a `#`."""
    line = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(line.split())
    return line if len(line) <= width else f"{line[: width - 4].rstrip()} ..."


def c_comment(text: str, width: int = 200) -> str:
    """`text` as the inside of a C comment."""
    # Backslashes first: what they become must not end the comment.
    return comment(text, width).replace("\\", "/").replace("*/", "* /").replace("/*", "/ *")


def docstring(text: str, width: int = 100) -> str:
    """The inside of a triple-quoted docstring that reads as `text`, dedented, over-long lines wrapped."""
    head, _, rest = text.strip().partition("\n")
    lines = [head.strip(), *textwrap.dedent(rest).splitlines()]
    wrapped: list[str] = []
    for line in lines:
        clean = "".join(char if char.isprintable() else " " for char in line).rstrip()
        indent = clean[: len(clean) - len(clean.lstrip())][:40]
        wrapped.extend(
            textwrap.wrap(
                clean.strip(),
                max(width - len(indent), 40),
                initial_indent=indent,
                subsequent_indent=indent,
                break_on_hyphens=False,
            )
            or [""]
        )
    escaped = "\n".join(wrapped).replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return escaped[:-1] + '\\"' if escaped.endswith('"') else escaped


def c_string(text: str) -> str:
    """`text` as a C string literal: printable ASCII as it is, other bytes of its UTF-8 as octal escapes."""
    out = []
    for byte in text.encode("utf-8", "replace"):
        char = chr(byte)
        out.append(char if 32 <= byte < 127 and char not in '"\\?' else f"\\{byte:03o}")
    return '"' + "".join(out) + '"'


def source_line(location: Location, width: int = 100) -> str:
    """`mnist.py:24  x = self.pool(x)`: the file's last component, the line, its text; for a comment."""
    where = f"{location.file.replace(chr(92), '/').rsplit('/', 1)[-1]}:{location.line}"
    return comment(f"{where}  {location.text}" if location.text else where, width).replace(where, where + " ", 1)
