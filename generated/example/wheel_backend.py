"""A build backend (PEP 517) for this package alone: it zips what is there, and nothing is downloaded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
(PACKAGE,) = [path.parent for path in ROOT.glob("src/*/manifest.json")]
MANIFEST: dict[str, Any] = json.loads((PACKAGE / "manifest.json").read_text(encoding="utf-8"))
PROJECT = re.sub(r"[-_.]+", "_", MANIFEST["name"])
STEM = f"{PROJECT}-{MANIFEST['version']}"
METADATA = f"""\
Metadata-Version: 2.1
Name: {MANIFEST["name"]}
Version: {MANIFEST["version"]}
Requires-Python: >=3.10
Requires-Dist: numpy>=1.26
Description-Content-Type: text/markdown

"""


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """The package's own folder as a wheel for any Python 3 on this platform."""
    files = {
        f"{PACKAGE.name}/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes()
        for path in sorted(PACKAGE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    return _write_wheel(wheel_directory, files)


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """A wheel that only points here."""
    return _write_wheel(wheel_directory, {f"__editable__.{PROJECT}.pth": f"{ROOT / 'src'}\n".encode()})


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """Everything in this folder."""
    name = f"{STEM}.tar.gz"
    with tarfile.open(Path(sdist_directory) / name, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(ROOT.rglob("*")):
            relative = path.relative_to(ROOT)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
            if path.is_file() and not hidden and relative.parts[0] not in ("build", "dist"):
                archive.add(path, f"{STEM}/{relative.as_posix()}")
    return name


def _write_wheel(folder: str, files: dict[str, bytes]) -> str:
    tag = f"py3-none-linux_{MANIFEST['machine']}"
    info = f"{STEM}.dist-info"
    readme = ROOT / "README.md"
    description = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    wheel = f"Wheel-Version: 1.0\nGenerator: transpile\nRoot-Is-Purelib: false\nTag: {tag}\n"
    files = {
        **files,
        f"{info}/METADATA": (METADATA + description).encode(),
        f"{info}/WHEEL": wheel.encode(),
    }
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    name = f"{STEM}-{tag}.whl"
    with zipfile.ZipFile(Path(folder) / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path)  # its date is 1980-01-01: the same files make the same wheel
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return name


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
