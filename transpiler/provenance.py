"""What a package was made from, for its manifest: the hashes of source and weights, the options, the tools."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from transpiler import __version__
from transpiler.ir import Array
from transpiler.request import Request

TOOLS = ("torch", "apache-tvm", "apache-tvm-ffi", "numpy")
PIECE = 1 << 24


def options_of(request: Request, isas: Sequence[str]) -> dict[str, Any]:
    """The options that decide what a package is, without paths; what was left to its default is not listed.

    Args:
        request: what was asked for.
        isas: the instruction sets, or variants, that were built for its targets.
    """
    options = {
        "target": list(dict.fromkeys(request.targets)),
        "isa": list(isas),
        "triple": request.triple,
        "glibc": request.glibc,
        "entry": request.entry,
        "init": {key: repr(value) for key, value in sorted(request.init.items())},
        "input": [str(item) for item in request.inputs],
        "dynamic": [str(item) for item in request.dynamic],
        "taps": request.taps,
        "rng": request.rng,
        "tune": request.tune,
        "tuning_record": file_hash(request.tuning_record) if request.tuning_record is not None else None,
        "exact": request.exact,
        "precision": None if request.precision == "float32" else request.precision,
        "test": request.test,
    }
    return {name: value for name, value in options.items() if value not in (None, [], {}, False)}


def tool_versions(compiler: str) -> dict[str, str]:
    """Tool -> version; `compiler` is what the C compiler says of itself."""
    found = {tool: _version(tool) for tool in TOOLS}
    return {**found, "torch-transpiler": __version__, "cc": compiler}


@cache
def compiler_version(compiler: tuple[str, ...]) -> str:
    """The first line of the C compiler's --version; "unknown" if it has none."""
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else "unknown"


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def state_hash(state: Mapping[str, Array]) -> str:
    """SHA-256 of a state_dict, whatever file held it; a tied tensor has one key.

    It is the hash of every tensor in the order of the keys: `<key> <dtype> <shape>`, a newline, and its little-endian
    bytes in C order.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        array = state[key]
        digest.update(f"{key} {array.dtype.name} {list(array.shape)}\n".encode())
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, content.size, PIECE):
            digest.update(content[start : start + PIECE].data)
    return digest.hexdigest()


def _version(tool: str) -> str:
    try:
        return metadata.version(tool)
    except metadata.PackageNotFoundError:
        return "unknown"
