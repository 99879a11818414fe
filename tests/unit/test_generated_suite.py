"""The generated tests themselves: they pass on a right package and fail on planted errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.numpy_package import weights, write_package
from transpiler.testing import TestReport, run_generated_tests


def _failing_files(report: TestReport) -> set[str]:
    return {name.partition("::")[0] for name in report.failures}


def test_a_right_package_passes(tmp_path: Path) -> None:
    report = run_generated_tests(write_package(tmp_path))
    assert report.failures == (), report.output
    assert report.ok
    assert report.passed > 40
    assert report.skipped == 0, "a test that does not apply is not emitted"


def _live(folder: Path, begin: str = "pass") -> TestReport:
    """The comparison with a module whose `forward` starts with the statement `begin`."""
    source = folder / "model.py"
    source.write_text(
        "import torch\n"
        "class Tiny(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(3, 4)\n"
        "    def forward(self, x):\n"
        f"        {begin}\n"
        "        hidden = self.fc(x).relu()\n"
        "        return {'hidden': hidden, 'total': hidden.sum(dim=1)}\n"
    )
    return run_generated_tests(folder, arguments=("-k", "live", "--live", str(source)))


def test_the_live_comparison_runs_against_a_source(tmp_path: Path) -> None:
    report = _live(write_package(tmp_path))
    assert (report.passed, report.failed, report.skipped) == (4, 0, 0), report.output


def test_the_live_comparison_leaves_out_only_what_pytorch_has_no_half_form_of(tmp_path: Path) -> None:
    """The example, whose first element is -2, meets such a layer; the drawn cases meet another error."""
    said = """"'fc' not implemented for 'Half'" if x[0, 0] == -2 else "sizes differ\""""
    report = _live(
        write_package(tmp_path, precision="float16"),
        f"if torch.is_autocast_enabled('cpu'): raise RuntimeError({said})",
    )
    assert (report.passed, report.failed, report.skipped) == (0, 3, 1), report.output
    assert "sizes differ" in report.output


@pytest.mark.parametrize("key", ["fc.weight", "fc.bias"])
def test_a_weight_scaled_by_one_percent_fails(tmp_path: Path, key: str) -> None:
    state = weights()
    state[key] = state[key] * state[key].dtype.type(1.01)
    report = run_generated_tests(write_package(tmp_path, state=state))
    assert {"test_equivalence", "test_taps"} <= _failing_files(report)
    assert "in float64" in report.output


def test_an_axis_off_by_one_fails(tmp_path: Path) -> None:
    assert "test_equivalence" in _failing_files(run_generated_tests(write_package(tmp_path, axis=0)))


def test_a_hidden_nan_fails(tmp_path: Path) -> None:
    """A kernel that swallows NaN is right on every ordinary input."""
    report = run_generated_tests(write_package(tmp_path, scale="np.nan_to_num(x)"))
    assert any("nan_in_x" in name for name in report.failures), report.output


def test_an_unstable_result_fails(tmp_path: Path) -> None:
    noisy = "(x * np.float32(1 + 1e-7 * (__import__('itertools').count().__next__ and np.random.rand())))"
    report = run_generated_tests(write_package(tmp_path, scale=noisy))
    assert "test_stability" in _failing_files(report), report.output


def test_a_crash_is_a_failure(tmp_path: Path) -> None:
    report = run_generated_tests(write_package(tmp_path, scale="__import__('os').abort() or x"))
    assert not report.ok
    assert report.failures == ("pytest ended with exit code -6",)


def test_a_time_out_is_a_failure(tmp_path: Path) -> None:
    report = run_generated_tests(write_package(tmp_path, scale="__import__('time').sleep(60) or x"), timeout=3)
    assert not report.ok
    assert "stopped after 3 s" in report.output


def test_a_needed_torch_is_a_failure(tmp_path: Path) -> None:
    report = run_generated_tests(write_package(tmp_path, scale="(__import__('torch'), x)[1]"))
    assert "must not be needed by this package" in report.output
    assert "test_equivalence" in _failing_files(report)


def test_the_suite_is_deterministic_formatted_and_typed(tmp_path: Path) -> None:
    first, second = write_package(tmp_path / "a"), write_package(tmp_path / "b")
    names = sorted(path.relative_to(first) for path in (first / "tests").rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--target-version=py310", "--line-length=110"]
    rules = ["--select=E4,E7,E9,F,I,UP,B"]  # those of the package's own pyproject.toml
    subprocess.run([*ruff, "check", *options, *rules, "tests"], cwd=first, check=True)
    subprocess.run([*ruff, "format", *options, "--check", "tests"], cwd=first, check=True)
    (first / "src" / "tiny" / "py.typed").write_text("")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "tests"]
    done = subprocess.run(mypy, cwd=first, env={"MYPYPATH": "src"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
