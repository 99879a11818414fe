"""Pythons of another processor: Debian's packages and PyPI's wheels unpacked into a folder, run by qemu-user; and other
Pythons of this machine, with PyPI's wheels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {suite} main\n"
# Its own lists and caches: the machine's packages stay as they are.
CONFIGURATION = """
Dir "{root}";
Dir::State::status "{root}/var/lib/dpkg/status";
APT::Architecture "{machine}";
APT::Architectures {{ "{machine}"; }};
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false"; // the lists of a mirror that stands still run out
"""
WRAPPER = """#!/bin/sh
exec {emulator} -0 "$0" -L {root} -E PYTHONHOME={root}/usr {root}/usr/bin/python{version} "$@"
"""


def unpack_debian(root: Path, suite: str, machine: str, packages: list[str]) -> None:
    """The files of some packages, and of all that they need, below `root`."""
    apt = root / "apt"
    for folder in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/lib/dpkg", "etc/apt"):
        (apt / folder).mkdir(parents=True)
    (apt / "var/lib/dpkg/status").touch()
    (apt / "etc/apt/sources.list").write_text(SOURCES.format(suite=suite))
    configuration = apt / "apt.conf"
    configuration.write_text(CONFIGURATION.format(root=apt, machine=machine))
    environment = {"APT_CONFIG": str(configuration), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    for command in (["update", "-q"], ["install", "-y", "-q", "--download-only", *packages]):
        subprocess.run(["apt-get", *command], env=environment, check=True, capture_output=True)
    for archive in sorted((apt / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", archive, root], check=True)
    for name in ("lib", "lib64"):  # newer releases have them as links, which belong to no package
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")


def python_of(root: Path, *, suite: str, version: str, debian: str, machine: str, emulator: str) -> Path:
    """A command that runs Python `version` with numpy and pytest, in processes that it starts too."""
    unpack_debian(root, suite, debian, [f"python{version}", "libstdc++6"])
    site = root / "usr/lib/python3/dist-packages"
    site.mkdir(parents=True, exist_ok=True)
    platforms = [f"--platform=manylinux{tag}_{machine}" for tag in ("2014", "_2_28")]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={version}", *platforms]
    wheels = ["numpy", "pytest", "pluggy", "iniconfig", "packaging", "pygments"]
    command = [sys.executable, "-m", "pip", "install", *options, f"--target={site}", *wheels]
    subprocess.run(command, check=True)
    wrapper = root / "python"
    wrapper.write_text(WRAPPER.format(emulator=emulator, root=root, version=version))
    wrapper.chmod(0o755)
    return wrapper


def python_here(folder: Path, version: str, numpy: str) -> Path:
    """An environment with numpy and pytest of a Python that pyenv or the system has."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    kept = [str(path) for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))]
    installed = [*kept, shutil.which(f"python{version}")]
    command = next(filter(None, installed), None)
    assert command, f"this test needs Python {version}: `pyenv install {version}`"
    subprocess.run([command, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", numpy, "pytest"], check=True)
    return python
