"""Special functions of float64 in C, which packages for processors link and those for GPUs get in other ways."""

from __future__ import annotations

import re
from functools import cache

from transpiler.resources import tree

PREFIX = "tp_math_"
FILES = (
    "special_cephes.h", "special_tables.h", "special.h", "special_bessel.c", "special_error.c", "special_gamma.c",
    "special_polynomials.c",
)  # fmt: skip


def special_file(name: str) -> str:
    """The text of one of FILES."""
    return (tree("templates") / "runtime" / "cpu" / name).read_text()


@cache
def special_functions() -> str:
    """All of them as one text, without what it includes of the C library. Constants that several files have are
    there once."""
    lines: list[str] = []
    for line in "".join(map(special_file, FILES)).splitlines():
        repeated = line.startswith("static const double") and line.endswith(";") and line in lines
        if not repeated and not re.match(r"#(?:include|define _)", line):
            lines.append(line)
    return "\n".join(lines) + "\n"
