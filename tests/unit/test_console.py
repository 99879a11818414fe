"""Progress as a log and as a live line."""

import io

import pytest

from transpiler.console import (
    LiveProgress,
    PlainProgress,
    QuietProgress,
    plain_progress,
    progress_for,
)


def test_a_log_has_a_line_per_stage_and_counts_now_and_then() -> None:
    stream = io.StringIO()
    now = [0.0]
    with PlainProgress(stream, clock=lambda: now[0]) as progress:
        progress.stage("compiling")
        for done in range(1, 21):
            now[0] += 1.5
            progress.advance(done, 20)
        progress.warn("slow")
        progress.stage("testing")
    assert stream.getvalue().splitlines() == [
        "compiling",
        "compiling: 4 of 20",
        "compiling: 8 of 20",
        "compiling: 12 of 20",
        "compiling: 16 of 20",
        "warning: slow",
        "testing",
    ]


def test_times_of_stages() -> None:
    stream = io.StringIO()
    now = [0.0]
    with PlainProgress(stream, timing=True, clock=lambda: now[0]) as progress:
        progress.stage("compiling")
        now[0] = 2.25
        progress.stage("testing")
        now[0] = 3.0
    assert stream.getvalue().splitlines() == ["   2.25 s  compiling", "   0.75 s  testing"]


@pytest.mark.parametrize("timing", [False, True])
def test_a_live_line_stands_alone(timing: bool) -> None:
    stream = io.StringIO()
    with LiveProgress(stream, timing=timing) as progress:
        progress.stage("compiling [kernels]")  # not markup
        progress.advance(3, 20)
        progress.warn("slow [really]")
        (task,) = progress.rich.tasks
        assert (task.description, task.fields["count"]) == ("compiling [kernels]", "3 of 20")
        progress.stage("testing")
        (task,) = progress.rich.tasks
        assert (task.description, task.total) == ("testing", None)
    assert "warning: slow [really]" in stream.getvalue()
    assert (" s  compiling [kernels]" in stream.getvalue()) == timing


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with QuietProgress() as progress:
        progress.stage("a")
        progress.advance(1, 2)
        progress.warn("b")
    assert capsys.readouterr() == ("", "")


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress_for(quiet=True), QuietProgress)
    assert isinstance(progress_for(), PlainProgress)  # pytest's stderr is no terminal
    assert isinstance(plain_progress(), PlainProgress)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert isinstance(progress_for(verbose=True), LiveProgress)
