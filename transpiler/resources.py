"""Where the templates, targets and schedules lie: inside the package (a wheel) or beside it (a checkout)."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def tree(name: str) -> Path:
    """The folder `templates`, `targets` or `schedules`.

    Raises:
        FileNotFoundError: the installation is damaged.
    """
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{name}/ is neither in {PACKAGE} nor beside it; reinstall torch-transpiler")
