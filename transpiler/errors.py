"""User errors as data, and the one place that renders them.

An error that a user can cause is a `TranspileError`; a bug of ours is a builtin exception.
Several problems that are found together are raised together as a `TranspileErrors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Location:
    """A place in the user's source: file, line (from 1), function, the line's text and the module path."""

    file: str
    line: int
    function: str = ""
    text: str = ""
    module_path: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}"
        if self.function:
            where += f", in {self.function}"
        if self.module_path:
            where += f"  ({self.module_path})"
        return where


@dataclass(frozen=True)
class Problem:
    """One reason: a stable `code` for tests and searches, what happened, where, and what to do about it."""

    code: str
    message: str
    locations: tuple[Location, ...] = ()
    notes: tuple[str, ...] = ()
    hints: tuple[str, ...] = field(default=())


class TranspileErrors(Exception):
    """The model, its inputs or its weights cannot be transpiled; `problems` lists every reason found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(render(self.problems))


class TranspileError(TranspileErrors):
    """A single reason."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        locations: Sequence[Location] = (),
        notes: Sequence[str] = (),
        hints: Sequence[str] = (),
    ) -> None:
        super().__init__([Problem(code, message, tuple(locations), tuple(notes), tuple(hints))])

    @property
    def code(self) -> str:
        return self.problems[0].code


class UsageError(TranspileError):
    """The command or the call itself is wrong (exit code 2): an unknown target, an input spec that does not parse."""


def render(problems: Sequence[Problem]) -> str:
    """The text shown to users: message, location with its source line, notes, hints; problems by a blank line."""
    return "\n\n".join(_render_one(problem) for problem in problems)


def _render_one(problem: Problem) -> str:
    lines = [problem.message]
    for location in problem.locations:
        lines.append(f"  {location}")
        if location.text:
            lines.append(f"    {location.line} | {location.text}")
    lines.extend(f"  Note: {note}" for note in problem.notes)
    lines.extend(f"  Hint: {hint}" for hint in problem.hints)
    return "\n".join(lines)


def unknown(kind: str, name: str, known: Sequence[str], *, code: str) -> UsageError:
    """A failed lookup shows the choices: `Unknown target 'cudaa'; known: cpu, cuda, vulkan.`"""
    return UsageError(code, f"Unknown {kind} {name!r}; known: {', '.join(sorted(known))}.")
