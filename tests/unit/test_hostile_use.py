"""A package under the hands of users who do what they should not."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.unit import toy
from tests.unit.alone import python, runs
from transpiler.emit import emit_package, write_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(emit_package(toy.view()), tmp_path_factory.mktemp("out") / "toy")


def test_what_does_not_fit_is_refused(package: Path, tmp_path: Path) -> None:
    """With a pipe, which is not waited for, and a mask, which is not lost."""
    os.mkfifo(tmp_path / "pipe")
    runs(
        package,
        f"""
model, folder = Model(), {str(tmp_path)!r}
expected = model([x], ids=ids).hidden
masked = np.ma.masked_less(x, 0)
raises(TypeError, "x: a mask would be lost; fill the masked values", model, [masked], ids=ids)
raises(ValueError, "a mask would be lost", model.load_weights, {{"emb.weight": np.ma.masked_less(np.ones((5, 3)), 2)}})
assert (model([np.ma.masked_array(x)], ids=ids).hidden == expected).all()
for given in (folder + "/pipe", folder, "/dev/null"):
    raises(ValueError, "is not a file", Model, given)
raises(TypeError, "expected a mapping or the path of a safetensors file, got int", Model, 3)
raises(TypeError, "threads: expected an int, got str", Model, threads="2")
raises(ValueError, "threads: expected at least 1 and less than 2**31", Model, threads=2**31)
assert Model(threads=np.int64(2)).threads == 2
import copy, pickle
for function in (copy.copy, copy.deepcopy, pickle.dumps):
    raises(TypeError, "a model holds native memory and is neither copied nor pickled", function, model)
""",
    )
    assert "TRANSPILE_THREADS=all: expected a number" in python(package, "Model()", TRANSPILE_THREADS="all").stderr


def test_a_package_in_an_archive_says_so(package: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "toy.zip", "w") as archive:
        for path in (package / "src").rglob("*"):
            archive.write(path, path.relative_to(package / "src"))
    command = [sys.executable, "-c", "import toy; toy.Model()"]
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path / "toy.zip")}, capture_output=True, text=True)
    assert "PackageError" in done.stderr
    assert "toy is no folder: libraries and weights are loaded from files, so unpack the package" in done.stderr


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ("-O -W error -X dev -bb", {}),
        ("-I -OO", {}),
        ("-B", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}),
        ("-B", {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "PATH": ""}),
    ],
)
def test_python_may_be_started_in_any_way(package: Path, options: str, environment: dict[str, str]) -> None:
    """From another folder, a name with spaces and bytes that are no text, and nothing is written anywhere."""
    folder = package.parent / os.fsdecode(b"a b\xff%$\xc3\xa9")
    if not folder.exists():
        folder.symlink_to(package / "src")
    text = f"""
import os, sys
def watch(event, details):
    if event == "open" and (details[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        os._exit(99)
    if event in ("os.mkdir", "os.rename", "os.remove", "tempfile.mkstemp", "subprocess.Popen", "socket.connect"):
        os._exit(98)
sys.dont_write_bytecode = True
sys.addaudithook(watch)
sys.path.insert(0, os.fsdecode({os.fsencode(folder)!r}))
import runpy
for sys.argv[1] in ("info", "verify"):
    try:
        runpy.run_module("toy", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        assert not stop.code, stop.code
"""
    done = subprocess.run(
        [sys.executable, *options.split(), "-c", text, "command"], cwd="/", env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert b"the sample passed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("prepare {weights} {folder}", "error: [Errno 21] Is a directory"),
        ("prepare {weights} {folder}/none/x", "error: [Errno 2] No such file or directory"),
        ("prepare {folder}/none {folder}/x", "error: [Errno 2] No such file or directory"),
        ("prepare {folder} {folder}/x", "is not a file"),
        ("profile -n 1 --trace {folder}", "error: [Errno 21] Is a directory"),
        ("bench --threads 0", "--threads must be at least 1"),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_commands(package: Path, tmp_path: Path, arguments: str, complaint: str) -> None:
    weights = package / "src/toy/weights.cpu.safetensors"
    command = arguments.format(weights=weights, folder=tmp_path).split()
    done = subprocess.run(
        [sys.executable, "-B", "-m", "toy", *command], cwd=package / "src", capture_output=True, text=True
    )
    assert done.returncode in (1, 2)
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing half-written is left"


def test_output_that_nobody_reads(package: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-B", "-m", "toy", "info"], cwd=package / "src", stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_file_of_weights_is_replaced_as_a_whole(package: Path, tmp_path: Path) -> None:
    """A model that has mapped the file that is written anew keeps what it had."""
    runs(
        package,
        f"""
path = {str(tmp_path / "prepared")!r}
Model().save_prepared(path)
first = Model(path)
expected = first([x], ids=ids).hidden
second = Model(path)
second.load_weights({{name: np.zeros(item["shape"], item["dtype"]) for name, item in
                     first.manifest["weights"]["keys"].items()}})
second.save_prepared(path)
assert (first([x], ids=ids).hidden == expected).all()
assert (Model(path)([x], ids=ids).hidden != expected).any()
""",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]
