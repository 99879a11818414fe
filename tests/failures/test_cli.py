"""What a newcomer sees when something is wrong: messages, exit codes, and that nothing half-written is left."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.failures.command import HEAD, NET, Command, assert_fails, folder_state
from transpiler.cli import main
from transpiler.testing import TestReport

ROOT = Path(__file__).parents[2]

# --- 1: the machine -----------------------------------------------------------------------------------------


def test_no_c_compiler(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert_fails(
        command(),
        1,
        """
        Error: A C compiler is needed to link the kernels; none of cc, gcc and clang was found.
          Hint: Install one (`apt-get install gcc`), or name yours: `CC=/path/to/cc transpile ...`.

        net.py was not transpiled; nothing was written.
        """,
    )


def test_output_folder_is_not_ours(command: Command) -> None:
    Path("out/net").mkdir(parents=True)
    Path("out/net/thesis.tex").write_text("years of work")
    assert_fails(
        command(NET, "--out", "out"),
        1,
        """
        Error: The output folder out/net holds files that were not made by transpile; nothing was written.
          Hint: Give another folder with --out, or move that one away.

        net.py was not transpiled; nothing was written.
        """,
    )
    assert folder_state(Path("out")) == {"net/thesis.tex": b"years of work"}


def test_output_folder_cannot_be_made(command: Command) -> None:
    Path("file").write_text("")
    assert_fails(
        command(NET, "--out", "file/out"),
        1,
        f"""
        Error: The output folder file/out/net cannot be made: {Path("file").absolute()} is a file.
          Hint: Give another folder with --out.

        net.py was not transpiled; nothing was written.
        """,
    )


def test_output_folder_may_not_be_written(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before anything is compiled. (The permission is made up: root may write everywhere.)"""
    monkeypatch.setattr("transpiler.output.os.access", lambda path, mode: Path(path) != Path.cwd())
    assert_fails(
        command(NET, "--out", "out"),
        1,
        f"""
        Error: The output folder out/net cannot be made: you may not write in {Path.cwd()}.
          Hint: Give another folder with --out.

        net.py was not transpiled; nothing was written.
        """,
    )


# --- 2: usage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "cudaa"], "Unknown target 'cudaa'; known: cpu, cuda, vulkan."),
        (["--target", "cuda", "--arch", "sm_70"], "Unknown architecture 'sm_70'; known: sm_80, sm_90a."),
        (
            ["--target", "cuda", "--triple", "aarch64-unknown-linux-gnu"],
            "Target 'cuda' has no instruction sets: --triple is for CPUs.\n"
            "  Hint: its kernels run on every device that has the features they need",
        ),
        (
            ["--target", "vulkan", "--isa", "avx2"],
            "Target 'vulkan' has no instruction sets: --isa is for CPUs.\n"
            "  Hint: its kernels run on every device that has the features they need",
        ),
        (["--isa", "sse9"], "Unknown ISA 'sse9'; known: avx2, avx512, baseline, native, neon."),
        (["--entry", "Nett"], "Unknown entry 'Nett'; net.py defines: Net."),
        (["--init", "width=3"], "Net() takes no argument width; it takes none."),
        (["-v"], "-q and -v contradict each other."),
        (["--init", "a=1", "--init", "a=2"], "--init a is given twice."),
    ],
)
def test_wrong_usage(command: Command, options: list[str], message: str) -> None:
    assert_fails(command(NET, *options), 2, f"Error: {message}\n\nTry 'transpile --help'.\n")


@pytest.mark.parametrize(
    ("option", "text", "why"),
    [
        ("input", "3,224,224", "expected [NAME=]SHAPE[:DTYPE[LO..HI]]"),
        ("input", "x=2x3:float31", "unknown dtype 'float31'; known: "),
        ("input", "x=2x3:int64[5..1]", "the bounds 5..1 are empty"),
        ("init", "width", "expected KEY=VALUE"),
        ("dynamic", "batch", "expected NAME.DIM=SYMBOL[:LO..HI]"),
    ],
)
def test_a_specification_that_cannot_be_read(command: Command, option: str, text: str, why: str) -> None:
    result = command(NET, f"--{option}", text)
    assert result.exit_code == 2
    first, hint = result.stderr.splitlines()[:2]
    assert first.startswith(f"Error: Cannot read --{option} {text!r}: {why}")
    assert hint.startswith(f"  Hint: for example: --{option} ")


def test_no_model_file(command: Command) -> None:
    assert_fails(command(None), 2, "Error: net.py does not exist.\n\nTry 'transpile --help'.\n")


def test_taps_that_match_nothing(command: Command) -> None:
    assert_fails(
        command(NET, "--taps", "layer*"),
        2,
        """
        Error: --taps 'layer*' matches no module.
          Hint: module paths are: fc

        Try 'transpile --help'.
        """,
    )


def test_a_bad_name(command: Command) -> None:
    result = command(NET, "--name", "my-net")
    assert result.exit_code == 2
    assert "--name my_net" in result.stderr


