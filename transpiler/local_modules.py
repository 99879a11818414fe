"""The files that a model.py is made of besides itself: its neighbours, and the modules of the project it lies in."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import all_suffixes
from pathlib import Path

from transpiler.resources import PACKAGE

INSTALLED = ("site-packages", "dist-packages")
# Where a module is: its file (none of a package without __init__.py), and the folders of its submodules.
Place = tuple[Path | None, tuple[Path, ...]]


def local_modules(path: str | Path) -> dict[str, Path]:
    """The modules that a file imports, directly or through one another, and that nobody installs: name -> file.

    Local is what lies in the file's folder, or in the project around it: the nearest folder above that has a
    pyproject.toml. Imports are read, not run, so that the answer does not depend on what this process has imported;
    those that a program computes (`importlib.import_module(name)`) are not seen.
    """
    path = Path(path).resolve()
    importlib.invalidate_caches()
    finder = _Finder(path)
    found: dict[str, Path] = {}
    waiting = list(finder.imported(path, ""))
    while waiting:
        name = waiting.pop()
        file = finder.find(name)
        if name in found or file is None or file == path:
            continue
        found[name] = file
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting.extend(finder.imported(file, package))
    return dict(sorted(found.items()))


class _Finder:
    """Looks for modules as Python would when it runs `model`: in its folder first."""

    def __init__(self, model: Path) -> None:
        self.folder = model.parent
        projects = (folder for folder in model.parents if (folder / "pyproject.toml").is_file())
        self.root = next(projects, self.folder)
        self._places: dict[str, Place] = {}

    def find(self, name: str) -> Path | None:
        """The file of a module, if it is a local one."""
        file = self._place(name)[0]
        if file is None or not file.is_relative_to(self.root) or file.is_relative_to(PACKAGE):
            return None
        folders = file.relative_to(self.root).parts[:-1]
        return None if any(part in INSTALLED or part.startswith(".") for part in folders) else file

    def _place(self, name: str) -> Place:
        if name not in self._places:
            parent, _, last = name.rpartition(".")
            self._places[name] = _look(self._place(parent)[1], last) if parent else self._top(name)
        return self._places[name]

    def _top(self, name: str) -> Place:
        if name in sys.builtin_module_names or name in sys.stdlib_module_names:
            return None, ()
        beside = _look((self.folder,), name)
        if beside[0] is not None:
            return beside
        try:
            spec = importlib.util.find_spec(name)  # a name without dots: nothing is imported
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            return beside
        file = Path(spec.origin).resolve() if spec.has_location and spec.origin else None
        return file, tuple(map(Path, spec.submodule_search_locations or ()))

    def imported(self, file: Path, package: str) -> Iterator[str]:
        """The names of the modules that a file may import; `package` is the one that its relative imports start at."""
        if file.suffix != ".py":
            return
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return
        for node in _executed(tree.body):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from _prefixes(alias.name)
            elif isinstance(node, ast.ImportFrom):
                try:
                    base = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
                except ImportError:  # beyond the top: it does not run either
                    continue
                yield from _prefixes(base)
                yield from (f"{base}.{alias.name}" for alias in node.names)


def _look(folders: Iterable[Path], name: str) -> Place:
    """A module in one of the folders, as Python looks for it; a folder without __init__.py is a package too."""
    portions = []
    for folder in folders:
        for path in (folder / name / "__init__.py", *(folder / f"{name}{suffix}" for suffix in all_suffixes())):
            if path.is_file():
                return path.resolve(), (path.parent,) if path.name == "__init__.py" else ()
        if (folder / name).is_dir():
            portions.append(folder / name)
    return None, tuple(portions)


def _prefixes(name: str) -> Iterator[str]:
    """`a.b.c` imports `a` and `a.b` too."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _executed(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _executed(node.orelse)
        else:
            yield from _executed(ast.iter_child_nodes(node))
