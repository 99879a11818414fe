"""What a package says of itself in manifest.json, and whether its files are those."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import DamagedError, PackageError

FORMAT = 6


def read_manifest(folder: Path) -> dict[str, Any]:
    """The package's manifest. Raises PackageError if it is missing, damaged or of another format."""
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise PackageError(
            f"{folder} is no folder: libraries and weights are loaded from files, so unpack the package"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is missing or damaged: {error}") from error
    if type(version) is not int or version != FORMAT:
        newer = type(version) is int and version > FORMAT
        what = "was made by a newer version of transpile" if newer else "is not of this package"
        raise DamagedError(f"{path} {what}: it has format {version}, this runtime reads format {FORMAT}")
    if manifest.get("sha256") != manifest_hash(manifest):
        raise DamagedError(f"{path} was changed: it has not the hash that it says")
    return manifest


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Of all that it says but its own hash. Kernels rely on the shapes that arrays are given by it."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def for_target(manifest: Mapping[str, Any], target: str) -> dict[str, Any]:
    """What the manifest says of the package on one of its targets, as if it had no other."""
    built = manifest["built"][target]
    taps, fused = built["taps"], built["fused"]
    described = {
        **manifest,
        **built,
        "weights": {**manifest["weights"], **built["weights"]},
        "target": target,
    }
    functions = {
        name: {**entry, "taps": taps[name], "fused": fused[name]}
        for name, entry in manifest["functions"].items()
    }
    main = manifest["function"]
    return {**described, "functions": functions, "taps": taps[main], "fused": fused[main]}


def functions_of(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Function name -> its part of the manifest; the main function's stands at the top."""
    return {manifest["function"]: manifest, **manifest["functions"]}


def check_files(folder: Path, manifest: Mapping[str, Any], wanted: Callable[[Path], bool]) -> int:
    """Compare the files that `wanted` picks with the manifest's hashes; how many there were.

    Weights that the wheel left out may be missing.

    Raises:
        DamagedError: names every file that is missing or was changed.
    """
    faults, count = [], 0
    elsewhere = [] if manifest["weights"]["bundle"] == "embed" else [manifest["weights"]["file"]]
    for name, expected in manifest["files"].items():
        file = folder / name
        if not wanted(file) or (name in elsewhere and not file.exists()):
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
        raise DamagedError("the package is damaged (its hashes are in manifest.json): " + "; ".join(faults))
    return count


def check_own_weights(path: Path, manifest: Mapping[str, Any]) -> None:
    """Whether a file of weights is the one that the package was built with. Raises DamagedError."""
    if _sha256(path) != manifest["files"][manifest["weights"]["file"]]:
        raise DamagedError(f"{path} does not hold the weights that this package was built with")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
