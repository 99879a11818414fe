"""A build backend (PEP 517) for this package alone: it zips what is there, and nothing is downloaded.

The same files make the same wheel: entries are sorted and dated 1980-01-01, their modes do not depend on the
disk. `pip wheel . -C weights=none` leaves the weights out.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
(PACKAGE,) = [path.parent for path in ROOT.glob("src/*/manifest.json")]
MANIFEST: dict[str, Any] = json.loads((PACKAGE / "manifest.json").read_text(encoding="utf-8"))
PROJECT = re.sub(r"[-_.]+", "_", MANIFEST["name"]).lower()
STEM = f"{PROJECT}-{MANIFEST['version']}"
INFO = f"{STEM}.dist-info"
TAG = f"py3-none-{MANIFEST['platform']['tag']}"
REQUIRES = "".join(f"Requires-Dist: {item}\n" for item in MANIFEST["requires"])
for extra, needed in sorted(MANIFEST["extras"].items()):
    REQUIRES += f"Provides-Extra: {extra}\n"
    REQUIRES += "".join(f"Requires-Dist: {item}; extra == '{extra}'\n" for item in needed)
METADATA = f"""\
Metadata-Version: 2.1
Name: {MANIFEST["name"].replace("_", "-")}
Version: {MANIFEST["version"]}
Summary: {MANIFEST["summary"]}
Classifier: Operating System :: POSIX :: Linux
Classifier: Topic :: Scientific/Engineering :: Artificial Intelligence
Classifier: Typing :: Typed
Requires-Python: >=3.10
{REQUIRES}Description-Content-Type: text/markdown

"""
WHEEL = f"Wheel-Version: 1.0\nGenerator: transpile\nRoot-Is-Purelib: false\nTag: {TAG}\n"
# Where weights go: into the wheel, into files beside it, or nowhere.
BUNDLES = ("embed", "separate", "none")
PIECE = 1 << 20


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """The package's own folder as a wheel for any Python 3 on this platform; its name."""
    bundle = (config_settings or {}).get("weights", "embed")
    if bundle == "separate":
        raise ValueError(
            "a build frontend keeps nothing but the wheel: give weights=none, "
            f"and take {', '.join(weights_files())} from {PACKAGE}"
        )
    return write_wheel(wheel_directory, bundle)[0]


