"""How progress looks: one live line on a terminal, plain lines when the output goes to a file or a pipe.

Everything here goes to standard error; standard output is for the result.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

# A plain log gets a line of counting at most this often.
PLAIN_SECONDS = 5.0


class ConsoleProgress:
    """A `transpiler.progress.Progress` that shows something; leave its `with` block before the result is shown.

    With `timing`, every finished stage is followed by the seconds it took.
    """

    def __init__(self, timing: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.timing = timing
        self.clock = clock
        self.started: float | None = None
        self.text = ""

    def stage(self, text: str) -> None:
        self._finish()
        self.text, self.started = text, self.clock()
        self._begin()

    def advance(self, done: int, total: int) -> None:
        raise NotImplementedError

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}")

    def note(self, text: str) -> None:
        if self.timing:
            self._line(text)

    def _finish(self) -> None:
        if self.started is not None and self.timing:
            self._line(f"{self.clock() - self.started:7.2f} s  {self.text}")
        self.started = None

    def _begin(self) -> None:
        raise NotImplementedError

    def _line(self, text: str) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()


class PlainProgress(ConsoleProgress):
    """A line per stage, and while one counts for long, a line now and then."""

    def __init__(
        self, stream: TextIO | None = None, timing: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(timing, clock)
        self.stream = stream
        self.shown = 0.0

    def _begin(self) -> None:
        self.shown = self.clock()
        if not self.timing:  # with timing, the line comes when the stage is over
            self._line(self.text)

    def advance(self, done: int, total: int) -> None:
        now = self.clock()
        if now - self.shown >= PLAIN_SECONDS and done < total:
            self.shown = now
            self._line(f"{self.text}: {done} of {total}")

    def _line(self, text: str) -> None:
        print(text, file=self.stream or sys.stderr, flush=True)


class LiveProgress(ConsoleProgress):
    """One line that is redrawn: stage, n of m, seconds; it disappears at the end."""

    def __init__(
        self, stream: TextIO | None = None, timing: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        super().__init__(timing, clock)
        # The stream is held here: tracing redirects sys.stderr for a while, the line goes on.
        self.rich: RichProgress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=Console(file=stream or sys.stderr, highlight=False, markup=False),
            transient=True,
        )
        self.task: TaskID | None = None

    def _begin(self) -> None:
        if self.task is not None:
            self.rich.remove_task(self.task)
        self.task = self.rich.add_task(self.text, total=None, count="")

    def advance(self, done: int, total: int) -> None:
        if self.task is not None:
            self.rich.update(self.task, completed=done, total=total, count=f"{done} of {total}")

    def _line(self, text: str) -> None:
        self.rich.console.print(text)

    def __enter__(self) -> Self:
        self.rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()
        self.rich.stop()


class QuietProgress(ConsoleProgress):
    """Nothing at all."""

    def stage(self, text: str) -> None: ...
    def advance(self, done: int, total: int) -> None: ...
    def warn(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...


def plain_progress() -> PlainProgress:
    """Plain lines on standard error."""
    return PlainProgress()


def progress_for(*, quiet: bool = False, verbose: bool = False) -> ConsoleProgress:
    """What suits standard error: a live line on a terminal, else plain lines."""
    if quiet:
        return QuietProgress()
    return LiveProgress(timing=verbose) if sys.stderr.isatty() else PlainProgress(timing=verbose)
