"""Virtual environments of the peers: made once from the pins in requirements/, each in a folder of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of environment `name` under `folder`; the environment is made where it is missing or its pins
    have changed.

    The environment `torch` sees the packages of this interpreter: a second PyTorch would take 700 MB.
    """
    pins = (REQUIREMENTS / f"{name}.txt").read_text()
    home = folder / name
    stamp, python = home / "pins.txt", home / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == pins:
        return python
    print(f"environment {name}: installing", file=sys.stderr, flush=True)
    venv.create(home, clear=True, symlinks=True, with_pip=True)
    if name == "torch":
        (packages,) = home.glob("lib/python*/site-packages")
        (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    command: list[str | Path] = [python, "-m", "pip", "install", "-q", "-r", REQUIREMENTS / f"{name}.txt"]
    subprocess.run(command, check=True)
    stamp.write_text(pins)
    return python
