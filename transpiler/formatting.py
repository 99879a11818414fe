"""Generated Python in the form that `ruff format` prints, all files in one process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LINE_LENGTH = 110


@cache
def _ruff() -> tuple[str, ...]:
    beside = Path(sys.executable).parent / "ruff"
    return (str(beside),) if beside.is_file() else (sys.executable, "-m", "ruff")


def format_python(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """`files`, every `.py` file formatted (line length 110, Python 3.10), and Python code in `.md` files.

    Raises:
        RuntimeError: ruff cannot parse a file (a bug of a template) or is not installed; the text says which.
    """
    result = dict(files)
    suffixes = {name: name.rpartition(".")[2] for name in sorted(files)}
    python = {name: f"{i}.{suffix}" for i, (name, suffix) in enumerate(suffixes.items()) if suffix in ("py", "md")}
    if not python:
        return result
    with tempfile.TemporaryDirectory(prefix="transpile-format-") as folder:
        for name, flat in python.items():
            (Path(folder) / flat).write_bytes(files[name])
        options = ["--isolated", "--no-cache", "--line-length", str(LINE_LENGTH), "--target-version", "py310"]
        command = [*_ruff(), "format", "--quiet", *options, "."]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            text = done.stderr
            for name, flat in python.items():
                text = text.replace(flat, name)
            raise RuntimeError(f"ruff could not format generated code:\n{text}")
        for name, flat in python.items():
            result[name] = (Path(folder) / flat).read_bytes()
    return result