# --- 3: the generated tests fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.01, math.nan])
def test_failing_tests_leave_the_previous_package(
    command: Command, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """A wrong weight, planted while the package is built: its tests notice."""
    from transpiler import assembly

    assert command(NET, "--no-test").exit_code == 0
    before = folder_state(Path("generated/net"))
    prepare = assembly.run_prepare

    def planted(*arguments: Any) -> Any:
        return {name: array * np.float32(factor) for name, array in prepare(*arguments).items()}

    monkeypatch.setattr(assembly, "run_prepare", planted)
    result = command(NET)
    assert result.exit_code == 3
    lines = result.stderr.splitlines()
    assert lines[0].startswith("Error: The generated tests failed: ")
    assert any(line.startswith("  Note: failed: test_equivalence::") for line in lines)
    assert lines[-2:] == [
        "  Note: the failed package is in generated/net.failed",
        "  Hint: read it with: python -m pytest generated/net.failed/tests",
    ]
    assert folder_state(Path("generated/net")) == before
    assert sorted(path.name for path in Path("generated").iterdir()) == ["net", "net.failed"]


def test_many_failures_are_not_all_listed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from transpiler import testing

    report = TestReport(1, 30, 0, "pytest's own output", 0.1, tuple(f"test_x::test_{i}" for i in range(30)))
    monkeypatch.setattr(testing, "run_generated_tests", lambda folder: report)
    result = command()
    assert result.exit_code == 3
    assert result.stderr.count("failed: test_x") == 20
    assert "... and 10 more" in result.stderr


# --- interrupted, and our own bugs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage",
    [
        "pipeline._front_end",
        "pipeline._lower",
        "backends.cpu.Cpu.compile",
        "recording.measure_errors",
        "pipeline._run_tests",
    ],
)
def test_ctrl_c_leaves_nothing(command: Command, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"transpiler.{stage}", interrupted)
    assert_fails(command(), 130, "Interrupted; nothing half-written was left.\n")


def test_ctrl_c_while_the_package_is_moved(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from transpiler import output

    assert command(NET, "--no-test").exit_code == 0
    before = folder_state(Path("generated"))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(output, "replace_folder", interrupted)
    assert command(NET.replace("4)", "5)"), "--no-test").exit_code == 130
    assert folder_state(Path("generated")) == before


def test_a_real_signal(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(HEAD + NET + "\nimport time\nprint('here', flush=True)\ntime.sleep(60)\n")
    child = subprocess.Popen(
        [sys.executable, "-m", "transpiler", "net.py"], cwd=tmp_path, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell's background job ignores Ctrl-C, and so would the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "here\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors.splitlines() == ["tracing the model", "Interrupted; nothing half-written was left."]
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["net.py"]


def test_a_bug_of_ours_says_so(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from transpiler import pipeline

    def broken(*_: object) -> None:
        raise KeyError("conv1")

    monkeypatch.setattr(pipeline, "_lower", broken)
    assert_fails(
        command(),
        1,
        """
        Error: Internal error: KeyError: 'conv1'
          Note: this is a bug in the transpiler, not in your model; nothing was written
          Hint: please run the command again with --traceback and report what it prints
        """,
    )
    shown = command(NET, "--traceback").stderr
    assert "Traceback (most recent call last)" in shown
    assert "in broken" in shown
    assert "please report it with the text above" in shown


def test_user_errors_have_a_traceback_on_demand(command: Command) -> None:
    assert "Traceback" not in command("x = 1\n").stderr
    assert "Traceback (most recent call last)" in command("x = 1\n", "--traceback").stderr


# --- 0 ------------------------------------------------------------------------------------------------------


def test_help_is_quick() -> None:
    """A cold process, without torch, TVM and numpy: by its processor time, which waits for nobody."""
    code = (
        "import sys; from transpiler.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'torch', 'tvm', 'numpy', 'rich'} & set(sys.modules)\n"
    )
    seconds = []
    for _ in range(3):
        start = os.times()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        end = os.times()
        seconds.append(end.children_user + end.children_system - start.children_user - start.children_system)
    assert done.stdout.startswith("Usage: ")
    assert min(seconds) < 0.5


def test_success_says_what_to_do_next(command: Command) -> None:
    Path("net.py").write_text(HEAD + NET)
    result = CliRunner().invoke(main, ["net.py"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("generated/net: 1 kernel for cpu (")
    assert lines[1].startswith("  tests  ")
    assert " passed" in lines[1]
    assert lines[2].startswith("  error  output0: ")
    assert lines[3:] == [
        "  use    pip install ./generated/net",
        '         python -c "import numpy as np; from net import Model; '
        "print(Model()(x=np.zeros((2, 3), 'float32')))\"",
    ]
    assert result.stderr.splitlines()[0] == "tracing the model"


def test_quiet_is_silent(command: Command) -> None:
    result = command(NET, "--no-test")
    assert (result.exit_code, result.output) == (0, "")
    manifest = json.loads(Path("generated/net/src/net/manifest.json").read_text())
    assert manifest["built"]["cpu"]["verified"] is False


def test_verbose_shows_the_time_of_every_stage(command: Command) -> None:
    Path("net.py").write_text(HEAD + NET)
    result = CliRunner().invoke(main, ["net.py", "-v", "--no-test"])
    assert result.exit_code == 0, result.output
    assert [line.split(maxsplit=2)[2] for line in result.stderr.splitlines()][:2] == [
        "tracing the model",
        "scheduling kernels",
    ]
    assert "tests  not run" in result.stdout
