"""The command as a fixture."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from click.testing import CliRunner, Result

from tests.failures.command import HEAD, NET, Command
from transpiler.cli import main


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command(source, *options)`: transpile net.py in an empty folder, quietly."""
    monkeypatch.chdir(tmp_path)

    def run(source: str | None = NET, *options: str, model: str = "net.py") -> Result:
        if source is not None:
            Path("net.py").write_text(HEAD + dedent(source))
        return CliRunner().invoke(main, [model, "--quiet", *options], prog_name="transpile")

    return run
