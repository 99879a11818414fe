"""A project's models, transpiled once and again only when something that they are made of has changed.

Beside every package lies a stamp: the options, the versions of Python, the transpiler and every package that the model
imports, and a hash of each file that it was made of and of each that came out. A build whose stamp still holds does
nothing; it takes milliseconds and imports neither PyTorch nor TVM.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from transpiler.errors import TranspileError
from transpiler.project import ModelSpec, Project
from transpiler.resources import PACKAGE, tree
from transpiler.wheels import leave_out_weights

FOLDER = "build/transpile"
FOLDER_VARIABLE = "TRANSPILE_BUILD_DIR"
STAMP = "stamp.json"
FORMAT = 2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """A model's generated project: `package` is the folder that is imported."""

    model: ModelSpec
    project: Path

    @property
    def package(self) -> Path:
        return self.project / "src" / self.model.package

    def files(self) -> dict[str, Path]:
        """What belongs into a wheel: path in it -> file."""
        inside = "/".join([*self.model.parents, self.model.package])
        return {
            f"{inside}/{path.relative_to(self.package).as_posix()}": path
            for path in sorted(self.package.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }


def build_models(project: Project, say: Say = lambda line: None) -> tuple[Built, ...]:
    """Every model of the project, transpiled if it has to be.

    Raises:
        TranspileError: "model-build-failed": with what the command printed, the report of failed tests included.
    """
    return tuple(build_model(project, model, say) for model in project.models)


def build_folder(root: Path) -> Path:
    """Where packages are kept from build to build: `build/transpile`, or $TRANSPILE_BUILD_DIR."""
    return Path(os.environ.get(FOLDER_VARIABLE) or root / FOLDER).resolve()


def build_model(project: Project, model: ModelSpec, say: Say) -> Built:
    """One model, transpiled if it has to be. Raises TranspileError "model-build-failed"."""
    kept = build_folder(project.root)
    folder = kept / model.name
    folder.mkdir(parents=True, exist_ok=True)
    (kept / ".gitignore").write_text("*\n", encoding="ascii")
    with _alone(folder):
        generated = folder / model.package
        if is_current(project, model):
            say(f"{model.name}: up to date")
            return Built(model, generated)
        say(f"{model.name}: transpiling {model.source}")
        (folder / STAMP).unlink(missing_ok=True)
        read = _transpile(project, model, folder, kept)
        beside = _bundle(model, folder, say)
        stamp = {
            **_declared(project, model),
            "read": _hashes(project.root, read["files"]),
            "distributions": read["distributions"],
            "package": _tree_hash(generated),
            "beside": _hashes(folder, beside),
        }
        (folder / STAMP).write_text(json.dumps(stamp, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return Built(model, generated)


def _bundle(model: ModelSpec, folder: Path, say: Say) -> list[str]:
    """Leave out the weights, if the wheel is to be without them; the names of the files that are kept in `folder`."""
    for old in folder.glob("*.safetensors"):
        old.unlink()
    kept = leave_out_weights(folder / model.package, model.bundle_weights, folder)
    for file in kept:
        say(f"{model.name}: its weights are in {file}")
    return [file.name for file in kept]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two builds of one project at once take turns."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _transpile(project: Project, model: ModelSpec, folder: Path, kept: Path) -> Mapping[str, Any]:
    """Run the command; what the model was found to be made of."""
    with tempfile.TemporaryDirectory(prefix="transpile-build-") as scratch:
        record = Path(scratch) / "read.json"
        arguments = [str(record), str(project.root), "--", "--verbose", *model.arguments(project.root, folder)]
        # `-B`: no compiled files in the project's folders.
        command = [sys.executable, "-B", "-m", "transpiler.watched", *arguments]
        done = subprocess.run(
            command, cwd=project.root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode:
            raise TranspileError(
                "model-build-failed",
                f"The model {model.name!r} ({model.source}) could not be built; transpile printed:\n\n{done.stdout}",
            )
        read: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    if kept.is_relative_to(project.root):  # what an earlier build left there is no part of the model
        own = f"{kept.relative_to(project.root).as_posix()}/"
        read["files"] = [path for path in read["files"] if not path.startswith(own)]
    return read


# --- the stamp ----------------------------------------------------------------------------------------------


def is_current(project: Project, model: ModelSpec) -> bool:
    """Whether the model's package is there, whole, and made of what there is now."""
    folder = build_folder(project.root) / model.name
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        declared = json.loads(json.dumps(_declared(project, model)))
        return (
            all(stamp.get(key) == value for key, value in declared.items())
            and stamp["read"] == _hashes(project.root, stamp["read"])
            and stamp["distributions"] == {name: _version(name) for name in stamp["distributions"]}
            and stamp["package"] == _tree_hash(folder / model.package)
            and stamp["beside"] == _hashes(folder, stamp["beside"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _declared(project: Project, model: ModelSpec) -> dict[str, Any]:
    """What is known before the model is run."""
    depends = [path for glob in model.depends for path in project.root.glob(glob) if path.is_file()]
    named = [*model.files(), *(path.relative_to(project.root).as_posix() for path in depends)]
    return {
        "format": FORMAT,
        "options": asdict(model),
        "files": _hashes(project.root, sorted(set(named))),
        "tools": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "instruction sets": _instruction_sets(model),
            "compiler": os.environ.get("CC", ""),
            "transpiler": _own_hash(),
        },
    }


def _instruction_sets(model: ModelSpec) -> list[str]:
    """Those that come out: where none or "native" is named, it depends on the environment or the machine."""
    from transpiler.target import load_groups

    groups = load_groups(model.targets, model.isa, (), model.triple)
    return [target.variant.name for group in groups.values() for target in group]


def _hashes(root: Path, paths: Sequence[str] | Mapping[str, Any]) -> dict[str, str | None]:
    """By path; None for a file that is not there: one that was looked for may come."""
    return {path: _hash(root / path) if (root / path).is_file() else None for path in paths}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tree_hash(folder: Path) -> str:
    """Of the names and contents of all files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder).as_posix()}\0{_hash(path)}\n".encode())
    return digest.hexdigest()


@cache
def _own_hash() -> str:
    """Of the transpiler itself: a checkout changes without changing its version."""
    digest = hashlib.sha256()
    for folder in dict.fromkeys([PACKAGE, *map(tree, ("templates", "targets", "schedules"))]):
        digest.update(_tree_hash(folder).encode())
    return digest.hexdigest()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


# --- putting packages into place ----------------------------------------------------------------------------


def put_in_place(built: Built, parent: Path | None) -> Path:
    """Copy the package into the folder of its parent package, for an editable install, where sources are imported
    from where they lie. Only a package that was generated is ever replaced.

    Raises:
        TranspileError: "no-parent-package"; "output-not-ours".
    """
    from transpiler.output import replace_folder

    if parent is None or not parent.is_dir():
        inside = ".".join(built.model.parents)
        raise TranspileError(
            "no-parent-package", f"The model {built.model.name!r} goes into the package {inside!r}, which is not here."
        )
    target = parent / built.model.package
    if target.is_symlink() or (target.exists() and not (target / "manifest.json").is_file()):
        raise TranspileError(
            "output-not-ours",
            f"{target} is in the way of the model {built.model.name!r}, and was not made by transpile.",
            hints=("move it away, or give the model another name in pyproject.toml",),
        )
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=parent))
    try:
        shutil.copytree(built.package, stage / "new", ignore=shutil.ignore_patterns("__pycache__"))
        replace_folder(stage / "new", target, stage / "old")
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return target


def path_file(built: Sequence[Built]) -> str:
    """The content of a .pth file that makes packages of their own importable from where they are kept, for an editable
    install; empty if there are none."""
    return "".join(f"{item.package.parent}\n" for item in built if not item.model.parents)


def wheel_tag(built: Sequence[Built]) -> str:
    """The tag of a wheel that carries the packages: any Python 3, on the systems that all of their libraries run on."""
    from transpiler.elf import platform_tag, read_needs

    libraries = [path for item in built for path in item.files().values() if path.suffix == ".so"]
    if not libraries:  # kernels for GPUs run on all
        return "py3-none-any"
    return f"py3-none-{platform_tag([read_needs(path.read_bytes()) for path in libraries])}"
