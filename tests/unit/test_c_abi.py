"""What C programs get of a package: header, dispatcher, pkg-config file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.unit import toy
from transpiler.c_abi import c_files
from transpiler.c_compiler import c_compiler
from transpiler.emit import emit_package, write_package
from transpiler.target import load_targets

# What is called depends on its first argument; numbers are printed one per line.
PROGRAM = r"""
#include <toy.h>
#include <stdio.h>
#include <string.h>
int main(int argc, char **argv) {
  toy_model *model;
  int64_t ids[] = {4, argc > 2 ? 5 : 1};
  float x[18], h[24], rows[4], same[18];
  for (int i = 0; i < 18; ++i) x[i] = i / 9.0f - 1;
  const void *inputs[] = {x, ids};
  void *outputs[] = {h, rows, same};
  if (toy_abi_version() != TOY_ABI_VERSION) return 9;
  if (toy_open(argc > 1 && *argv[1] ? argv[1] : NULL, 2, &model)) {
    printf("open: %s\n", toy_last_error());
    return 1;
  }
  int code = toy_run(model, TOY_FUNCTION_FORWARD, NULL, inputs, outputs, NULL);
  if (code) {
    printf("run %d: %s\n", code, toy_last_error());
  } else {
    printf("%s %d\n", toy_isa(), memcmp(x, same, sizeof x));
    for (int i = 0; i < 24; ++i) printf("%.9g\n", h[i]);
    for (int i = 0; i < 4; ++i) printf("%.9g\n", rows[i]);
    printf("%s %s %d\n", toy_input_name(0, 1), toy_input_type(0, 0), (int)toy_output_bytes(0, 0));
    printf("%s %d %s\n", toy_call_name(0, 1), (int)toy_function_count(), toy_function_name(1) ? "?" : "none");
  }
  toy_destroy(model);
  return code;
}
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(emit_package(toy.view()), tmp_path_factory.mktemp("out") / "toy") / "src" / "toy"


@pytest.fixture(scope="module")
def program(package: Path) -> Path:
    return built(package, package.parents[2], PROGRAM)


def built(package: Path, folder: Path, text: str, file: str = "main.c") -> Path:
    """A program against the package, as its pkg-config file says."""
    (folder / file).write_text(text)
    flags = [*pkg_config(package, "--cflags", "--libs"), *pkg_config(package, "--variable=rpath")]
    compiler = c_compiler().command
    command = [*compiler, "-Wall", "-Wextra", "-Werror", "-pedantic", file, *flags, "-o", "main"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "main"


def pkg_config(package: Path, *options: str) -> list[str]:
    name = package.name
    environment = {**os.environ, "PKG_CONFIG_PATH": str(package / "lib/pkgconfig")}
    done = subprocess.run(["pkg-config", *options, name], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def run(program: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_a_c_program_computes_what_python_does(program: Path) -> None:
    done = run(program)
    assert done.returncode == 0, done.stdout
    first, *numbers, types, names = done.stdout.splitlines()
    assert first == "baseline 0"
    x = np.arange(18, dtype=np.float32).reshape(2, 3, 3) / np.float32(9) - 1
    hidden, rows = toy.expected(x, np.array([4, 1]), toy.state())
    np.testing.assert_allclose(np.array(numbers[:24], np.float32).reshape(6, 4), hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.array(numbers[24:], np.float32).reshape(2, 2), rows)
    assert types == "ids float32[2, 3, 3] 96"
    assert names == "take_rows 1 none"


def test_errors_of_the_model_say_why(program: Path) -> None:
    done = run(program, "", "out of bounds")
    assert done.returncode == 2
    assert done.stdout == "run 2: index out of bounds in kernel take_rows (toy.py:13  rows = self.emb(ids))\n"


def test_the_environment_forces_an_instruction_set(program: Path) -> None:
    assert run(program, TRANSPILE_ISA="baseline").returncode == 0
    done = run(program, TRANSPILE_ISA="avx2")
    assert done.returncode == 1
    assert done.stdout == "open: TRANSPILE_ISA=avx2: this package has no kernels for avx2, only for baseline\n"


def test_other_weights_files_are_refused(package: Path, program: Path, tmp_path: Path) -> None:
    own = (package / "weights.cpu.safetensors").read_bytes()
    key = b'"transpile.prepared":"toy cpu '
    assert key in own
    at = own.index(key) + len(key)
    files: Mapping[str, tuple[bytes, str]] = {
        "good": (own, ""),
        "missing": (b"", "No such file or directory"),
        "empty": (b"\0", "is not a weights file"),
        "cut": (own[:-64], "256 bytes of weights given, 320 expected"),
        "other": (own[:at] + b"0" * 16 + own[at + 16 :], "was not prepared for this model"),
        "state_dict": (own.replace(b"transpile.prepared", b"something.prepared"), "was not prepared for this model"),
        "header": (b"\xff" * 8 + own[8:], "was not prepared for this model"),
        "noise": (bytes(range(256)) * 4, "was not prepared for this model"),
    }
    for name, (content, complaint) in files.items():
        path = tmp_path / name
        if content:
            path.write_bytes(content)
        done = run(program, path)
        assert complaint in done.stdout
        assert done.returncode == (1 if complaint else 0), name
    assert run(program, tmp_path).stdout == f"open: {tmp_path} is not a weights file\n"


def test_the_package_may_be_moved(package: Path, program: Path, tmp_path: Path) -> None:
    """Library, kernels and weights are found from where the library really is, through links too."""
    moved = tmp_path / "elsewhere" / "toy"
    shutil.copytree(package, moved)
    (tmp_path / "libtoy.so").symlink_to(moved / "lib" / "libtoy.so")
    assert run(program, LD_LIBRARY_PATH=str(tmp_path)).returncode == 0
    shutil.rmtree(moved / "kernels")
    done = run(program, LD_LIBRARY_PATH=str(tmp_path))
    assert f"open: {moved}/kernels/cpu/baseline/toy.so: cannot open" in done.stdout


def test_damaged_kernels_are_an_error(package: Path, program: Path, tmp_path: Path) -> None:
    moved = tmp_path / "toy"
    shutil.copytree(package, moved)
    kernels = moved / "kernels/cpu/baseline/toy.so"
    shutil.copy(package / "lib/libtoy.so", kernels)
    done = run(program, LD_LIBRARY_PATH=str(moved / "lib"))
    assert done.stdout == f"open: {kernels} has no function toy_baseline_abi_version: it is of another version\n"


def test_the_header_serves_cpp(package: Path, tmp_path: Path) -> None:
    text = "#include <toy.h>\nint main() { return toy_abi_version() == TOY_ABI_VERSION && toy_isa() ? 0 : 1; }\n"
    assert run(built(package, tmp_path, text, "main.cpp")).returncode == 0


def test_the_dispatcher_compiles_without_warnings_and_exports_the_abi(package: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["nm", "-D", "--defined-only", package / "lib/libtoy.so"], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in done.stdout.splitlines()}
    header = (package / "include/toy.h").read_text()
    assert exported
    assert all(f" {name}(" in header or f"*{name}(" in header for name in exported), "in the library, not in the header"
    assert header.count(";") > len(exported)


def test_what_is_carried_depends_on_the_triple() -> None:
    isas = [target.isa for target in load_targets("cpu", triple="x86_64-linux-gnu")]
    files = c_files("toy", [toy.plan()], isas, "1.2.3", c_compiler())
    header = files["include/toy.h"].decode()
    assert "Kernels for avx512, avx2, baseline are in the package" in header
    assert "Version: 1.2.3\n" in files["lib/pkgconfig/toy.pc"].decode()
