"""Packages whose C side is compiled with a sanitizer: the runtime, the plan and what is exported; kernels stay as TVM
made them, and are watched by guard pages around the memory that the runtime gives them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.models.support import load
from transpiler import c_abi, link, transpile
from transpiler.c_compiler import Compiler
from transpiler.manifest import manifest_hash

HERE = Path(__file__).parent
# What the C compiler is told; `fenced` gives every arena pages around it that cannot be touched.
BUILDS = {
    "address": ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "thread": ("-g", "-O1", "-fsanitize=thread"),
    "fenced": ("-include", str(HERE / "fenced.h")),
}
PRELOADED = {"address": "libasan.so", "thread": "libtsan.so"}


def build(name: str, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The package of a model file in tests/models, once per entry of BUILDS; the model's kernels are compiled once."""
    made: dict[str, list[bytes]] = {kind: [] for kind in BUILDS}
    link_library, link_dispatcher = link.link_library, c_abi.link_dispatcher
    compilers = {kind: Compiler(("gcc", *options)) for kind, options in BUILDS.items()}

    def library(*arguments: Any) -> Any:
        for kind, compiler in compilers.items():
            made[kind].append(link_library(*arguments[:-1], compiler).library)
        return link_library(*arguments)

    def dispatcher(*arguments: Any) -> Any:
        for kind, compiler in compilers.items():
            made[kind].append(link_dispatcher(*arguments[:-1], compiler))
        return link_dispatcher(*arguments)

    patch.setattr(link, "link_library", library)
    patch.setattr(c_abi, "link_dispatcher", dispatcher)
    module, args, kwargs = load(name)
    package = transpile(module, args, kwargs, name=name, out=folder / "plain", isa="baseline")
    patch.undo()
    return {kind: _exchanged(package.path, folder / kind / name, *libraries) for kind, libraries in made.items()}


def _exchanged(package: Path, target: Path, library: bytes, dispatcher: bytes) -> Path:
    """A copy of the package with other libraries, and their hashes."""
    shutil.copytree(package, target)
    inside = target / "src" / package.name
    manifest = json.loads((inside / "manifest.json").read_text())
    for pattern, content in (("kernels/cpu/*/*.so", library), ("lib/*.so", dispatcher)):
        (path,) = inside.glob(pattern)
        path.write_bytes(content)
        manifest["files"][path.relative_to(inside).as_posix()] = hashlib.sha256(content).hexdigest()
    manifest["sha256"] = manifest_hash(manifest)
    (inside / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return target


def run(kind: str, command: list[str | Path], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python command in a process that has the sanitizer's runtime."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "LD_"))}
    preload: Mapping[str, str] = {}
    if kind in PRELOADED:
        path = subprocess.run(
            ["gcc", f"-print-file-name={PRELOADED[kind]}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        preload = {"LD_PRELOAD": path}
    options = {
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": f"suppressions={HERE / 'thread.suppressions'}:exitcode=66:history_size=4",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd, env={**kept, **preload, **options, **variables}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=900, check=False,
    )  # fmt: skip
