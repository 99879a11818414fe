"""The toy package in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def python(package: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in an isolated process that has numpy, and from here only the package."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'tvm', 'transpiler', 'jinja2')))"
    start = f"{blocked}; sys.path.insert(0, {str(package / 'src')!r})\n"
    return subprocess.run(
        [sys.executable, "-I", "-B", "-c", start + PREAMBLE + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


PREAMBLE = """
import numpy as np
from toy import *
x = np.arange(18, dtype=np.float32).reshape(2, 3, 3) / 9 - 1
ids = np.array([4, 1])
def raises(kind, text, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except kind as error:
        assert text in str(error), str(error)
    else:
        raise AssertionError(f"{kind.__name__} expected: {text}")
"""


def runs(package: Path, code: str, **environment: str) -> str:
    done = python(package, code, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
