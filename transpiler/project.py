"""The models that a project's own pyproject.toml lists, for the build hooks:

    [[tool.transpile.models]]
    name = "shop.classifier"
    source = "models/classifier.py"

Every key is that of the command's option, lists where the option can be repeated (docs/build_step.md).
"""

from __future__ import annotations

import difflib
import itertools
import keyword
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from transpiler.c_compiler import check_glibc
from transpiler.errors import Problem, TranspileErrors, UsageError, render
from transpiler.naming import DEFAULT_VERSION, package_name, package_version
from transpiler.request import PRECISIONS, TUNE, Precision
from transpiler.specs import parse_dynamic, parse_init, parse_input
from transpiler.target import host_triple, known_targets, load_groups
from transpiler.wheels import BundleWeights

FILE = "pyproject.toml"
TABLE = "tool.transpile.models"
BUNDLES = ("embed", "separate", "none")


@dataclass(frozen=True)
class ModelSpec:
    """One `[[tool.transpile.models]]`. Paths are relative to the project's folder, which they do not leave.

    `depends` are globs of further files that the model is made of; those that `model.py` imports or opens inside of the
    project are found without being named.
    """

    name: str
    source: str
    version: str = DEFAULT_VERSION
    entry: str | None = None
    init: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    weights: str | None = None
    dynamic: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("cpu",)
    isa: tuple[str, ...] = ()
    triple: str | None = None
    glibc: str | None = None
    taps: str | None = None
    tune: Literal["none", "fast", "full"] = "none"
    tuning_record: str | None = None
    exact: bool = False
    precision: Precision = "float32"
    rng: bool = False
    bundle_weights: BundleWeights = "embed"
    test: bool = True
    depends: tuple[str, ...] = ()

    @property
    def package(self) -> str:
        """The last part of the name: the import name of the package where it is generated."""
        return self.name.rpartition(".")[2]

    @property
    def parents(self) -> tuple[str, ...]:
        """The project's packages that the package is put into; none for one of its own."""
        return tuple(self.name.split(".")[:-1])

    def files(self) -> tuple[str, ...]:
        """What is named by paths, all of which exist or are reported."""
        return tuple(path for path in (self.source, self.weights, self.tuning_record) if path is not None)

    def arguments(self, root: Path, out: Path) -> list[str]:
        """The command line of `transpile` that makes the package in `out`."""
        given = ["--name", self.package, "--package-version", self.version, "--out", str(out), "--tune", self.tune]
        for flag, value in (
            ("--entry", self.entry),
            ("--taps", self.taps),
            ("--triple", self.triple),
            ("--glibc", self.glibc),
        ):
            given += [flag, value] if value is not None else []
        for flag, path in (("--weights", self.weights), ("--tuning-record", self.tuning_record)):
            given += [flag, str(root / path)] if path is not None else []
        for flag, values in (
            ("--target", self.targets),
            ("--input", self.inputs),
            ("--dynamic", self.dynamic),
            ("--isa", self.isa),
            ("--init", [f"{key}={value!r}" for key, value in self.init.items()]),
        ):
            given += [part for value in values for part in (flag, value)]
        given += ["--precision", self.precision] if self.precision != "float32" else []
        given += [
            flag for flag, on in (("--exact", self.exact), ("--rng", self.rng), ("--no-test", not self.test)) if on
        ]
        return [*given, "--", str(root / self.source)]


@dataclass(frozen=True)
class Project:
    """A project's folder and its models."""

    root: Path
    models: tuple[ModelSpec, ...]