def write_wheel(folder: str, bundle: str = "embed") -> list[str]:
    """Write the wheel into `folder`; its name, and with "separate" those of the weights' files beside it.

    Raises:
        ValueError: an unknown `bundle`, or a file that is not the one that was built.
        FileNotFoundError: a file of the package is missing.
    """
    if bundle not in BUNDLES:
        raise ValueError(f"weights={bundle}: known are {', '.join(BUNDLES)}")
    inside: dict[str, Path | bytes] = {}
    for name in MANIFEST["files"]:
        if bundle == "embed" or name not in weights_files():
            inside[f"{PACKAGE.name}/{name}"] = PACKAGE / name
    inside[f"{PACKAGE.name}/manifest.json"] = wheel_manifest(bundle)
    written = [_write_wheel(folder, inside)]
    if bundle == "separate":
        for name in weights_files():
            _check(name, _copy(PACKAGE / name, Path(folder) / separate_name(name)))
            written.append(separate_name(name))
    return written


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """A wheel that only points here."""
    return _write_wheel(wheel_directory, {f"__editable__.{PROJECT}.pth": f"{ROOT / 'src'}\n".encode()})


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """Everything in this folder that was built."""
    name = f"{STEM}.tar.gz"
    names = [*MANIFEST["project_files"], *(f"src/{PACKAGE.name}/{item}" for item in MANIFEST["files"])]
    files: dict[str, Path | bytes] = {item: ROOT / item for item in names}
    files[f"src/{PACKAGE.name}/manifest.json"] = PACKAGE / "manifest.json"
    files["PKG-INFO"] = _metadata()
    with (
        (Path(sdist_directory) / name).open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{STEM}/{path}")  # its owner is 0 and its date 1970-01-01
            entry.mode, entry.size = _mode(path), _size(content)
            with _open(content) as source:
                archive.addfile(entry, source)
    return name


def weights_files() -> list[str]:
    """The files of weights in the layout of the kernels, relative to the package."""
    return [MANIFEST["weights"]["file"]]


def separate_name(weights: str) -> str:
    """What a file of weights is called beside the wheel."""
    return f"{STEM}.{weights}"


def wheel_manifest(bundle: str) -> bytes:
    """manifest.json of a wheel, which says where its weights are."""
    beside = {name: separate_name(name) for name in weights_files()} if bundle == "separate" else {}
    weights = {**MANIFEST["weights"], "bundle": bundle, "beside": beside}
    manifest = {key: value for key, value in {**MANIFEST, "weights": weights}.items() if key != "sha256"}
    # As runtime/manifest.py computes it, which is no module that could be imported from here without numpy.
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return (json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _metadata() -> bytes:
    readme = ROOT / "README.md"
    return METADATA.encode() + (readme.read_bytes() if readme.is_file() else b"")


def _write_wheel(folder: str, inside: dict[str, Path | bytes]) -> str:
    """Zip `inside` (path in the wheel -> a file or its content) and what a wheel says of itself.

    Returns the wheel's name. It gets its name when it is whole.
    """
    name = f"{STEM}-{TAG}.whl"
    part = Path(folder) / f".{name}.part"
    described: dict[str, Path | bytes] = {
        f"{INFO}/METADATA": _metadata(),
        f"{INFO}/WHEEL": WHEEL.encode(),
        f"{INFO}/sboms/{PROJECT}.cdx.json": (ROOT / "sbom.cdx.json").read_bytes(),
    }
    files = [*sorted(inside.items()), *described.items()]
    record = ""
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for path, content in files:
                digest = _add(archive, path, content)
                if isinstance(content, Path):
                    _check(content.relative_to(PACKAGE).as_posix(), digest.hex())
                encoded = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
                record += f"{path},sha256={encoded},{_size(content)}\n"
            _add(archive, f"{INFO}/RECORD", f"{record}{INFO}/RECORD,,\n".encode())
        os.replace(part, Path(folder) / name)
    finally:
        part.unlink(missing_ok=True)
    return name


def _add(archive: zipfile.ZipFile, path: str, content: Path | bytes) -> bytes:
    """Add a file, piece by piece whatever its size; its SHA-256."""
    entry = zipfile.ZipInfo(path)  # its date is 1980-01-01
    entry.create_system = 3  # Unix: what follows are its modes
    entry.external_attr = (0o100000 | _mode(path)) << 16
    # Weights hardly shrink, and they are most of what is read at installation.
    entry.compress_type = zipfile.ZIP_STORED if path.endswith(".safetensors") else zipfile.ZIP_DEFLATED
    entry.file_size = _size(content)  # 64-bit sizes are written if this asks for them
    digest = hashlib.sha256()
    with _open(content) as source, archive.open(entry, "w") as target:
        for piece in _pieces(source):
            digest.update(piece)
            target.write(piece)
    return digest.digest()


def _copy(source: Path, target: Path) -> str:
    """Copy a file; the SHA-256 of what was copied."""
    part = target.with_name(f".{target.name}.part")
    digest = hashlib.sha256()
    try:
        with source.open("rb") as file, part.open("wb") as copy:
            for piece in _pieces(file):
                digest.update(piece)
                copy.write(piece)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return digest.hexdigest()


def _check(name: str, digest: str) -> None:
    if MANIFEST["files"][name] != digest:
        raise ValueError(f"{PACKAGE / name} was changed since it was built; its hash is in manifest.json")


def _open(content: Path | bytes) -> io.BufferedIOBase:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


def _pieces(file: io.BufferedIOBase) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece


def _size(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _mode(path: str) -> int:
    return 0o755 if path.endswith(".so") else 0o644
