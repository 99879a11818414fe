"""Writing a package to disk: all of it or nothing, and never over something that is not ours."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from transpiler.errors import TranspileError


def is_ours(folder: Path) -> bool:
    """Whether `folder` is an emitted package: it has one src/<name>/manifest.json, with our `format`."""
    manifests = list(folder.glob("src/*/manifest.json"))
    if len(manifests) != 1:
        return False
    try:
        manifest = json.loads(manifests[0].read_text(encoding="utf-8"))
        return isinstance(manifest, dict) and "format" in manifest and manifest.get("name") == manifests[0].parent.name
    except (OSError, ValueError):
        return False


def check_output(folder: Path) -> None:
    """Whether a package can be written as `folder`.

    Raises:
        TranspileError: "output-not-ours" if it would destroy something else, "output-read-only" if it may not be.
    """
    what = None
    if folder.is_symlink():
        what = "is a symbolic link"
    elif folder.exists() and not folder.is_dir():
        what = "is a file"
    elif folder.is_dir() and any(folder.iterdir()) and not is_ours(folder):
        what = "holds files that were not made by transpile"
    if what:
        raise TranspileError(
            "output-not-ours",
            f"The output folder {folder} {what}; nothing was written.",
            hints=("Give another folder with --out, or move that one away.",),
        )
    inside = next(parent for parent in Path(os.path.abspath(folder)).parents if parent.exists())
    if not inside.is_dir() or not os.access(inside, os.W_OK | os.X_OK):
        why = f"you may not write in {inside}" if inside.is_dir() else f"{inside} is a file"
        raise TranspileError(
            "output-read-only",
            f"The output folder {folder} cannot be made: {why}.",
            hints=("Give another folder with --out.",),
        )


def write_package(files: Mapping[str, bytes], folder: str | os.PathLike[str]) -> Path:
    """Write `files` (relative path -> content) as `folder`, replacing a package that is there.

    Everything is written beside it first; `folder` is replaced at the end by a rename. Whatever fails on the
    way, Ctrl-C included, the old content stays and nothing half-written is left.

    Raises:
        TranspileError: "output-not-ours", "output-read-only".
        ValueError: a path that leaves the folder.
        OSError: the disk is full, or the folder cannot be written.
    """
    target = Path(os.path.abspath(folder))
    check_output(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        new = stage / "new"
        new.mkdir()
        for name, content in sorted(files.items()):
            _write(new, name, content)
        replace_folder(new, target, stage / "old")
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return target


def publish(staged: Path, folder: Path) -> None:
    """Move the package in `staged`, less what running it left there, to `folder`; raises what `write_package` does."""
    files = {path.relative_to(staged).as_posix(): path.read_bytes() for path in staged.rglob("*") if path.is_file()}
    files = {name: data for name, data in files.items() if "__pycache__" not in name}
    write_package(files, folder)
    shutil.rmtree(staged, ignore_errors=True)


def _write(root: Path, name: str, content: bytes) -> None:
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"not a path inside of a package: {name!r}")
    path = root.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755 if name.endswith(".so") else 0o644)


def replace_folder(new: Path, target: Path, aside: Path) -> None:
    """Rename `new` to `target`; what was there is moved to `aside`, and back again if that fails."""
    moved = False
    try:
        if target.exists():
            os.rename(target, aside)
            moved = True
        os.rename(new, target)
    except BaseException:
        if moved and not target.exists():
            with suppress(OSError):
                os.rename(aside, target)
        raise
