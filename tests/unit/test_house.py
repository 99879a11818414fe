"""The project's own hygiene: lint, format, types, and texts that other files rely on."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def passes(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint() -> None:
    passes("ruff", "check", ".")


def test_format() -> None:
    passes("ruff", "format", "--check", ".")


def test_types() -> None:
    passes("mypy")


def test_constraints_fit_the_declared_ranges() -> None:
    """Every direct dependency has an exact version, and it lies in its range."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/tour.md", "docs/operators.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in target or ((ROOT / page).parent / target).exists(), target


def test_the_readme_has_the_test_command() -> None:
    """.ci/run looks for the marker and runs the block after it."""
    after = (ROOT / "README.md").read_text().partition("<!-- test command")[2]
    block = after.partition("```\n")[2].partition("\n```")[0]
    assert block.endswith("-m pytest -n 2 --dist worksteal --durations=20")


def test_heavy_imports_wait() -> None:
    code = "import sys, transpiler.cli, transpiler.api; assert not {'torch', 'tvm', 'libcst'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
