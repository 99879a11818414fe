"""`transpile` with a record of what the model was made of:

    python -m transpiler.watched RECORD ROOT [DEPFILE TARGET] -- ARGUMENTS

A model.py is a program: it imports its neighbours and opens files. Builds that are to be repeated when one of them
changes need their names. Python's audit hook tells them, and cannot be taken away again: hence a process of its own,
which also keeps models with neighbours of the same name apart.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def run(record: Path, root: Path, arguments: Sequence[str]) -> int:
    """Run `transpile ARGUMENTS`; on success `record` lists the files in `root` that were read, and the versions of the
    distributions that were imported. Returns the command's exit code."""
    opened: set[str] = set()
    inside = f"{root.resolve()}{os.sep}"

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event != "open":
            return
        path, mode, _ = details
        # Without a mode it is os.open, of folders for the most part, by names relative to another.
        if isinstance(path, str) and isinstance(mode, str) and mode[:1] not in ("w", "a", "x"):
            opened.add(os.path.abspath(path))

    sys.addaudithook(watch)
    watch_safetensors(opened)
    from transpiler.cli import main

    code = main.main(list(arguments), prog_name="transpile", standalone_mode=False)
    if code:
        return int(code)
    modules = list(sys.modules.values())
    opened |= {str(module.__file__) for module in modules if getattr(module, "__file__", None)}
    sources = sorted({_source(path) for path in opened})
    files = [path.removeprefix(inside) for path in sources if path.startswith(inside) and _counts(path, inside)]
    record.write_text(json.dumps({"files": files, "distributions": _distributions()}, indent=1), encoding="utf-8")
    return 0


def watch_safetensors(opened: set[str]) -> None:
    """Weights are opened by compiled code, which no audit hook sees: `safe_open`, and all that is built on it and
    imported after this call, add what they open to `opened`."""
    import safetensors

    original = safetensors.safe_open

    class Watched:  # a class, as the original, which stands in annotations
        def __new__(cls, filename: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
            opened.add(os.path.abspath(os.fspath(filename)))
            return original(filename, *args, **kwargs)

    vars(safetensors)["safe_open"] = Watched


def write_depfile(record: Path, root: Path, depfile: Path, target: str) -> None:
    """The record's files as a rule for make and ninja: `target` is to be made again if one of them changes."""

    def escaped(path: str) -> str:
        return path.replace("$", "$$").replace("#", "\\#").replace(" ", "\\ ")

    files = [escaped(str(root.resolve() / file)) for file in json.loads(record.read_text(encoding="utf-8"))["files"]]
    existing = [file for file in files if "\n" not in file]
    depfile.write_text(f"{escaped(target)}: {' '.join(existing)}\n", encoding="utf-8")


def _source(path: str) -> str:
    """The .py of a compiled module, whose file is what the import system opens."""
    if not path.endswith(".pyc"):
        return path
    try:
        return importlib.util.source_from_cache(path)
    except ValueError:
        return path


def _counts(path: str, inside: str) -> bool:
    """Whether a file is the model's own; what lies in hidden folders (a virtual environment, git) is not."""
    folders = Path(path.removeprefix(inside)).parts[:-1]
    return not path.startswith(sys.prefix + os.sep) and not any(part.startswith(".") for part in folders)


def _distributions() -> dict[str, str]:
    """What was imported from installed packages, by version."""
    top = {name.partition(".")[0] for name in sys.modules}
    owners = metadata.packages_distributions()
    names = {owner for name in top for owner in owners.get(name, ())}
    return {name: metadata.version(name) for name in sorted(names)}


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    separator = sys.argv.index("--")
    given = sys.argv[1:separator]
    exit_code = run(Path(given[0]), Path(given[1]), sys.argv[separator + 1 :])
    if exit_code == 0 and len(given) == 4:
        write_depfile(Path(given[0]), Path(given[1]), Path(given[2]), given[3])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
