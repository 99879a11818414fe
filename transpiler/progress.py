"""What the pipeline tells about its progress; the command line decides how it looks."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called by the pipeline: `stage` begins a step, `advance` counts within it, `warn` is for the user to read."""

    def stage(self, text: str) -> None: ...
    def advance(self, done: int, total: int) -> None: ...
    def warn(self, text: str) -> None: ...


class Silent:
    """No output; warnings are kept for the report."""

    def stage(self, text: str) -> None: ...
    def advance(self, done: int, total: int) -> None: ...
    def warn(self, text: str) -> None: ...