def read_project(root: str | Path) -> Project:
    """The models of the project in `root`; none if its pyproject.toml has no `[tool.transpile]`.

    Raises:
        TranspileErrors: "bad-project": every key that is wrong, by its place in the file.
    """
    root = Path(root).resolve()
    try:
        data = tomllib.loads((root / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Project(root, ())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TranspileErrors([Problem("bad-project", f"{FILE} is not TOML: {error}")]) from error
    tool = data.get("tool")
    table = tool.get("transpile") if isinstance(tool, Mapping) else None
    if table is None:
        return Project(root, ())
    reader = _Reader(root)
    models = tuple(reader.models(table))
    reader.check_numpy(data, models)
    if reader.problems:
        raise TranspileErrors(reader.problems)
    return Project(root, models)


class _Reader:
    """Reads the table, and collects what is wrong with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[Problem] = []

    def wrong(self, place: str, why: str, hint: str = "") -> None:
        self.problems.append(Problem("bad-project", f"{FILE}: {place}: {why}", hints=(hint,) if hint else ()))

    def models(self, table: object) -> Iterator[ModelSpec]:
        if not isinstance(table, Mapping):
            self.wrong("tool.transpile", f"expected a table, got {_kind(table)}")
            return
        for key in table:
            if key != "models":
                self.wrong(f"tool.transpile.{key}", _unknown(str(key), ["models"]))
        entries = table.get("models", [])
        if not isinstance(entries, list):
            self.wrong(TABLE, f"expected tables, got {_kind(entries)}", f"write [[{TABLE}]], with two brackets")
            return
        names: dict[str, int] = {}
        for index, entry in enumerate(entries):
            before = len(self.problems)
            values = self.values(f"{TABLE}[{index}]", entry)
            if len(self.problems) > before:
                continue
            model = ModelSpec(**values)
            if names.setdefault(model.name, index) != index:
                self.wrong(f"{TABLE}[{index}].name", f"{model.name!r} is the name of {TABLE}[{names[model.name]}] too")
            self.check_machine(f"{TABLE}[{index}]", model)
            yield model
        for inner, outer in itertools.permutations(names, 2):
            if inner.startswith(f"{outer}."):
                place = f"{TABLE}[{names[inner]}].name"
                self.wrong(place, f"{inner!r} would lie inside of the package that is generated for {outer!r}")

    def check_machine(self, place: str, model: ModelSpec) -> None:
        """Keys that say together what the kernels are built for."""
        key = "triple"
        try:
            load_groups(model.targets, (), (), model.triple)
            key = "isa"
            load_groups(model.targets, model.isa, (), model.triple)
            key = "glibc"
            if model.glibc is not None:
                check_glibc(model.triple or host_triple(), model.glibc)
        except UsageError as error:
            self.wrong(f"{place}.{key}", render(error.problems))

    def values(self, place: str, entry: object) -> dict[str, Any]:
        """The fields of a model, each checked."""
        if not isinstance(entry, Mapping):
            self.wrong(place, f"expected a table, got {_kind(entry)}")
            return {}
        values = {}
        for key, value in entry.items():
            if key not in _READ:
                self.wrong(f"{place}.{key}", _unknown(str(key), list(_READ)))
                continue
            try:
                values[str(key).replace("-", "_")] = _READ[key](self, value)
            except UsageError as error:
                self.wrong(f"{place}.{key}", render(error.problems))
            except ValueError as error:
                self.wrong(f"{place}.{key}", str(error))
        for key in ("name", "source"):
            if key not in entry:
                self.wrong(f"{place}.{key}", "is missing")
        return values

    def check_numpy(self, data: Mapping[str, Any], models: Sequence[ModelSpec]) -> None:
        """A package imports numpy: the project that carries it must ask for it."""
        project = data.get("project")
        if not models or not isinstance(project, Mapping) or "dependencies" in (project.get("dynamic") or ()):
            return
        needs = project.get("dependencies") or []
        if not any(re.match(r"numpy\b(?!-)", str(item).strip(), re.IGNORECASE) for item in needs):
            self.wrong(
                "project.dependencies",
                "numpy is missing, which transpiled models need where they run",
                'dependencies = ["numpy>=1.26"]',
            )

    # --- the keys -------------------------------------------------------------------------------------------

    def text(self, value: object) -> str:
        if not isinstance(value, str) or not value or not value.isprintable():
            raise ValueError(f"expected a line of text, got {_shown(value)}")
        return value

    def texts(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError(f"expected a list of texts, got {_kind(value)}")
        return tuple(map(self.text, value))

    def flag(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false, got {_shown(value)}")
        return value

    def name(self, value: object) -> str:
        parts = self.text(value).split(".")
        for part in parts[:-1]:
            if not part.isidentifier() or keyword.iskeyword(part):
                raise ValueError(f"{part!r} cannot be the name of a Python package")
        package_name(parts[-1])
        return ".".join(parts)

    def version(self, value: object) -> str:
        return package_version(self.text(value))

    def inside(self, value: object) -> str:
        """A relative path or glob in the project: from elsewhere, an sdist would lack it."""
        path = PurePosixPath(self.text(value))
        if path.is_absolute() or ".." in path.parts or "\\" in str(value):
            raise ValueError(f"{str(value)!r} must be a path inside of the project's folder, with / between its parts")
        return str(path)

    def file(self, value: object) -> str:
        path = self.inside(value)
        if not (self.root / path).is_file():
            raise ValueError(f"there is no file {path!r} in {self.root}")
        if not (self.root / path).resolve().is_relative_to(self.root):
            raise ValueError(f"{path!r} is a link to a file outside of the project's folder")
        return path

    def source(self, value: object) -> str:
        path = self.file(value)
        if not path.endswith((".py", ".pt2", ".graph.json")):
            raise ValueError(f"{path!r} is no model: give model.py, model.pt2 or model.graph.json")
        return path

    def init(self, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a table, got {_kind(value)}")
        for key, item in value.items():
            if parse_init(f"{key}={item!r}").value != item:
                raise ValueError(f"{key}: expected numbers, texts, bools and lists of them, got {_shown(item)}")
        return dict(value)

    def inputs(self, value: object) -> tuple[str, ...]:
        return tuple(text for text in self.texts(value) if parse_input(text))

    def dynamic(self, value: object) -> tuple[str, ...]:
        return tuple(text for text in self.texts(value) if parse_dynamic(text))

    def targets(self, value: object) -> tuple[str, ...]:
        names = self.texts(value)
        for name in names:
            if name not in known_targets():
                raise ValueError(f"unknown target {name!r}; known: {', '.join(known_targets())}")
        if not names:
            raise ValueError("expected at least one target")
        return names

    def tune(self, value: object) -> str:
        return self.choice(value, TUNE)

    def choice(self, value: object, known: Sequence[str]) -> str:
        if value not in known:
            raise ValueError(f"expected {', '.join(known[:-1])} or {known[-1]}, got {_shown(value)}")
        return str(value)

    def precision(self, value: object) -> str:
        return self.choice(value, PRECISIONS)

    def bundle_weights(self, value: object) -> str:
        return self.choice(value, BUNDLES)

    def depends(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError(f"expected a list of paths, got {_kind(value)}")
        globs = tuple(map(self.inside, value))
        for glob in globs:
            if not any(path.is_file() for path in self.root.glob(glob)):
                raise ValueError(f"no file in {self.root} matches {glob!r}")
        return globs


_READ: dict[str, Callable[[_Reader, object], Any]] = {
    "name": _Reader.name,
    "source": _Reader.source,
    "entry": _Reader.text,
    "init": _Reader.init,
    "inputs": _Reader.inputs,
    "weights": _Reader.file,
    "dynamic": _Reader.dynamic,
    "targets": _Reader.targets,
    "isa": _Reader.texts,
    "triple": _Reader.text,
    "glibc": _Reader.text,
    "taps": _Reader.text,
    "tune": _Reader.tune,
    "tuning-record": _Reader.file,
    "exact": _Reader.flag,
    "precision": _Reader.precision,
    "rng": _Reader.flag,
    "version": _Reader.version,
    "bundle-weights": _Reader.bundle_weights,
    "test": _Reader.flag,
    "depends": _Reader.depends,
}


def _unknown(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"there is no such key{meant} Known: {', '.join(known)}" if meant else f"unknown; known: {', '.join(known)}"


def _kind(value: object) -> str:
    words = {dict: "a table", list: "a list", str: "a text", bool: "a bool", int: "a number", float: "a number"}
    return words.get(type(value), type(value).__name__)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
