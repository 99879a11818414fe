"""`transpile MODEL --check`: every reason against a model at once, without compiling; a summary if there is none."""

from pathlib import Path
from textwrap import dedent

import pytest
from click.testing import CliRunner, Result

from transpiler.cli import main

HEAD = "import torch\nfrom torch import nn\n"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A check needs no C compiler and compiles no kernel."""

    def compiled(*_: object, **__: object) -> None:
        raise AssertionError("a kernel was compiled")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", "/no/such/compiler")
    monkeypatch.setattr("transpiler.pipeline._compile", compiled)


def check(source: str, *options: str) -> Result:
    Path("net.py").write_text(HEAD + dedent(source))
    return CliRunner().invoke(main, ["net.py", "--check", *options], prog_name="transpile")


@pytest.mark.usefixtures("no_compiler")
def test_a_supported_model_is_summarised() -> None:
    source = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(16, 4)

            def forward(self, x, ids):
                return self.fc(torch.relu(x))[ids], torch.relu(x)

        def example_inputs():
            return torch.ones(3, 16), torch.tensor([0, 2])
        """
    result = check(source, "--isa", "avx2")
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "net can be transpiled for cpu (avx2)",
            "  inputs      x: float32[3, 16], ids: int64[2]",
            "  outputs     output0: float32[2, 4], output1: float32[3, 16]",
            "  operators   4: 2 relu, 1 linear, 1 take",
            "  kernels     3, called 3 times",
            "  parameters  68; 1.0 kB when packed",
            "  dtypes      float32, int64",
        ],
    )
    assert [path.name for path in Path().iterdir()] == ["net.py"]


@pytest.mark.usefixtures("no_compiler")
def test_all_reasons_come_at_once() -> None:
    """Unknown operators, a use that is refused, and a kernel that cannot be scheduled, each with its line."""
    source = """
        for name in ("first", "second"):
            torch.library.define(f"check::{name}", "(Tensor x) -> Tensor")
            torch.library.impl(f"check::{name}", "default", lambda x: x.clone())
            torch.library.register_fake(f"check::{name}", torch.empty_like)

        class Net(nn.Module):
            def forward(self, x):
                first = torch.ops.check.first(x)
                wide = (x[:, None] + x[None, :]).cumsum(1).sum(1)
                return first + torch.ops.check.second(x), wide, torch.rand_like(x)

        def example_inputs():
            return (torch.zeros(50_000),)
        """
    result = check(source)
    assert (result.exit_code, result.stdout) == (1, "")
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert [error.partition(": ")[2][:38] for error in errors] == [
        "Unsupported operator 'check.first.defa",
        "Unsupported operator 'check.second.def",
        "Unsupported use of 'aten.rand_like.def",
        "Target 'cpu' cannot compute this: floa",
    ]
    for line in (11, 12, 13):
        assert f"net.py:{line}, in Net.forward" in result.stderr
    assert result.stderr.endswith("\nnet.py cannot be transpiled, for 4 reasons.\n")


@pytest.mark.usefixtures("no_compiler")
def test_wrong_usage_is_told_apart() -> None:
    assert check("class Net(nn.Module): pass", "--target", "cpuu").exit_code == 2
