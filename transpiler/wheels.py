"""A wheel of a package on disk. The package's own build backend makes it: `pip wheel` gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transpiler.errors import TranspileError

BundleWeights = Literal["embed", "separate", "none"]
BACKEND = "wheel_backend.py"


@dataclass(frozen=True)
class Wheel:
    """A wheel, and the files of weights that were put beside it."""

    path: Path
    weights: tuple[Path, ...]


def write_wheel(package: Path, folder: Path, bundle_weights: BundleWeights = "embed") -> Wheel:
    """Write the wheel of the package in the folder `package` into `folder`.

    Raises:
        TranspileError: "package-changed" if a file is not the one that was built, or is missing.
        ValueError: `bundle_weights` is none of "embed", "separate" and "none".
        OSError: the wheel cannot be written.
    """
    if bundle_weights not in ("embed", "separate", "none"):
        raise ValueError(f"bundle_weights: expected 'embed', 'separate' or 'none', got {bundle_weights!r}")
    backend = _backend(package)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        wheel, *weights = backend["write_wheel"](str(folder), bundle_weights)
    except (FileNotFoundError, ValueError) as error:
        raise _changed(package, str(error)) from error
    return Wheel(folder / wheel, tuple(folder / name for name in weights))


def leave_out_weights(package: Path, bundle_weights: BundleWeights, folder: Path) -> tuple[Path, ...]:
    """Make of the package in the folder `package` what its wheel with `bundle_weights` holds: "separate" moves the
    weights into `folder`, "none" removes them. The files that were moved.

    Raises:
        TranspileError: "package-changed".
    """
    if bundle_weights == "embed":
        return ()
    backend = _backend(package)
    (manifest,) = package.glob("src/*/manifest.json")
    content = backend["wheel_manifest"](bundle_weights)
    kept = []
    for name in backend["weights_files"]():
        if bundle_weights == "separate":
            kept.append((manifest.parent / name).rename(folder / backend["separate_name"](name)))
        else:
            (manifest.parent / name).unlink()
    manifest.write_bytes(content)
    return tuple(kept)


def _backend(package: Path) -> dict[str, Any]:
    """The package's build backend, which is code that this program wrote: its hash must be the manifest's."""
    path = package / BACKEND
    try:
        (file,) = package.glob("src/*/manifest.json")
        expected = json.loads(file.read_text(encoding="utf-8"))["project_files"][BACKEND]
        text = path.read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _changed(package, f"it is no package of transpile: {error}") from error
    if hashlib.sha256(text).hexdigest() != expected:
        raise _changed(package, f"{path} was changed")
    namespace: dict[str, Any] = {"__name__": "wheel_backend", "__file__": str(path)}
    exec(compile(text, str(path), "exec"), namespace)
    return namespace


def _changed(package: Path, why: str) -> TranspileError:
    return TranspileError(
        "package-changed", f"No wheel can be made of {package}: {why}", hints=["transpile the model again"]
    )
