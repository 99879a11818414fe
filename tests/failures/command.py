"""What the tests of the command share: a model, how it is run, and what a failure looks like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

from click.testing import Result

HEAD = "import torch\nfrom torch import nn\n"
NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(x)


def example_inputs():
    return (torch.ones(2, 3),)
"""

UNSUPPORTED = """
class Spectral(nn.Module):
    def forward(self, x):
        return torch._standard_gamma_grad(torch._standard_gamma_grad(x, x), x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Spectral()

    def forward(self, x):
        return self.block(x), torch._dirichlet_grad(x, x, x)


def example_inputs():
    return (torch.ones(2, 3),)
"""

Command = Callable[..., Result]


def pinned(text: str) -> str:
    return dedent(text).lstrip("\n")


def assert_fails(result: Result, code: int, text: str) -> None:
    """The exit code, exactly this text, nothing on standard output, and no output folder."""
    assert (result.exit_code, result.stderr, result.stdout) == (code, pinned(text), "")
    assert not Path("generated").exists()


def folder_state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
