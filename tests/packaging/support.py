"""A small model with a tied weight, environments to install into, and commands that see nothing of this one."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import torch
from torch import nn

SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


class TiedTagger(nn.Module):
    """Scores of a vocabulary for every position; what embeds a token also scores it, as in most language models."""

    def __init__(self, vocabulary: int = 160, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)
        self.score = nn.Linear(width, vocabulary, bias=False)
        self.score.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.score(torch.tanh(self.mix(self.embed(ids))))


def tagger(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """The model with drawn weights, and example ids."""
    torch.manual_seed(seed)
    return TiedTagger().eval(), torch.arange(8).reshape(1, 8) * 17 % 160


def run(*command: str | Path, cwd: Path, fails: bool = False, **variables: str) -> str:
    """What a command prints, without this process's Python paths; it must succeed, or fail if it is to."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST", "TRANSPILE"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def tool(*arguments: str | Path, cwd: Path) -> str:
    """`python -m` with this environment's packages."""
    return run(sys.executable, "-m", *arguments, cwd=cwd, PYTHONPATH=os.environ.get("PYTHONPATH", ""))


class Environment:
    """A virtual environment with nothing but this one's numpy; pip installs into it from outside."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.folder, self.python, self.site = folder, folder / "bin" / "python", folder / SITE
        numpy = Path(np.__file__).parent
        for part in (numpy, numpy.with_name("numpy.libs")):
            if part.is_dir():
                (self.site / part.name).symlink_to(part)

    def pip(self, *arguments: str | Path) -> str:
        first, *others = arguments
        options = ("--python", self.python, "--disable-pip-version-check", "--quiet")
        return run(sys.executable, "-m", "pip", *options, first, *others, cwd=self.folder)

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-index", "--no-deps", "--no-compile", wheel)

    def files(self) -> set[str]:
        """Everything in it but numpy."""
        return {path.relative_to(self.site).as_posix() for path in self.site.rglob("*") if path.is_file()}
