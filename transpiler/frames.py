"""Finding the user's line: stack traces of FX nodes and of exceptions, without torch's own frames."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from transpiler.errors import Location, TranspileError
from transpiler.source import LineIndex, Statement, index_lines, read_text

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


@dataclass(frozen=True)
class Frame:
    file: str
    line: int


def frames_of_trace(text: str | None) -> tuple[Frame, ...]:
    """The user's frames of an FX node's `stack_trace`, outermost first."""
    found = (Frame(match[1], int(match[2])) for match in _FRAME.finditer(text or ""))
    return tuple(frame for frame in found if not is_internal(frame.file))


def frames_of_exception(error: BaseException) -> tuple[Frame, ...]:
    """The user's frames of the exception or of what caused it, outermost first; () if no user code took
    part."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        entries = traceback.extract_tb(current.__traceback__)
        frames = tuple(Frame(e.filename, e.lineno or 0) for e in entries if not is_internal(e.filename))
        if frames:
            return frames
        current = current.__cause__ or current.__context__
    return ()


# Where a user's line would be looked for in vain: torch and what it computes shapes with.
_LIBRARIES = re.compile(r"/(site|dist)-packages/(torch|functorch|torchgen|sympy|mpmath|numpy)/")


@cache
def is_internal(file: str) -> bool:
    """Whether a file belongs to torch, to this package or to Python itself (not to the user or a model
    library)."""
    if file.startswith(("<", f"{Path(__file__).parent}/")) or _LIBRARIES.search(file):
        return True
    return file.startswith(f"{sysconfig.get_paths()['stdlib']}/") and "-packages/" not in file


@dataclass
class Files:
    """Reads files of frames once; shows them relative to the model's folder, or to the library they belong
    to."""

    root: Path | None = None
    _indexes: dict[str, LineIndex | None] = field(default_factory=dict)

    def index(self, file: str) -> LineIndex | None:
        if file not in self._indexes:
            try:
                self._indexes[file] = index_lines(read_text(Path(file)), file)
            except TranspileError:  # gone, or never a Python file: then there is nothing to show
                self._indexes[file] = None
        return self._indexes[file]

    def statement(self, frame: Frame) -> Statement | None:
        index = self.index(frame.file)
        return index.statements.get(frame.line) if index else None

    def location(self, frame: Frame, module_path: str = "") -> Location:
        index = self.index(frame.file)
        return Location(
            self.show(frame.file),
            frame.line,
            index.function(frame.line) if index else "",
            index.text(frame.line) if index else "",
            module_path,
        )

    def show(self, file: str) -> str:
        """A name for a file that does not depend on this machine."""
        path = Path(file)
        if self.root is not None and path.is_relative_to(self.root):
            return path.relative_to(self.root).as_posix()
        if "site-packages" in path.parts:
            at = len(path.parts) - path.parts[::-1].index("site-packages")
            return "/".join(path.parts[at:])
        return path.name


def user_location(frames: Iterable[Frame], files: Files, module_path: str = "") -> Location | None:
    """The innermost frame as a location."""
    found = tuple(frames)
    return files.location(found[-1], module_path) if found else None
