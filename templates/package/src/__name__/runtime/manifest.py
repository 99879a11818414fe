"""What a package says of itself in manifest.json, and whether its files are those."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import PackageError

FORMAT = 3


def read_manifest(folder: Path) -> dict[str, Any]:
    """The package's manifest. Raises PackageError if it is missing, damaged or of a newer format."""
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(f"{path} is missing or damaged: {error}") from error
    if version != FORMAT:
        raise PackageError(f"{path} has format {version}; this runtime reads format {FORMAT}")
    return manifest


def functions_of(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Function name -> its part of the manifest; the main function's stands at the top."""
    return {manifest["function"]: manifest, **manifest["functions"]}


def check_files(folder: Path, manifest: Mapping[str, Any], wanted: Callable[[Path], bool]) -> int:
    """Compare the files that `wanted` picks with the manifest's hashes; how many there were.

    Raises:
        PackageError: names every file that is missing or was changed.
    """
    faults, count = [], 0
    for name, expected in manifest["files"].items():
        file = folder / name
        if not wanted(file):
            continue
        count += 1
        try:
            actual = _sha256(file)
        except OSError:
            faults.append(f"{file} is missing")
            continue
        if actual != expected:
            faults.append(f"{file} was changed")
    if faults:
        raise PackageError("the package is damaged (its hashes are in manifest.json): " + "; ".join(faults))
    return count


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
