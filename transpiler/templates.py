"""The Jinja environments of the emitted package and of its C code: strict, and without anything that could decide."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from transpiler import checks, draw
from transpiler.resources import tree
from transpiler.target import known_targets

PLACEHOLDER = "__name__"
TARGET = "__target__"
# A file per target where there are several, else one without a target's name; a file that only several have.
PER_TARGET, ONLY_SEVERAL = f"src/{PLACEHOLDER}/prepare.py.jinja", f"src/{PLACEHOLDER}/model_{TARGET}.py.jinja"
RUNTIME = "runtime/"
# Files of the runtime that several targets need: those that do not have a folder of their own there.
FOR_SEVERAL = {
    f"{RUNTIME}{file}": frozenset({"vulkan", "cuda"})
    for file in ("idle.py", "launch_list.py", "launches.py", "replay.py")
}


@cache
def _environment(folder: str) -> Environment:
    return Environment(
        loader=FileSystemLoader(tree("templates") / folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def render(template: str, view: object, target: object = None) -> str:
    """One template of the package as text; one of a target's own reads `target` too.

    Raises:
        jinja2.UndefinedError: it asks for what the view has not.
    """
    return _environment("package").get_template(template).render(view=view, target=target)


def render_c(template: str, view: object) -> str:
    """As `render`, a template of the C code."""
    return _environment("runtime/cpu").get_template(template).render(view=view)


@cache
def package_tree(targets: tuple[str, ...]) -> tuple[tuple[str, bytes | None], ...]:
    """(path, content) of every file below templates/package that a package for `targets` has, sorted; the content of a
    template is None."""
    root = tree("templates") / "package"
    files = []
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith(".pyc"):
            name = path.relative_to(root).as_posix()
            if _needed(name.removeprefix(f"src/{PLACEHOLDER}/"), targets):
                files.append((name, None if name.endswith(".jinja") else path.read_bytes()))
    # What draws test inputs and compares with PyTorch is the very code that recorded the data.
    for module in (checks, draw):
        file = Path(str(module.__file__))
        files.append((f"src/{PLACEHOLDER}/runtime/{file.name}", file.read_bytes()))
    return tuple(sorted(files))


def _needed(path: str, targets: tuple[str, ...]) -> bool:
    """Whether a file of the package's own folder is for one of the targets: `runtime/<target>/` is for that one."""
    owner = path.removeprefix(RUNTIME).partition("/")[0] if path.startswith(RUNTIME) else ""
    if owner in known_targets():
        return owner in targets
    return path not in FOR_SEVERAL or not FOR_SEVERAL[path].isdisjoint(targets)


def emitted_paths(template: str, name: str, targets: tuple[str, ...]) -> dict[str, str | None]:
    """Path in the package `name` -> the target that it is rendered for; None for a file that is for all."""
    path = template.removesuffix(".jinja").replace(f"/{PLACEHOLDER}/", f"/{name}/")
    several = len(targets) > 1
    if template == ONLY_SEVERAL and not several:
        return {}
    if template == PER_TARGET:
        path = path.replace(".py", f"_{TARGET}.py") if several else path
        return {path.replace(TARGET, target): target for target in targets}
    if TARGET in path:
        return {path.replace(TARGET, target): target for target in targets}
    return {path: None}
